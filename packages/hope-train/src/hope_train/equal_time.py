"""Comparisons at equal time: how many steps an arm may take in the CPU time that the reference took."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hope_model.errors import InputError

SAME = 0.1  # costs closer than this are equal, as far as a busy machine can tell
STEPS = re.compile(r"-steps(\d+)$")


def step_seconds(records: Sequence[dict[str, Any]]) -> float | None:
    """Least CPU seconds of a training step over runs of the ordinary length; None where none was measured.

    Least, not middle: what else runs on the machine takes its caches and can only add to them.
    """
    found = [r["step_seconds"] / r["steps"] for r in records if r.get("step_seconds") and not r["failed"]]
    return min(found, default=None)


def costs(theirs: Sequence[dict[str, Any]], own: Sequence[dict[str, Any]]) -> tuple[float, float] | None:
    """`step_seconds` of both arms on one machine that ran both; None where there is none."""
    for machine in dict.fromkeys(r.get("machine", "") for r in own):
        here, there = (
            step_seconds([r for r in arm if r.get("machine", "") == machine]) for arm in (theirs, own)
        )
        if here and there:
            return here, there
    return None


def steps(ordinary: int, reference: float, own: float) -> int:
    """Steps that take as long as the reference's `ordinary` ones, by a factor of two significant digits.

    Equal to `ordinary` where the costs are within `SAME` of each other.
    """
    ratio = reference / own
    return ordinary if abs(ratio - 1) <= SAME else max(1, round(ordinary * float(f"{ratio:.2g}")))


def begun(folder: Path) -> list[int]:
    """Steps of the results at equal time that lie in an arm's folder, of whatever definition."""
    names = [STEPS.search(path.stem) for path in folder.glob("*-steps*.json")]
    return sorted({int(found[1]) for found in names if found})


def described(planned: Path) -> dict[str, Any]:
    """A plan that was written before, or nothing.

    Raises:
        InputError: it is none any more, as after a merge.
    """
    try:
        plan: dict[str, Any] = json.loads(planned.read_text()) if planned.is_file() else {}
    except ValueError as error:
        raise InputError(f"{planned}: {error}; remove the file, it is made from the results") from error
    return plan
