"""Every constant of the schedules, pinned."""

from __future__ import annotations

import pytest

from hope_train.config import ScheduleConfig
from hope_train.schedule import factor

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
