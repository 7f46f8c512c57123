"""Comparisons at equal time: cheaper arms train again for as long, costs are those of one machine."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from suites import TINY, Fake, fake, project

from hope_model.errors import InputError
from hope_study import equal_cost, study
from hope_study.records import Record
from hope_study.store import Store


class Clocked(Fake):
    """A step takes what `costs` says of the arm, in seconds."""

    costs: dict[str, float]

    def _train(self, training: study.Training, lock: int) -> Record:
        record, steps = super()._train(training, lock), training.config.steps
        return dataclasses.replace(record, steps=steps, step_seconds=self.costs[training.arm.name] * steps)


def clocked(tmp_path: Path, conf: Path, costs: dict[str, float], most: int = 100) -> Clocked:
    runner: Clocked = fake(tmp_path, conf, {0.3: 0.7, 1.0: 0.2, 3.0: 0.5}, most, Clocked)
    runner.costs = costs
    return runner


def test_cheaper_arms_train_again_for_as_long(tmp_path: Path) -> None:
    settings = {
        "ours": {"run": "gated_deltanet"},
        "cheap": {"run": "transformer"},
        "like": {"run": "transformer", "overrides": ["optim.clip=0.5"]},
    }
    conf = project(tmp_path, arms=settings, equal_time="ours", overrides=[*TINY["overrides"], "steps=100"])
    first = clocked(tmp_path, conf, {"ours": 3.0, "cheap": 0.911, "like": 2.9}, most=16)
    hashes = [arm.training(1.0, 0).sha256 for arm in first.arms]
    assert not first.run()
    assert first.trained[15] == "tiny/cheap/rate1-seed0-steps330"  # 3 / 0.911 = 3.29
    # Slower by then; what was begun is gone on with, at the chosen rate.
    again = clocked(tmp_path, conf, {"ours": 3.0, "cheap": 2.0, "like": 2.9})
    assert again.run()
    assert again.trained == [f"tiny/cheap/rate1-seed{seed}-steps330" for seed in (1, 2)]
    ours, cheap, like = again.arms
    assert [one.name for one in again.ledger.timed(cheap)] == [f"rate1-seed{n}-steps330" for n in (0, 1, 2)]
    assert (again.ledger.at_equal_time(ours), again.ledger.at_equal_time(like)) == ([], [])
    assert again.ledger.seconds(cheap) == 3.0
    (conf / "study/tiny.yaml").write_text(
        (conf / "study/tiny.yaml").read_text().replace("equal_time: ours", "equal_time: ''")
    )
    without = clocked(tmp_path, conf, {})
    assert [arm.training(1.0, 0).sha256 for arm in without.arms] == hashes
    assert not without.ledger.timed(without.arms[1])


def ran(machine: str, seconds: float) -> Record:
    made: dict[str, Any] = {field.name: "" for field in dataclasses.fields(Record)}
    return Record(**made | {"step_seconds": seconds, "steps": 10, "machine": machine})


def test_steps_at_equal_time_by_hand() -> None:
    assert equal_cost.steps(60, 1.0, 1.09) == 60
    assert equal_cost.steps(60, 1.0, 0.33) == 180  # 3.03, so 3.0
    assert equal_cost.steps(60, 1.0, 1.6) == 37  # 0.625, so 0.62: 37.2
    found = [ran("", seconds) for seconds in (10.0, 90.0, 20.0)]
    assert equal_cost.step_seconds(found) == 1.0  # the others had company
    assert equal_cost.step_seconds([dataclasses.replace(found[0], failed="diverged")]) is None
    assert equal_cost.step_seconds([ran("", 0.0)]) is None  # not measured
    with pytest.raises(InputError, match="'equal_time: x' is no arm; choose among"):
        study.Study(equal_time="x")


def test_seconds_of_different_machines_are_not_compared() -> None:
    theirs = [ran("slow", 80.0), ran("fast", 40.0)]
    assert equal_cost.costs(theirs, [ran("slow", 20.0)]) == (8.0, 2.0)
    assert equal_cost.costs(theirs, [ran("other", 5.0), ran("fast", 10.0)]) == (4.0, 1.0)
    assert equal_cost.costs(theirs, [ran("other", 5.0)]) is None
    assert equal_cost.costs([], [ran("slow", 20.0)]) is None


def test_arms_that_no_machine_timed_both_are_trained_once_more(tmp_path: Path) -> None:
    settings = {"ours": {"run": "gated_deltanet"}, "cheap": {"run": "transformer"}}
    conf = project(tmp_path, arms=settings, equal_time="ours", overrides=[*TINY["overrides"], "steps=100"])
    costs = {"ours": 3.0, "cheap": 1.0}
    first = clocked(tmp_path, conf, costs, most=10)
    assert not first.run()
    store = Store(tmp_path / "results")
    for record in list(store.records("tiny").values()):
        if record.arm == "cheap":
            store.add(dataclasses.replace(record, machine="another, much slower", step_seconds=900.0))
    again = clocked(tmp_path, conf, costs)
    assert again.ledger.timed(again.arms[1]) == []  # not known yet
    assert again.ledger.at_equal_time(again.arms[1]) is None
    assert again.run()
    longer = [f"tiny/cheap/rate1-seed{seed}-steps300" for seed in (0, 1, 2)]
    assert again.trained == ["tiny/cheap/rate1-seed0", *longer]  # the reference was timed here
    assert clocked(tmp_path, conf, costs).run()


def test_what_diverged_is_not_trained_anew_for_its_seconds(tmp_path: Path) -> None:
    settings = {"ours": {"run": "gated_deltanet"}, "cheap": {"run": "transformer"}}
    conf = project(tmp_path, arms=settings, equal_time="ours")
    for times in range(2):
        made = clocked(tmp_path, conf, {"ours": 0.0, "cheap": 0.0})
        made.losses = defaultdict(lambda: None)
        assert made.run()
        assert bool(made.trained) == (times == 0)
