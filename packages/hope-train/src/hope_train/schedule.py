"""The learning rate over a run, as a factor of its peak: a pure function of the step."""

from __future__ import annotations

import math

from hope_train.config import ScheduleConfig


def factor(config: ScheduleConfig, step: int, steps: int) -> float:
    """Factor of the peak learning rate for one optimiser step.

    Args:
        config: shape of the schedule.
        step: steps done so far, 0 for the first.
        steps: steps of the whole run; the last one has `step == steps - 1`.

    Returns:
        Between 0 (never reached while warming up) and 1.
    """
    warmup = round(config.warmup * steps)
    if step < warmup:
        return (step + 1) / warmup
    if config.name == "constant":
        return 1.0
    start = warmup if config.name == "cosine" else max(warmup, steps - round(config.decay * steps))
    if step < start:
        return 1.0
    done = (step - start) / max(1, steps - start)
    left = 0.5 * (1 + math.cos(math.pi * done)) if config.name == "cosine" else 1 - done
    return config.final + (1 - config.final) * left
