"""Results of trainings as small JSON files, and the locks that keep two runners from making one twice."""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from hope_model.bench import cpu_name

if TYPE_CHECKING:
    from hope_train.study import Unit

SCHEMA = 1


class StoppedError(Exception):
    """Asked to stop; what was running can go on."""


def read(path: Path) -> dict[str, Any] | None:
    """A result; None where there is none, or a file that is none of ours."""
    try:
        record: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    ours = isinstance(record, dict) and record.get("schema") == SCHEMA and "sha256" in record
    return record if ours else None


def write_down(
    unit: Unit, folder: Path, metrics: list[dict[str, Any]], failed: str, revision: str
) -> dict[str, Any]:
    """What is kept of a training.

    Args:
        unit: what was trained.
        folder: where; `train.json` and `log.jsonl` of the trainer.
        metrics: what the evaluation found.
        failed: how it ended, where it diverged.
        revision: of the code.
    """
    told = {} if failed else json.loads((folder / "train.json").read_text())
    log = folder / "log.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    keys = ("step", "tokens", "val_loss", "val_accuracy", "val_bpb")
    return {
        "schema": SCHEMA,
        "sha256": unit.sha256,
        "seed": unit.config.seed,
        "lr": unit.config.optim.lr,
        "matrix_lr": unit.config.optim.matrix_lr,
        "variant": unit.config.model.variant,
        "parameters": unit.chain.parameters,
        "steps": int(told.get("steps", 0)),
        "tokens": int(told.get("tokens", 0)),
        "seconds": round(told.get("seconds", 0.0), 1),
        "step_seconds": round(told.get("step_seconds", 0.0), 2),
        "flops": told.get("flops_per_token", 0.0) * told.get("tokens", 0),
        "revision": revision,
        "machine": cpu_name(),
        "failed": failed,
        "validation": {k: v for k, v in told.items() if k.startswith("val_")},
        "curve": [
            {k: row[k] for k in keys if k in row}
            for row in rows
            if math.isfinite(row.get("val_loss", math.nan))
        ],
        "metrics": metrics,
    }


def ill(folder: Path) -> str:
    """What is wrong with a training that came to its end; empty where nothing is."""
    loss = json.loads((folder / "train.json").read_text()).get("val_loss", math.nan)
    return "" if math.isfinite(loss) else f"the last validation's loss is {loss}"


def last_line(folder: Path) -> str:
    """What a training or an evaluation said last, the word for an error left out."""
    lines = (folder / "said.txt").read_text(errors="replace").strip().splitlines()
    return lines[-1].removeprefix("error: ") if lines else "no message"


@contextmanager
def locked(path: Path, stop: Event | None = None) -> Iterator[int]:
    """One process at a time: a child that outlived its parent holds the lock it inherited.

    Raises:
        StoppedError: `stop` was set while another had it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_CREAT | os.O_RDWR)
    try:
        while not _taken(handle):
            if (stop or Event()).wait(0.2):
                raise StoppedError
        yield handle
    finally:
        os.close(handle)


def _taken(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
