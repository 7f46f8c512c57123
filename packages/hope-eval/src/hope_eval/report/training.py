"""Training curves from the trainer's `log.jsonl`."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from hope_data.errors import InputError
from hope_data.files import load_sealed, read_bytes, sha256_bytes
from hope_eval.escape import printable

REMEDY = "train again, or leave the log out of --logs"


@dataclass(frozen=True)
class Curve:
    """One run's log as columns.

    Attributes:
        run: name of the folder that holds the log, or of the run whose `seeds/SEED` it is.
        tokens: seen so far, per row.
        seconds: spent in training steps so far, validation and saving left out.
        loss: nats per token, per row.
        validation: (tokens, seconds, nats per token) where the trainer validated.
        tokens_per_s: median over the rows.
        rows: all that was logged.
        seed: where the log is of one of several seeds.
        flops: operations of the whole training; None where the checkpoint beside the log does not say.
        cost: seconds of the steps: of the processor where the checkpoint says, else `seconds` at the end.
    """

    run: str
    tokens: list[float]
    seconds: list[float]
    loss: list[float]
    validation: list[tuple[float, float, float]]
    tokens_per_s: float
    rows: list[dict[str, float]] = field(default_factory=list)
    seed: str = ""
    flops: float | None = None
    cost: float = 0.0


def find(paths: Sequence[Path]) -> list[Path]:
    """Log files themselves; of folders `<run>/seeds/<seed>/log.jsonl`, or `<run>/log.jsonl` of runs without seeds."""
    logs: list[Path] = []
    for path in paths:
        if path.is_dir():
            seeds = sorted(path.glob("*/seeds/*/log.jsonl"))
            runs = {log.parents[2] for log in seeds}
            logs += seeds + [log for log in sorted(path.glob("*/log.jsonl")) if log.parent not in runs]
        else:
            logs.append(path)
    if paths and not logs:
        raise InputError(f"{paths[0]}: no <run>/seeds/<seed>/log.jsonl here; train first")
    return logs


def load(path: Path) -> Curve:
    """Read a log.

    Raises:
        InputError: missing, empty, or a line that is not a row, was changed, or holds a number that cannot be (named
            by its number).
    """
    try:
        lines = read_bytes(path).decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {getattr(error, 'strerror', 'not text')}; train first") from None
    rows: list[dict[str, float]] = []
    before = spent = 0.0
    seconds = []
    for number, text in enumerate(lines, 1):
        row = _row(f"{path}, line {number}", text)
        if row["tokens"] <= before:
            raise InputError(
                f"{path}, line {number}: tokens are {row['tokens']}, not more than before; {REMEDY}"
            )
        spent += (row["tokens"] - before) / row["tokens_per_s"]
        before = row["tokens"]
        rows.append(row)
        seconds.append(spent)
    if not rows:
        raise InputError(f"{path}: empty; train first")
    metrics = _checked(path, lines, rows)
    folder = path.resolve().parent
    of_seed = folder.parent.name == "seeds"
    return Curve(
        run=printable((folder.parents[1] if of_seed else folder).name),
        seed=printable(folder.name) if of_seed else "",
        tokens=[row["tokens"] for row in rows],
        seconds=seconds,
        loss=[row["loss"] for row in rows],
        validation=[
            (row["tokens"], at, row["val_loss"])
            for row, at in zip(rows, seconds, strict=True)
            if "val_loss" in row
        ],
        tokens_per_s=median(row["tokens_per_s"] for row in rows),
        rows=rows,
        flops=metrics["flops_per_token"] * metrics["tokens"] if "flops_per_token" in metrics else None,
        cost=metrics.get("step_seconds", seconds[-1]),
    )


def _checked(path: Path, lines: Sequence[str], rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the final numbers of the checkpoint beside the log; raise InputError where it knows other rows."""
    sidecar = path.parent / "checkpoint" / "training.json"
    if not sidecar.is_file():
        return {}
    record = load_sealed(sidecar, REMEDY)
    step = record["progress"]["step"]
    known = "".join(f"{line}\n" for line, row in zip(lines, rows, strict=True) if row.get("step", 0) <= step)
    if record.get("log") and sha256_bytes(known.encode()) != record["log"]:
        raise InputError(
            f"{path}: was changed after it was written (its hash in {sidecar} does not fit); {REMEDY}"
        )
    return dict(record["progress"].get("metrics") or {})


def _row(where: str, text: str) -> dict[str, float]:
    try:
        row: dict[str, Any] = json.loads(text)
        numbers = {key: float(number) for key, number in row.items() if type(number) in (int, float)}
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        raise InputError(f"{where}: not a row of the trainer; {REMEDY}") from None
    for key in ("tokens", "loss", "tokens_per_s"):
        if key not in numbers:
            raise InputError(f"{where}: not a row of the trainer: {key} is no number; {REMEDY}")
    for key in ("tokens", "loss", "tokens_per_s", "val_loss"):
        if not math.isfinite(numbers.get(key, 0.0)):
            raise InputError(f"{where}: {key} is {numbers[key]}: the run diverged there; {REMEDY}")
    for key in ("tokens", "tokens_per_s"):
        if numbers[key] <= 0:
            raise InputError(f"{where}: {key} is {numbers[key]:g}, not above 0; {REMEDY}")
    return numbers
