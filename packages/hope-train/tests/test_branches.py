"""Runs of several lengths that share the steps before their decay."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hope_model.errors import InputError
from hope_train.config import ScheduleConfig, TrainConfig
from hope_train.run import RESUMABLE, train


def same(one: Path, two: Path) -> bool:
    a, b = (load_file(out / "checkpoint/model.safetensors") for out in (one, two))
    return all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("fresh", [False, True])
def test_a_decay_branches_off_a_constant_rate(fresh: bool, tiny: TrainConfig, tmp_path: Path) -> None:
    """Four of forty steps serve a run of eight whose warm-up has as many steps and whose decay is still to come."""
    trunk = dataclasses.replace(tiny, schedule=ScheduleConfig("wsd", warmup=0.05, decay=0.5), steps=40)
    branch = dataclasses.replace(tiny, schedule=ScheduleConfig("wsd", warmup=0.25, decay=0.5), steps=8)
    assert train(trunk, tmp_path / "parts", until=4) == RESUMABLE
    assert train(branch, tmp_path / "parts", fresh_on_mismatch=fresh) == 0
    assert train(branch, tmp_path / "whole") == 0
    assert same(tmp_path / "parts", tmp_path / "whole")
    assert json.loads((tmp_path / "parts/checkpoint/training.json").read_text())["progress"]["seconds"] > 0


def test_a_plan_that_was_not_followed_is_another_run(tiny: TrainConfig, tmp_path: Path) -> None:
    trunk = dataclasses.replace(tiny, schedule=ScheduleConfig("wsd", warmup=0.05, decay=0.5), steps=40)
    assert train(trunk, tmp_path / "out", until=4) == RESUMABLE
    for other in (
        ScheduleConfig("wsd", warmup=0.5, decay=0.5),
        ScheduleConfig("wsd", warmup=0.25, decay=0.75),
    ):
        with pytest.raises(InputError, match=r"differs in .*schedule\.warmup"):
            train(dataclasses.replace(tiny, schedule=other, steps=8), tmp_path / "out")
