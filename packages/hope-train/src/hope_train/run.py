"""One run from configuration to finished checkpoint: build, continue, train, save, report."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hope_data.files import write_json
from hope_model import LanguageModel, counting
from hope_model.cpu import prepare_cpu
from hope_model.errors import InputError
from hope_train import distributed, files, hardware, provenance, state, zero
from hope_train.config import TrainConfig, fingerprint
from hope_train.data import Data, open_data
from hope_train.distributed import World
from hope_train.loop import DivergedError, Run, Stop, fit
from hope_train.network import Network
from hope_train.optim import Optimizer
from hope_train.provenance import code_sha256, revision, versions
from hope_train.state import Identity, Progress, Saved
from hope_train.tracking import Display, open_sinks
from hope_train.validate import Validation

FINISHED, RESUMABLE = 0, 75


def train(
    config: TrainConfig,
    out: Path,
    *,
    fresh_on_mismatch: bool = False,
    report: Path | None = None,
    until: int | None = None,
) -> int:
    """Train a run, or go on with it, or find it finished.

    Args:
        config: of the run.
        out: its folder; gets `checkpoint/` and `log.jsonl`.
        fresh_on_mismatch: start anew where `out` holds another run; otherwise that is an error.
        report: file for the final numbers.
        until: stop after this step, as at a signal.

    Returns:
        Exit status: 0 finished, 75 stopped before the end with everything saved.

    Raises:
        InputError: something the user can mend.
        DivergedError: the loss stopped being a number; the last checkpoint stands.
    """
    with distributed.join(config.device) as world:
        return _train(config, out, world, fresh_on_mismatch, report, until)


def _train(
    config: TrainConfig, out: Path, world: World, fresh: bool, report: Path | None, until: int | None
) -> int:
    data = open_data(config, world.rank, world.size)
    identity = Identity(fingerprint(config), data.tokenizer_sha256, data.sha256, code_sha256())
    folder = out / "checkpoint"
    display = Display(config.run, config.steps, quiet=not world.main)
    saved = _former(config, identity, folder, fresh, display, world)
    if saved and saved.progress.metrics:
        display.say(f"{config.run}: finished at step {saved.progress.step}; nothing to do")
        return _finish(saved.progress.metrics, report, world)

    run = build(config, data, world)
    progress = Progress()
    flags = provenance.flags(config, run.precision)
    if saved:
        state.restore(folder, saved, run.optimizer, world)
        run.data.loader.load_state_dict(saved.loader)
        progress = saved.progress
        _mind_changes(saved, flags, world, display)
    meta = _meta(run, identity)
    for line in _headlines(run, progress, meta, flags):
        display.say(line)

    def save() -> None:
        loader = run.data.loader.state_dict()
        now = Saved(identity, dataclasses.asdict(config), progress, loader, flags)
        counted = {"step": progress.step, "tokens": progress.tokens}
        state.save(folder, run.optimizer, world, now, {**meta, **counted})
        if world.main and config.milestone_every and progress.step % config.milestone_every == 0:
            files.keep(folder, out / "milestones", f"step-{progress.step:08}", config.milestones)

    sinks = open_sinks(config, out, progress.step, progress.attempt) if world.main else []
    try:
        with Stop(display.say) as stop, display:
            final = fit(run, progress, sinks=sinks, display=display, save=save, stop=stop, until=until)
        if progress.step == config.steps:
            progress.metrics = _metrics(run, progress, final)
        save()
    except DivergedError as error:
        kept = state.read(folder)
        where = f"{folder} keeps step {kept.progress.step}" if kept else "no checkpoint had been written"
        raise DivergedError(f"run '{config.run}': {error}; {where}") from None
    finally:
        for sink in sinks:
            sink.close()
    if not progress.metrics:
        display.say(f"{config.run}: stopped at step {progress.step}/{config.steps}; the same command goes on")
        return RESUMABLE
    display.say(_result(run, progress))
    return _finish(progress.metrics, report, world)


def build(config: TrainConfig, data: Data, world: World) -> Run:
    """Everything a run works with, its initial weights drawn from the seed."""
    prepare_cpu()
    torch.manual_seed(config.seed)
    model = LanguageModel(config.model).to(world.device)
    precision = pick_precision(config.precision, world.device)
    network: nn.Module = Network(model, config)
    optimizer: Optimizer
    if config.parallel.startswith("zero") and world.size > 1:
        groups = counting.parameter_groups(model)
        network, optimizer = zero.share(network, groups, config, world, precision)
    else:
        network = distributed.share(network, config.parallel, world)
        optimizer = Optimizer(counting.parameter_groups(model), config.optim)
    return Run(
        config=config,
        model=model,
        network=network,
        optimizer=optimizer,
        data=data,
        validation=data.task or Validation(data.windows, data.token_bytes, config.batch_size // world.size),
        world=world,
        precision=precision,
        peak=hardware.peak_flops(world.device) * world.size,
        flops=3 * counting.flops_per_token(config.model, config.length),
    )


def pick_precision(name: str, device: torch.device) -> str:
    """`auto` takes bf16 where the hardware multiplies it."""
    if name != "auto":
        return name
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if fast else "fp32"


def _former(
    config: TrainConfig,
    identity: Identity,
    folder: Path,
    fresh_on_mismatch: bool,
    display: Display,
    world: World,
) -> Saved | None:
    """The checkpoint to go on from, if it is this run's."""
    if world.main:
        files.recover(folder)
    world.barrier()
    try:
        saved = state.read(folder)
        different = state.differences(saved, config, identity) if saved else []
        what = f"the former run differs in {', '.join(different)}"
    except InputError as error:
        if not fresh_on_mismatch:
            raise
        saved, different, what = None, ["unknown"], str(error)
    if not different:
        return saved
    if fresh_on_mismatch:
        display.say(f"{config.run}: starting afresh: {what}")
        world.barrier()
        if world.main:
            shutil.rmtree(folder)
        return None
    if different == ["the code"]:
        display.say(f"{config.run}: the code has changed since the checkpoint was written")
        return saved
    raise InputError(
        f"{folder} belongs to another run: {what}; "
        f"choose another --out, move it away, or pass --fresh-on-mismatch"
    )


def _meta(run: Run, identity: Identity) -> dict[str, Any]:
    return {
        "run": run.config.run,
        "seed": run.config.seed,
        "corpora": run.data.loader.corpora,
        **({"task": run.config.data.task} if run.data.task else {}),
        "length": run.config.length,
        "tokenizer_sha256": run.data.tokenizer_sha256,
        "config_sha256": identity.config,
        "data_sha256": identity.data,
        "code_sha256": identity.code,
        "revision": revision(),
        "precision": run.precision,
        "device": str(run.world.device),
        "processes": run.world.size,
        "parallel": run.config.parallel if run.world.size > 1 else "alone",
        "versions": versions(),
        "parameters": run.optimizer.counts(),
    }


def _mind_changes(saved: Saved, flags: dict[str, Any], world: World, display: Display) -> None:
    """Say what keeps the rest of the run from being bitwise what it would have been."""
    changed = [f"{k} {saved.flags.get(k)} -> {v}" for k, v in flags.items() if saved.flags.get(k) != v]
    if saved.processes != world.size:
        changed.append(f"processes {saved.processes} -> {world.size}")
    if changed:
        display.say(f"going on, but not to the same bits: {', '.join(changed)}")


def _headlines(
    run: Run, progress: Progress, meta: dict[str, Any], flags: dict[str, Any]
) -> tuple[str, str, str]:
    """What is about to happen, and everything that decides its outcome."""
    config, counts = run.config, run.optimizer.counts()
    groups = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    begin = f"from step {progress.step} " if progress.step else ""
    switches = ", ".join(f"{name} {value}" for name, value in flags.items())
    versions = ", ".join(f"{name} {number}" for name, number in meta["versions"].items())
    return (
        f"{config.run}: {sum(counts.values()):,} parameters ({groups}), {begin}to step {config.steps} of "
        f"{config.batch_size} x {config.length} tokens",
        f"  {run.world.size} x {run.world.device.type}, {meta['parallel']}; {switches}",
        f"  revision {meta['revision']}; {versions}",
    )


def _result(run: Run, progress: Progress) -> str:
    name, unit = ("val_accuracy", "accuracy") if run.data.task else ("val_bpb", "bits per byte")
    value = f"{progress.metrics[name]:.3f}"
    if f"{name}_se" in progress.metrics:
        value += f" ± {progress.metrics[f'{name}_se']:.3f}"
    chance = f" (chance {run.data.task.chance:.3g})" if run.data.task else ""
    return f"{run.config.run}: {value} {unit}{chance} after {progress.seconds:.0f} s"


def _metrics(run: Run, progress: Progress, validation: dict[str, float]) -> dict[str, float]:
    return {
        "steps": progress.step,
        "tokens": progress.tokens,
        **validation,
        "parameters": sum(run.optimizer.counts().values()),
        "tokens_per_s": progress.tokens / progress.seconds,
        "flops_per_token": run.flops,
        "seconds": progress.seconds,
        "step_seconds": progress.step_seconds,
        "seed": run.config.seed,
    }


def _finish(metrics: dict[str, float], report: Path | None, world: World) -> int:
    if report and world.main:
        write_json(report, dict(metrics))
    return FINISHED
