"""A small study, and a runner that trains nothing."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import yaml

from hope_study import study
from hope_study.ledger import Ledger
from hope_study.records import Measured, Record, Value, record_of
from hope_study.runner import Runner
from hope_study.store import Store

ROOT = Path(__file__).parents[2]
TINY = {
    "question": "Which one?",
    "scale": "suite",
    "overrides": ["task=parity", "steps=2", "batch_size=2", "length=8", "model.dim=32", "model.layers=1"],
    "arms": {
        "delta": {"run": "gated_deltanet"},
        "full": {"run": "transformer"},
        "none": {"missing": "no switch"},
    },
    "lengths": ["1x", "2x"],
    "tolerance": 0.5,
}
SILENT: Any = type("Silent", (), {"finished": lambda *_: None})()


def project(tmp_path: Path, **changes: object) -> Path:
    conf = tmp_path / "conf"
    conf.mkdir()
    for part in ("config.yaml", "run", "scale", "task", "optim"):
        (conf / part).symlink_to(ROOT / "conf" / part)
    (conf / "study").mkdir()
    (conf / "study" / "tiny.yaml").write_text(yaml.safe_dump(TINY | changes, sort_keys=False))
    return conf


def arms(conf: Path, name: str = "tiny") -> list[study.Arm]:
    return study.arms(name, study.load(conf, [])[name], conf, [])


def ledger(tmp_path: Path, conf: Path) -> Ledger:
    return Ledger(arms(conf), Store(tmp_path / "results"))


class Fake(Runner):
    """Trains nothing: the validation loss is what `losses` says of the rate."""

    losses: dict[float, float | None]
    trained: list[str]
    most: int

    def _train(self, training: study.Training, lock: int) -> Record:
        if len(self.trained) == self.most:
            raise KeyboardInterrupt
        self.trained.append(training.config.run)
        value = self.losses[training.rate]
        record = record_of(training, self.work, Measured(), "diverged" if value is None else "", "abc", 3.0)
        validation = {} if value is None else {"val_loss": value}
        metrics = [Value("task_accuracy", 8, 4, 0.5, 0.1, 0.5)]
        return dataclasses.replace(record, validation=validation, metrics=metrics)


def fake(
    tmp_path: Path, conf: Path, losses: dict[float, Any], most: int = 100, kind: type[Fake] = Fake
) -> Any:
    runner = kind(ledger(tmp_path, conf), tmp_path / "work")
    runner.losses, runner.trained, runner.most = losses, [], most
    runner.work.mkdir(exist_ok=True)
    (runner.work / "train.json").write_text("{}")
    return runner
