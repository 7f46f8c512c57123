"""A small study, and a runner that trains nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from hope_train import study
from hope_train.ablations import Suite
from hope_train.records import write_down

ROOT = Path(__file__).parents[3]
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


def suite(tmp_path: Path, conf: Path) -> Suite:
    loaded = study.load(conf, [])
    return Suite(study.chains("tiny", loaded["tiny"], conf, []), tmp_path / "results", tmp_path / "work")


class Fake(Suite):
    """Trains nothing: the validation loss is what `losses` says of the rate."""

    losses: dict[float, float | None]
    trained: list[str]
    most: int

    def _train(self, unit: study.Unit, lock: int) -> dict[str, Any]:
        if len(self.trained) == self.most:
            raise KeyboardInterrupt
        self.trained.append(unit.config.run)
        value = self.losses[unit.rate]
        record = write_down(unit, self.work, [], "diverged" if value is None else "", "abc")
        metrics = [{"name": "task_accuracy", "length": 8, "value": 0.5}]
        known = {} if value is None else {"val_loss": value}
        return record | {"wall_seconds": 3.0, "validation": known, "metrics": metrics}


def fake(tmp_path: Path, conf: Path, losses: dict[float, Any], most: int = 100) -> Fake:
    made = suite(tmp_path, conf)
    made = Fake(made.chains, made.results, made.work)
    made.losses, made.trained, made.most = losses, [], most
    made.work.mkdir(exist_ok=True)
    (made.work / "train.json").write_text("{}")
    return made
