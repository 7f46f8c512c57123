"""What the loop and the optimisers cost, as ratios within one run."""

import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from hope_data.loader import Loader
from hope_data.publishing import exclusive, temporary_folder
from hope_model import counting
from hope_model.errors import InputError
from hope_train.checkpoint import state
from hope_train.checkpoint.state import Identity, Progress, Saved
from hope_train.config import TrainConfig
from hope_train.data import open_data
from hope_train.loop import Run, Stop, fit
from hope_train.loss import token_losses
from hope_train.optim import Optimizer
from hope_train.parallel.distributed import World, pick_device
from hope_train.run import build
from hope_train.tracking import Display, Jsonl

_Clock = npt.NDArray[np.float64]


def bench(config: TrainConfig, steps: int, rounds: int) -> dict[str, float]:
    """Whole training steps beside the bare model's forward and backward, in turns; then optimisers and checkpoints.

    Args:
        config: of the run; its shards are read.
        steps: in each turn; 0 means as many as one row of the log takes.
        rounds: turns of each kind; the first is left out.

    Returns:
        Medians: `loop_tokens_per_s`, `bare_tokens_per_s`; of the ratios of neighbouring turns `loop_over_bare` and
        `loop_over_parts` (the optimiser's step counted on the bare side, too: what the loop itself costs), both also
        with `_cpu` (in this process's CPU time, which others on the machine do not disturb; CPU only); seconds per step
        `muon_s`, `adamw_s`, `m3_s`; `muon_over_adamw`; `optimizer_share` of the chosen one in a step; `checkpoint_s`,
        and `checkpoint_share` of the time between two (where the run has any).
    """
    if steps < 0 or rounds < 1:
        raise InputError(f"--steps {steps}, --rounds {rounds}: steps must be at least 0, rounds at least 1")
    if config.data.task:
        raise InputError("bench measures runs on text; leave data.task out")
    every, steps = config.checkpoint_every, steps or config.log.every
    config = dataclasses.replace(
        config,
        steps=steps * (rounds + 1) + 1,
        checkpoint_every=steps,
        milestone_every=0,
        eval_every=0,
        eval_windows=1,
        lengths={},
    )
    world = World(0, 1, pick_device(config.device))
    on_cpu = world.device.type == "cpu"
    run = build(config, open_data(config), world)
    tokens = steps * config.batch_size * config.length
    loops: list[_Clock] = []
    bares: list[_Clock] = []
    clock = [_now(world)]

    def turn() -> None:
        """The loop calls it where it would save."""
        loops.append(_now(world) - clock[0])
        begin = _now(world)
        for _ in range(steps):
            _bare(run)
        bares.append(_now(world) - begin)
        clock[0] = _now(world)

    with tempfile.TemporaryDirectory() as folder:
        sink = Jsonl(Path(folder) / "log.jsonl", 0)
        display = Display(config.run, config.steps)
        with Stop(display.say) as stop, display:
            fit(run, Progress(), sinks=[sink], display=display, save=turn, stop=stop)
        sink.close()
    loop, bare = np.array(loops[1:]), np.array(bares[1:])
    loop_s, bare_s = np.median(loop[:, 0]), np.median(bare[:, 0])
    clocks = {name: _optimizer_step(run, name, world) for name in ("muon", "adamw", "m3")}
    costs = {name: float(seconds[0]) for name, seconds in clocks.items()}
    parts = bare + steps * clocks[config.optim.name]
    ratios = {"loop_over_bare": np.median(bare / loop, 0), "loop_over_parts": np.median(parts / loop, 0)}
    saving = _checkpoint(run)
    return {
        "loop_tokens_per_s": float(tokens / loop_s),
        "bare_tokens_per_s": float(tokens / bare_s),
        **{name: float(wall) for name, (wall, _) in ratios.items()},
        **({f"{name}_cpu": float(own) for name, (_, own) in ratios.items()} if on_cpu else {}),
        **{f"{name}_s": cost for name, cost in costs.items()},
        "muon_over_adamw": costs["muon"] / costs["adamw"],
        "optimizer_share": float(costs[config.optim.name] * steps / loop_s),
        "checkpoint_s": saving,
        **({"checkpoint_share": float(saving / (every * loop_s / steps))} if every else {}),
    }


def _checkpoint(run: Run) -> float:
    """Median seconds of saving everything, in the working folder: its disk is the one that counts."""
    saved = Saved(Identity("", "", "", ""), dataclasses.asdict(run.config), Progress(), {}, {})

    def save(folder: Path) -> float:
        begin = time.perf_counter()
        state.save(folder, run.optimizer, run.world, saved, {})
        return time.perf_counter() - begin

    with exclusive(Path("bench")), temporary_folder(Path("bench")) as root:
        return float(_median(lambda: save(root / "checkpoint")))


def _bare(run: Run) -> None:
    """The model alone: no loader, optimiser, clip, log; gradients thrown away."""
    config = run.config
    assert isinstance(run.data.loader, Loader)  # noqa: S101
    batch = run.data.loader.samples(np.arange(config.batch_size))
    tokens = torch.from_numpy(batch.tokens).to(run.world.device)
    for part in tokens.chunk(config.accumulate):
        with run.autocast():
            logits_BTV, _ = run.model(part[:, :-1])
        token_losses(logits_BTV, part[:, 1:]).mean().backward()  # type: ignore[no-untyped-call]
    run.model.zero_grad(set_to_none=True)


def _optimizer_step(run: Run, name: str, world: World) -> _Clock:
    """Median seconds of a step, gradients given."""
    optim = dataclasses.replace(run.config.optim, name=name, groups=[])
    optimizer = Optimizer(counting.parameter_groups(run.model), optim)

    def step() -> _Clock:
        for p in optimizer.parameters:
            p.grad = torch.full_like(p, 1e-3)
        begin = _now(world)
        optimizer.step(0.0)
        return _now(world) - begin

    return _median(step)


def _median(timed: Callable[[], _Clock | float], times: int = 7) -> _Clock:
    """Of each of its numbers, the first time left out."""
    timed()
    medians: _Clock = np.median([timed() for _ in range(times)], axis=0)
    return medians


def _now(world: World) -> _Clock:
    """Seconds of the wall's clock, and of this process's CPU time."""
    if world.device.type == "cuda":
        torch.cuda.synchronize(world.device)
    return np.array((time.perf_counter(), time.process_time()))
