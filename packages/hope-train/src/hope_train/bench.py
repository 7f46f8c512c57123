"""What the loop and the optimisers cost, as ratios within one run."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch

from hope_data.loader import Loader
from hope_model import counting
from hope_model.errors import InputError
from hope_train.config import TrainConfig
from hope_train.data import open_data
from hope_train.distributed import World, pick_device
from hope_train.loop import Run, Stop, fit
from hope_train.optim import Optimizer
from hope_train.run import build
from hope_train.state import Progress
from hope_train.tracking import Display, Jsonl
from hope_train.validate import token_losses


def bench(config: TrainConfig, steps: int, rounds: int) -> dict[str, float]:
    """Whole training steps beside the bare model's forward and backward, in turns; then the optimisers alone.

    Args:
        config: of the run; its shards are read.
        steps: in each turn.
        rounds: turns of each kind; the first is left out.

    Returns:
        Medians: `loop_tokens_per_s`, `bare_tokens_per_s`, `loop_over_bare` (of the ratios of neighbouring turns),
        seconds per step `muon_s`, `adamw_s`, `m3_s`, their ratio, `optimizer_share` of the chosen one in a step.
    """
    config = dataclasses.replace(
        config,
        steps=steps * (rounds + 1) + 1,
        checkpoint_every=steps,
        eval_every=0,
        eval_windows=1,
        lengths={},
    )
    world = World(0, 1, pick_device(config.device))
    run = build(config, open_data(config), world)
    tokens = steps * config.batch_size * config.length
    loop_s: list[float] = []
    bare_s: list[float] = []
    clock = [_now(world)]

    def turn() -> None:
        """The loop calls it where it would save."""
        loop_s.append(_now(world) - clock[0])
        begin = _now(world)
        for _ in range(steps):
            _bare(run)
        bare_s.append(_now(world) - begin)
        clock[0] = _now(world)

    with tempfile.TemporaryDirectory() as folder:
        sink = Jsonl(Path(folder) / "log.jsonl", 0)
        display = Display(config.run, config.steps)
        with Stop(display.say) as stop, display:
            fit(run, Progress(), sinks=[sink], display=display, save=turn, stop=stop)
        sink.close()
    loop, bare = loop_s[1:], bare_s[1:]
    costs = {name: _optimizer_step(run, name, world) for name in ("muon", "adamw", "m3")}
    return {
        "loop_tokens_per_s": tokens / median(loop),
        "bare_tokens_per_s": tokens / median(bare),
        "loop_over_bare": median(b / a for a, b in zip(loop, bare, strict=True)),
        **{f"{name}_s": cost for name, cost in costs.items()},
        "muon_over_adamw": costs["muon"] / costs["adamw"],
        "optimizer_share": costs[config.optim.name] * steps / median(loop),
    }


def _bare(run: Run) -> None:
    """The model alone: no loader, optimiser, clip, log; gradients thrown away."""
    config = run.config
    if not isinstance(run.data.loader, Loader):
        raise InputError("bench measures runs on text; leave data.task out")
    batch = run.data.loader.samples(np.arange(config.batch_size))
    tokens = torch.from_numpy(batch.tokens).to(run.world.device)
    for part in tokens.chunk(config.accumulate):
        with run.autocast():
            logits_BTV, _ = run.model(part[:, :-1])
        token_losses(logits_BTV, part[:, 1:]).mean().backward()  # type: ignore[no-untyped-call]
    run.model.zero_grad(set_to_none=True)


def _optimizer_step(run: Run, name: str, world: World) -> float:
    """Median seconds of a step, gradients given."""
    optim = dataclasses.replace(run.config.optim, name=name, groups=[])
    optimizer = Optimizer(counting.parameter_groups(run.model), optim)

    def step() -> float:
        for p in optimizer.parameters:
            p.grad = torch.full_like(p, 1e-3)
        begin = _now(world)
        optimizer.step(0.0)
        return _now(world) - begin

    return _median(step)


def _median(timed: Callable[[], float], times: int = 7) -> float:
    timed()
    return median(timed() for _ in range(times))


def _now(world: World) -> float:
    if world.device.type == "cuda":
        torch.cuda.synchronize(world.device)
    return time.perf_counter()
