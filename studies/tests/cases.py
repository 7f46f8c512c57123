"""A study with the results that a test asks for."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from suites import project

from hope_study import study as definitions
from hope_study.ledger import Ledger
from hope_study.records import SCHEMA, Record, Value
from hope_study.report import data
from hope_study.report.data import StudyResults
from hope_study.report.page import page
from hope_study.store import Store

SEEDS = (0, 1, 2)
SMALL = [
    "task=parity",
    "steps=10",
    "batch_size=2",
    "length=32",
    "model.dim=64",
    "model.layers=1",
    "memory_chunks=[]",
]
Measured = dict[str, list[dict[int, float]]]


def record(training: definitions.Training, loss: float, values: dict[int, float], name: str) -> Record:
    config = training.config
    return Record(
        schema=SCHEMA,
        study=training.arm.study,
        arm=training.arm.name,
        run=training.name,
        sha256=training.sha256,
        seed=config.seed,
        rate=training.rate,
        lr=0.01 * training.rate,
        matrix_lr=0.01 * training.rate,
        variant="hope",
        parameters=1000,
        steps=config.steps,
        tokens=400 * config.steps,
        seconds=8.0,
        step_seconds=8.0,
        wall_seconds=10.0,
        flops=1e9,
        revision="abc",
        machine="",
        failed="",
        validation={"val_loss": loss},
        curve=[{"step": 5.0, "tokens": 2000.0, "val_loss": loss}],
        metrics=[Value(name, length, 256, v, 0.01, 0.5) for length, v in values.items()],
    )


def diverged(one: Record) -> Record:
    return dataclasses.replace(one, metrics=[], failed="diverged", steps=0, validation={})


class Case:
    """A study whose arms have these values by seed and length; learning rate factor 1 validates best."""

    def __init__(
        self, tmp_path: Path, measured: Measured, name: str = "task_accuracy", **changes: Any
    ) -> None:
        arms: dict[str, Any] = {
            arm: {"run": "hope", "overrides": [f"optim.clip={n + 1}.5"]} for n, arm in enumerate(measured)
        }
        arms[next(iter(arms))] = {"run": "hope"}
        if "hope" not in arms or len(arms) > 2:
            arms["never"] = {"run": "hope", "overrides": ["optim.clip=9.5"], "missing": "no switch"}
        settings = {"overrides": SMALL, "lengths": ["1x"], "arms": arms, "widen": 0, "question": "Which?"}
        tmp_path.mkdir(exist_ok=True)
        self.conf = project(tmp_path, **(settings | changes))
        self.store, self.name = Store(tmp_path / "studies"), name
        for arm in self.arms():
            for seed, values in enumerate(measured.get(arm.name, [])):
                self.store.add(record(arm.training(1.0, seed), 0.5, values, name))
            for rate in (0.3, 3.0) if measured.get(arm.name) else ():
                self.store.add(record(arm.training(rate, 0), 0.7, {}, name))

    def arms(self) -> list[definitions.Arm]:
        return definitions.arms("tiny", definitions.load(self.conf, [])["tiny"], self.conf, [])

    def change(self, arm: str, run: str, **values: Any) -> None:
        self.store.add(dataclasses.replace(self.store.records("tiny")[arm, run], **values))

    def results(self) -> StudyResults:
        return data.collect(Ledger(self.arms(), self.store))[0]

    def page(self) -> str:
        return page(self.results())
