"""The record of one training: its schema, and how it is made from what training and evaluation wrote."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from hope_eval.results import STRICT
from hope_model.bench_settings import cpu_name
from hope_model.errors import InputError

if TYPE_CHECKING:
    from hope_study.study import Training

SCHEMA = 2
ADDED = ("documents", "dials")  # keys that records got later: left out where they are empty
CURVE = ("step", "tokens", "val_loss", "val_accuracy", "val_bpb")


@dataclass(frozen=True)
class Value:
    """One measured number.

    Attributes:
        name: key of `hope_eval.results.METRICS`.
        length: tokens of the sequence.
        n: items.
        value: the mean.
        stderr: standard error over sequences, windows or documents.
        chance: what guessing would give, where that exists.
        group: in a stream the way of learning, and the cell `WAY i>DOMAIN`.
    """

    __pydantic_config__ = STRICT
    name: str
    length: int
    n: int
    value: float
    stderr: float | None
    chance: float | None
    group: str = ""


@dataclass(frozen=True)
class Measured:
    """What the evaluations of a training leave in its record; keys as there."""

    metrics: list[Value] = field(default_factory=list)
    documents: dict[str, list[float]] = field(default_factory=dict)
    dials: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """One training of a study.

    Attributes:
        study: file of conf/study.
        arm: of the study.
        run: `rateR-seedS`, at equal time `rateR-seedS-stepsN`; with `study` and `arm` it names the training.
        sha256: of the definition: the resolved configuration and the numbers of the equations.
        rate: factor of the scale's learning rates.
        lr: AdamW's learning rate.
        matrix_lr: Muon's.
        steps: optimiser steps done; 0 where the training diverged.
        seconds: in the loop, by the wall's clock.
        step_seconds: CPU seconds of the training steps; 0 where they were not measured.
        wall_seconds: of training and evaluation.
        flops: of the whole training, counted.
        machine: kind of processor.
        failed: how the training diverged, or "".
        validation: the last validation's numbers.
        curve: validation by steps.
        metrics: what the evaluation measured.
        documents: bytes of every test document, as `bytes`, and its bits, by the condition they were measured in.
        dials: of adaptations, as tuned on validation text, by name.
    """

    __pydantic_config__ = STRICT
    schema: int
    study: str
    arm: str
    run: str
    sha256: str
    seed: int
    rate: float
    lr: float
    matrix_lr: float
    variant: str
    parameters: int
    steps: int
    tokens: int
    seconds: float
    step_seconds: float
    wall_seconds: float
    flops: float
    revision: str
    machine: str
    failed: str
    validation: dict[str, float]
    curve: list[dict[str, float]]
    metrics: list[Value]
    documents: dict[str, list[float]] = field(default_factory=dict)
    dials: dict[str, str] = field(default_factory=dict)

    @property
    def order(self) -> tuple[str, float, int, str]:
        """Place among a study's records."""
        return self.arm, self.rate, self.seed, self.run

    def to_line(self) -> str:
        """JSON on one line, sealed by the hash of everything else on it."""
        values = {key: value for key, value in dataclasses.asdict(self).items() if value or key not in ADDED}
        return json.dumps(values | {"seal": _seal(values)}, allow_nan=False)

    @staticmethod
    def from_line(line: str, source: str) -> Record:
        """Read what `to_line` wrote.

        Args:
            line: of the file.
            source: file and line number, for errors.

        Raises:
            InputError: not a record, or not the bytes that were sealed.
        """
        try:
            values = json.loads(line)
            seal = values.pop("seal")
            record = _adapter().validate_json(json.dumps(values))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise InputError(f"{source}: {where}: {first['msg'].lower()}; {_REMEDY}") from None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise InputError(f"{source}: not a sealed record; {_REMEDY}") from None
        if _seal(values) != seal:
            raise InputError(f"{source}: changed after it was written (its seal does not fit); {_REMEDY}")
        return record


@cache
def _adapter() -> TypeAdapter[Record]:
    return TypeAdapter(Record)


_REMEDY = "restore the line from git, or remove it and run the study again"


def _seal(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def record_of(
    training: Training, folder: Path, measured: Measured, failed: str, revision: str, wall_seconds: float
) -> Record:
    """Collect what is kept of a training.

    Args:
        training: what was trained.
        folder: with the trainer's `train.json` and `log.jsonl`.
        measured: by the evaluations.
        failed: how it diverged, or "".
        revision: of the code.
        wall_seconds: of training and evaluation.
    """
    final = {} if failed else json.loads((folder / "train.json").read_text())
    log = folder / "log.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    seconds = round(final.get("seconds", 0.0), 1)
    return Record(
        schema=SCHEMA,
        study=training.arm.study,
        arm=training.arm.name,
        run=training.name,
        sha256=training.sha256,
        seed=training.config.seed,
        rate=training.rate,
        lr=training.config.optim.lr,
        matrix_lr=training.config.optim.matrix_lr,
        variant=training.config.model.variant,
        parameters=training.arm.parameters,
        steps=int(final.get("steps", 0)),
        tokens=int(final.get("tokens", 0)),
        seconds=seconds,
        step_seconds=round(final.get("step_seconds", 0.0), 2),
        wall_seconds=max(round(wall_seconds, 1), seconds),
        flops=final.get("flops_per_token", 0.0) * final.get("tokens", 0),
        revision=revision,
        machine=cpu_name(),
        failed=failed,
        # JSON has no infinity; no finite loss is as large.
        validation={
            key: value if math.isfinite(value) else 1e300
            for key, value in final.items()
            if key.startswith("val_")
        },
        curve=[
            {key: row[key] for key in CURVE if key in row}
            for row in rows
            if math.isfinite(row.get("val_loss", math.nan))
        ],
        **dataclasses.asdict(measured) | {"metrics": measured.metrics},
    )


def invalid_reason(folder: Path) -> str:
    """Say why a finished training is unusable, or return ''."""
    loss = json.loads((folder / "train.json").read_text()).get("val_loss", math.nan)
    return "" if math.isfinite(loss) else f"the last validation's loss is {loss}"
