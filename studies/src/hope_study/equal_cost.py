"""Comparisons at equal time: how many steps an arm may take in the CPU time that the reference took."""

from __future__ import annotations

from collections.abc import Sequence

from hope_study.records import Record

SAME = 0.1  # costs closer than this are equal, as far as a busy machine can tell


def step_seconds(records: Sequence[Record]) -> float | None:
    """Return the least CPU seconds of a training step; None where none was measured.

    The least, not the median: other work on the machine takes its caches, which can only add to the cost.
    """
    costs = [one.step_seconds / one.steps for one in records if one.step_seconds and not one.failed]
    return min(costs, default=None)


def costs(theirs: Sequence[Record], own: Sequence[Record]) -> tuple[float, float] | None:
    """Return `step_seconds` of both arms on one machine that ran both; None where there is none."""
    for machine in dict.fromkeys(one.machine for one in own):
        here, there = (step_seconds([r for r in arm if r.machine == machine]) for arm in (theirs, own))
        if here and there:
            return here, there
    return None


def steps(ordinary: int, reference: float, own: float) -> int:
    """Return the steps that take as long as the reference's `ordinary` ones, by a factor of two significant digits.

    Equal to `ordinary` where the costs are within `SAME` of each other.
    """
    ratio = reference / own
    return ordinary if abs(ratio - 1) <= SAME else max(1, round(ordinary * float(f"{ratio:.2g}")))
