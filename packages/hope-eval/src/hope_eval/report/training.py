"""Training curves from the trainer's `log.jsonl`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from hope_data.errors import InputError


@dataclass(frozen=True)
class Curve:
    """One run's log as columns.

    Attributes:
        run: name of the folder that holds the log.
        tokens: seen so far, per row.
        seconds: spent in training steps so far, validation and saving left out.
        loss: nats per token, per row.
        validation: (tokens, seconds, nats per token) where the trainer validated.
        tokens_per_s: median over the rows.
        rows: all that was logged.
    """

    run: str
    tokens: list[float]
    seconds: list[float]
    loss: list[float]
    validation: list[tuple[float, float, float]]
    tokens_per_s: float
    rows: list[dict[str, float]] = field(default_factory=list)


def find(paths: Sequence[Path]) -> list[Path]:
    """Log files themselves, and `<run>/log.jsonl` of folders."""
    found = [log for path in paths for log in (sorted(path.glob("*/log.jsonl")) if path.is_dir() else [path])]
    if paths and not found:
        raise InputError(f"{paths[0]}: no <run>/log.jsonl here; train first")
    return found


def load(path: Path) -> Curve:
    """Read a log.

    Raises:
        InputError: missing, empty, or a line that is not a row (named by number).
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {getattr(error, 'strerror', 'not text')}; train first") from None
    rows = [_row(path, number, text) for number, text in enumerate(lines, 1)]
    if not rows:
        raise InputError(f"{path}: empty; train first")
    seconds, spent, before = [], 0.0, 0.0
    for tokens, _, speed, _ in rows:
        spent += (tokens - before) / speed
        before = tokens
        seconds.append(spent)
    return Curve(
        run=path.resolve().parent.name,
        tokens=[row[0] for row in rows],
        seconds=seconds,
        loss=[row[1] for row in rows],
        validation=[
            (row[0], at, row[3]) for row, at in zip(rows, seconds, strict=True) if row[3] is not None
        ],
        tokens_per_s=median(row[2] for row in rows),
        rows=[json.loads(text) for text in lines],
    )


def _row(path: Path, number: int, text: str) -> tuple[float, float, float, float | None]:
    try:
        row = json.loads(text)
        return row["tokens"], row["loss"], row["tokens_per_s"], row.get("val_loss")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}, line {number}: not a row of the trainer ({error}); train again") from None
