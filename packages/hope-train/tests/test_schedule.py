"""Every constant of the schedules, pinned."""

from __future__ import annotations

import dataclasses

import pytest

from hope_model.errors import InputError
from hope_model.state import MemorySettings
from hope_train.config import (
    GroupConfig,
    OptimConfig,
    ScheduleConfig,
    TeachConfig,
    TrainConfig,
)
from hope_train.schedule import context, exceptions, factor, logged, memory

VALUES = {
    # steps done: 0 and 4 of the warm-up, its end, a quarter, the middle, the last of 100
    "cosine": (0.1, 0.5, 1.0, 1.0, 0.93971, 0.56570, 0.10027),
    "wsd": (0.1, 0.5, 1.0, 1.0, 1.0, 1.0, 0.145),
    "constant": (0.1, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0),
}


@pytest.mark.parametrize("name", VALUES)
def test_values(name: str) -> None:
    config = ScheduleConfig(name=name, warmup=0.1, decay=0.2, final=0.1)
    got = [factor(config, step, 100) for step in (0, 4, 9, 10, 25, 54, 99)]
    assert got == pytest.approx(VALUES[name], abs=1e-5)


def test_short_runs_and_no_warmup() -> None:
    assert factor(ScheduleConfig(warmup=0.0), 0, 1) == 1.0
    assert [factor(ScheduleConfig(name="wsd", warmup=0.0, decay=1.0, final=0.0), s, 4) for s in range(4)] == [
        1.0,
        0.75,
        0.5,
        0.25,
    ]
    assert factor(ScheduleConfig(warmup=1.0), 3, 4) == 1.0


def test_exceptions_have_their_own_factor_and_shape() -> None:
    wsd = ScheduleConfig(name="constant", warmup=0.5)
    groups = [GroupConfig(match="a", lr=0.5), GroupConfig(match="b", lr=2.0, schedule=wsd)]
    config = TrainConfig(run="x", steps=100, optim=OptimConfig(groups=groups))
    assert exceptions(config, 4) == pytest.approx([0.5, 0.2])
    assert exceptions(config, 99) == pytest.approx([0.5 * factor(config.schedule, 99, 100), 2.0])


def test_context_grows_by_step_and_must_divide_the_length() -> None:
    config = TrainConfig(run="x", length=2048, lengths={0: 512, 10: 1024, 20: 2048})
    assert [context(config, step) for step in (0, 9, 10, 19, 20, 999)] == [512, 512, 1024, 1024, 2048, 2048]
    assert context(TrainConfig(run="x", length=64, lengths={5: 32}), 4) == 64
    with pytest.raises(InputError, match="cannot be cut"):
        TrainConfig(run="x", length=2048, lengths={0: 600})


def test_the_cms_writes_come_in() -> None:
    own = MemorySettings(0.4, 1.0, 0.0)
    config = TrainConfig(run="x", steps=100, teach=TeachConfig(warmup=0.1, begin=[0.0, 0.5]))
    got = [memory(config, own, step, 3) for step in (0, 4, 9, 49, 50)]
    assert [settings.teach_scale for settings in got] == pytest.approx([0.04, 0.2, 0.4, 0.4, 0.4])
    assert got[3].writes == ("titans", "cms.0", "cms.2")
    assert got[4].writes is None
    assert memory(TrainConfig(run="x", steps=100), own, 0, 4) == own


def test_every_level_of_the_cms_learns_at_its_own_pace() -> None:
    rising = ScheduleConfig(name="constant", warmup=0.5)
    config = TeachConfig(lr=[ScheduleConfig(name="cosine", warmup=0.0, final=0.5), rising])
    own = MemorySettings(0.4, 1.0, 0.0)
    run = TrainConfig(run="x", steps=100, teach=config)
    got = [memory(run, own, step, 3) for step in (0, 24, 99)]
    assert got[0].rates == pytest.approx((1.0, 0.02, 1.0))
    assert got[1].scales(3) == pytest.approx((0.4 * factor(config.lr[0], 24, 100), 0.4 * 0.5, 0.4))
    assert got[2].rates == pytest.approx((0.5, 1.0, 1.0), abs=1e-3)
    assert logged(config, got[1], 2.0) == pytest.approx(
        {"cms_lr_0": 2 * factor(config.lr[0], 24, 100), "cms_lr_1": 1.0, "cms_lr_2": 2.0}
    )
    assert logged(TeachConfig(warmup=0.1), own, 2.0) == {"teach_scale": 0.4}
    assert logged(TeachConfig(), own, 2.0) == {}


def test_schedules_wherever_they_stand_are_checked() -> None:
    bad = ScheduleConfig(name="linear")
    with pytest.raises(InputError, match=r"teach.lr\[1\].name is 'linear'; choose one of cosine"):
        TrainConfig(run="x", teach=TeachConfig(lr=[ScheduleConfig(), bad]))
    with pytest.raises(InputError, match=r"optim.groups\[0\].schedule.final is 2.0"):
        TrainConfig(
            run="x", optim=OptimConfig(groups=[GroupConfig(match="*", schedule=ScheduleConfig(final=2.0))])
        )


def test_chunks_are_drawn_for_the_step_alone_and_all_of_them() -> None:
    own = MemorySettings(0.4, 1.0, 0.0)
    config = TrainConfig(run="x", memory_chunks=[4, 8, 16], steps=100, seed=3)
    drawn = [memory(config, own, step, 4).chunk for step in range(60)]
    assert drawn == [memory(config, own, step, 4).chunk for step in range(60)]
    assert sorted(set(drawn)) == [4, 8, 16]
    other = dataclasses.replace(config, seed=4)
    assert drawn != [memory(other, own, step, 4).chunk for step in range(60)]
    with pytest.raises(InputError, match=r"memory_chunks\[1\] is 0; it must be between 1"):
        TrainConfig(run="x", memory_chunks=[8, 0])
