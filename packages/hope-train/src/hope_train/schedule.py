"""What changes over a run: learning rates, the CMS's writes, length of the context. Pure functions of the step."""

import math
import random
from typing import Any

from hope_model.state import MemorySettings
from hope_train.config import ScheduleConfig, TeachConfig, TrainConfig


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


def exceptions(config: TrainConfig, step: int) -> list[float]:
    """For each of `optim.groups`, the factor of the peak learning rate; arguments as for `factor`."""
    return [
        rule.lr * factor(rule.schedule or config.schedule, step, config.steps) for rule in config.optim.groups
    ]


def context(config: TrainConfig, step: int) -> int:
    """Tokens that a sequence of this step can look back on: the newest of `lengths`, else `length`."""
    begun = [begin for begin in config.lengths if begin <= step]
    return config.lengths[max(begun)] if begun else config.length


def memory(config: TrainConfig, settings: MemorySettings, step: int, levels: int) -> MemorySettings:
    """The model's settings of its memories for one step.

    Args:
        config: says what comes in when, and which chunk lengths are drawn from.
        settings: the model's own.
        step: steps done so far.
        levels: of the CMS.
    """
    if config.memory_chunks:
        draw = random.Random(f"{config.seed} {step}")  # of the step alone: a resumed run draws the same
        settings = settings._replace(chunk=draw.choice(config.memory_chunks))
    return _teaching(config.teach, settings, step, config.steps, levels)


def _teaching(
    config: TeachConfig, settings: MemorySettings, step: int, steps: int, levels: int
) -> MemorySettings:
    warmup = round(config.warmup * steps)
    scale = settings.teach_scale * min(1.0, (step + 1) / warmup if warmup else 1.0)
    begin = [*config.begin, *[0.0] * (levels - len(config.begin))]
    waiting = {f"cms.{n}" for n, share in enumerate(begin[:levels]) if step < share * steps}
    every = ("titans", *(f"cms.{n}" for n in range(levels)))
    writes = tuple(w for w in every if w not in waiting) if waiting else settings.writes
    rates = [factor(schedule, step, steps) for schedule in config.lr[:levels]]
    rates += [1.0] * (levels - len(rates))
    return settings._replace(
        teach_scale=scale, writes=writes, rates=tuple(rates) if config.lr else settings.rates
    )


def pace(config: TrainConfig, step: int) -> tuple[Any, ...]:
    """Everything that depends on how long the run is, for one step."""
    settings = MemorySettings(1.0, 1.0, 0.0)
    levels = len(config.model.cms.chunks())
    teaching = _teaching(config.teach, settings, step, config.steps, levels)
    return factor(config.schedule, step, config.steps), exceptions(config, step), teaching


def logged(config: TeachConfig, settings: MemorySettings, lr: float) -> dict[str, float]:
    """What of the memories' settings changes over the run: `teach_scale`, and `cms_lr_n` of every level.

    Args:
        config: says which do.
        settings: of a step.
        lr: the model's `cms.lr`.
    """
    row = {"teach_scale": settings.teach_scale} if config.warmup else {}
    return row | {f"cms_lr_{n}": lr * rate for n, rate in enumerate(settings.rates or ())}
