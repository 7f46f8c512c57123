"""Comparisons at equal time: cheaper arms train again for as long, costs are those of one machine."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from suites import TINY, Fake, fake, project, suite

from hope_model.errors import InputError
from hope_train import equal_time, study


class Clocked(Fake):
    """A step takes what `costs` says of the arm, in seconds."""

    costs: dict[str, float]

    def _train(self, unit: study.Unit, lock: int) -> dict[str, Any]:
        record = super()._train(unit, lock)
        steps = unit.config.steps
        return record | {"steps": steps, "step_seconds": self.costs[unit.chain.arm] * steps}


def clocked(tmp_path: Path, conf: Path, costs: dict[str, float], most: int = 100) -> Clocked:
    made = fake(tmp_path, conf, {0.3: 0.7, 1.0: 0.2, 3.0: 0.5}, most)
    again = Clocked(made.chains, made.results, made.work)
    again.losses, again.trained, again.most, again.costs = made.losses, [], most, costs
    return again


def test_cheaper_arms_train_again_for_as_long(tmp_path: Path) -> None:
    arms = {
        "ours": {"run": "gated_deltanet"},
        "cheap": {"run": "transformer"},
        "like": {"run": "transformer", "overrides": ["optim.clip=0.5"]},
    }
    conf = project(tmp_path, arms=arms, equal_time="ours", overrides=[*TINY["overrides"], "steps=100"])
    first = clocked(tmp_path, conf, {"ours": 3.0, "cheap": 0.911, "like": 2.9}, most=16)
    hashes = [[chain.unit(1.0, 0).sha256 for chain in first.chains]]
    assert not first.run()
    assert first.trained[15] == "tiny/cheap/rate1-seed0-steps330"  # 3 / 0.911 = 3.29
    # Slower by then; what was begun is gone on with, at the chosen rate.
    again = clocked(tmp_path, conf, {"ours": 3.0, "cheap": 2.0, "like": 2.9})
    assert again.run()
    assert again.trained == [f"tiny/cheap/rate1-seed{seed}-steps330" for seed in (1, 2)]
    plan = json.loads((tmp_path / "results/plan.json").read_text())["tiny"]["arms"]
    assert list(plan["cheap"]["timed"]) == [f"rate1-seed{seed}-steps330" for seed in (0, 1, 2)]
    assert (plan["ours"]["timed"], plan["like"]["timed"]) == ({}, {})
    assert again.seconds(again.chains[1]) == 3.0
    (conf / "study/tiny.yaml").write_text(
        (conf / "study/tiny.yaml").read_text().replace("equal_time: ours", "equal_time: ''")
    )
    without = suite(tmp_path, conf)
    assert [chain.unit(1.0, 0).sha256 for chain in without.chains] == hashes[0]
    assert not without.timed(without.chains[1])


def test_steps_at_equal_time_by_hand() -> None:
    assert equal_time.steps(60, 1.0, 1.09) == 60
    assert equal_time.steps(60, 1.0, 0.33) == 180  # 3.03, so 3.0
    assert equal_time.steps(60, 1.0, 1.6) == 37  # 0.625, so 0.62: 37.2
    found = [{"step_seconds": s, "steps": 10, "failed": ""} for s in (10.0, 90.0, 20.0)]
    assert equal_time.step_seconds(found) == 1.0  # the others had company
    assert equal_time.step_seconds([{"step_seconds": 0.0, "steps": 0, "failed": "diverged"}]) is None
    assert equal_time.step_seconds([{"seconds": 9.0, "steps": 10, "failed": ""}]) is None  # shared, perhaps
    with pytest.raises(InputError, match="'equal_time: x' is no arm; choose among"):
        study.Study(equal_time="x")


def test_seconds_of_different_machines_are_not_compared() -> None:
    def ran(machine: str, seconds: float) -> dict[str, Any]:
        return {"step_seconds": seconds, "steps": 10, "failed": "", "machine": machine}

    theirs = [ran("slow", 80.0), ran("fast", 40.0)]
    assert equal_time.costs(theirs, [ran("slow", 20.0)]) == (8.0, 2.0)
    assert equal_time.costs(theirs, [ran("other", 5.0), ran("fast", 10.0)]) == (4.0, 1.0)
    assert equal_time.costs(theirs, [ran("other", 5.0)]) is None
    assert equal_time.costs([], [ran("slow", 20.0)]) is None


def test_arms_that_no_machine_timed_both_are_trained_once_more(tmp_path: Path) -> None:
    arms = {"ours": {"run": "gated_deltanet"}, "cheap": {"run": "transformer"}}
    conf = project(tmp_path, arms=arms, equal_time="ours", overrides=[*TINY["overrides"], "steps=100"])
    costs = {"ours": 3.0, "cheap": 1.0}
    first = clocked(tmp_path, conf, costs, most=10)
    assert not first.run()
    for path in (tmp_path / "results/tiny/cheap").glob("*.json"):
        seconds = {"machine": "another, much slower", "step_seconds": 900.0}
        path.write_text(json.dumps(json.loads(path.read_text()) | seconds))
    again = clocked(tmp_path, conf, costs)
    assert again.timed(again.chains[1]) == []  # not known yet
    assert again.at_equal_time(again.chains[1]) is None
    assert again.run()
    longer = [f"tiny/cheap/rate1-seed{seed}-steps300" for seed in (0, 1, 2)]
    assert again.trained == ["tiny/cheap/rate1-seed0", *longer]  # the reference was timed here
    assert clocked(tmp_path, conf, costs).run()


def test_what_diverged_is_not_trained_anew_for_its_seconds(tmp_path: Path) -> None:
    arms = {"ours": {"run": "gated_deltanet"}, "cheap": {"run": "transformer"}}
    conf = project(tmp_path, arms=arms, equal_time="ours")
    for times in range(2):
        made = clocked(tmp_path, conf, {"ours": 0.0, "cheap": 0.0})
        made.losses = defaultdict(lambda: None)
        assert made.run()
        assert bool(made.trained) == (times == 0)
