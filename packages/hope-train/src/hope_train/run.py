"""One run from configuration to finished checkpoint: build, continue, train, save, report."""

import dataclasses
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hope_data.files import write_json
from hope_data.publishing import exclusive, recover_folder
from hope_model import LanguageModel, counting
from hope_model.cpu import prepare_cpu
from hope_model.errors import InputError
from hope_model.precision import pick_precision
from hope_train import files, initial, provenance
from hope_train.checkpoint import resume, state
from hope_train.checkpoint.resume import Existing
from hope_train.checkpoint.state import Identity, Progress, Saved
from hope_train.config import TrainConfig, fingerprint
from hope_train.data import Data, open_data
from hope_train.loop import DivergedError, Run, Stop, fit
from hope_train.network import Network
from hope_train.optim import Optimizer, zero
from hope_train.parallel import distributed
from hope_train.parallel.distributed import World
from hope_train.planning import hardware
from hope_train.provenance import code_sha256, revision, versions
from hope_train.tracking import LOG, Display, Jsonl, Sink, open_trackers, rows, wandb_mode
from hope_train.validation.text import Validation

FINISHED, RESUMABLE = 0, 75


def train(
    config: TrainConfig,
    out: Path,
    *,
    fresh_on_mismatch: bool = False,
    report: Path | None = None,
    until: int | None = None,
) -> int:
    """Train a run, resume it, or find it finished.

    Args:
        config: of the run.
        out: its folder; gets `checkpoint/` and `log.jsonl`.
        fresh_on_mismatch: replace another run that `out` holds; otherwise that is an error.
        report: file for the final numbers.
        until: stop after this step, as at a signal.

    Returns:
        Exit status: 0 finished, 75 stopped before the end with everything saved.

    Raises:
        InputError: something the user can mend.
        DivergedError: the loss stopped being a number; the last checkpoint stands.
    """
    if until is not None and until < 1:
        raise InputError(f"--until {until}: it must be a step, at least 1")
    config = initial.resolved(config)
    wandb_mode(config)  # what is wrong with it shall not be found when the former run is gone
    with distributed.join(config.device) as world:
        data = open_data(config, world.rank, world.size)
        with _owned(out, world):
            return _train(config, data, out, world, fresh_on_mismatch, report, until)


@contextmanager
def _owned(out: Path, world: World) -> Iterator[None]:
    """Hold a run's checkpoint, log and milestones against other commands; the first process does it for all."""
    with ExitStack() as stack:
        with world.agreed():
            if world.main:
                stack.enter_context(exclusive(out / "checkpoint"))
        yield


def _train(
    config: TrainConfig,
    data: Data,
    out: Path,
    world: World,
    fresh: bool,
    report: Path | None,
    until: int | None,
) -> int:
    identity = Identity(fingerprint(config), data.tokenizer_sha256, data.sha256, code_sha256())
    folder = out / "checkpoint"
    display = Display(config.run, config.steps, quiet=not world.main)
    with world.agreed():
        existing = _existing(config, identity, out, fresh, display, world)
    if existing.saved and existing.finished:
        display.say(f"{config.run}: finished at step {existing.saved.progress.step}; nothing to do")
        return _finish(existing.saved.progress.metrics, report, world)

    run = build(config, data, world, resuming=existing.saved is not None)
    progress, flags = Progress(), provenance.flags(config, run.precision, world)
    if existing.saved:
        progress = _resume(run, existing, folder, flags, display)
    meta = _meta(run, identity)
    for line in _headlines(run, progress, meta, flags):
        display.say(line)
    with world.agreed():
        log, sinks = _open_sinks(run, existing, out, progress) if world.main else (None, [])

    def save() -> None:
        loader, logged = run.data.loader.state_dict(), log.sha256 if log else ""
        now = Saved(identity, dataclasses.asdict(config), progress, loader, flags, log=logged)
        counted = {"step": progress.step, "tokens": progress.tokens}
        state.save(folder, run.optimizer, world, now, {**meta, **counted})
        if world.main:
            _keep(config, out, progress.step)

    try:
        # A signal while the last checkpoint is written shall not lose it.
        with Stop(display.say) as stop, display:
            final = fit(run, progress, sinks=sinks, display=display, save=save, stop=stop, until=until)
            if progress.step == config.steps:
                progress.metrics = _metrics(run, progress, final or run.validate())
            save()
    except DivergedError as error:
        kept = state.read(folder)
        where = f"{folder} keeps step {kept.progress.step}" if kept else "no checkpoint had been written"
        raise DivergedError(f"run '{config.run}': {error}; {where}") from None
    finally:
        for sink in sinks:
            sink.close()
    if not progress.metrics:
        display.say(
            f"{config.run}: stopped at step {progress.step}/{config.steps}; the same command resumes it"
        )
        return RESUMABLE
    display.say(_result(run, progress))
    return _finish(progress.metrics, report, world)


def build(config: TrainConfig, data: Data, world: World, *, resuming: bool = False) -> Run:
    """Everything a run works with, its initial weights from the seed or from `init`.

    Args:
        config: of the run, with the model of `init`.
        data: its tokens.
        world: the processes.
        resuming: other weights follow, so those of `init` need not be read.
    """
    prepare_cpu()
    if world.device.type == "cuda":
        torch.set_float32_matmul_precision("high" if config.tf32 else "highest")
    torch.manual_seed(config.seed)
    model = LanguageModel(config.model)
    if config.init and not resuming:
        initial.load(model, config, data.tokenizer_sha256)
    model = model.to(world.device)
    precision = pick_precision(config.precision, world.device)
    inner = Network(model, config)
    network: nn.Module = inner
    optimizer: Optimizer
    if config.parallel.startswith("zero") and world.size > 1:
        groups = counting.parameter_groups(model)
        network, optimizer = zero.share(network, groups, config, world, precision)
    else:
        blocks = model.blocks if model.by_block and inner.memory is None else ()
        network = distributed.share(network, config.parallel, world, blocks)
        optimizer = Optimizer(counting.parameter_groups(model), config.optim)
    return Run(
        config=config,
        model=model,
        network=network,
        memory=inner.memory,
        optimizer=optimizer,
        data=data,
        validation=data.task or Validation(data.windows, data.token_bytes, config.batch_size // world.size),
        world=world,
        precision=precision,
        peak=hardware.peak_flops(world.device) * world.size,
        flops=counting.training_flops_per_token(config.model, config.length)
        + (inner.memory.flops_per_token() if inner.memory else 0.0),
    )


def _existing(
    config: TrainConfig, identity: Identity, out: Path, fresh: bool, display: Display, world: World
) -> Existing:
    """The checkpoint to resume from, if it is this run's."""
    folder = out / "checkpoint"
    if world.main:
        recover_folder(folder)
    world.barrier()
    existing = resume.find(config, identity, folder, fresh_on_mismatch=fresh)
    if existing.replaced:
        display.say(
            f"{config.run}: starting afresh: the former run differs in {', '.join(existing.replaced)}"
        )
    if existing.saved and world.main:
        if existing.finished:  # nobody else would look at its tensors again
            state.check_files(folder, existing.saved)
        step = existing.saved.progress.step
        if not (out / LOG).exists():
            display.say(f"{out / LOG}: is not there; its rows begin after step {step}")
        rows(out / LOG, step, existing.saved.log)
        _keep(config, out, step)
    return existing


def _keep(config: TrainConfig, out: Path, step: int) -> None:
    """Put the checkpoint among the milestones if it is one; also after a kill between saving and keeping."""
    folder, name = out / "checkpoint", f"step-{step:08}"
    if not config.milestone_every or step % config.milestone_every:
        return
    kept = out / "milestones" / name / state.SIDECAR
    if not kept.is_file() or kept.read_bytes() != (folder / state.SIDECAR).read_bytes():
        files.keep(folder, out / "milestones", name, config.milestones)


def _resume(run: Run, existing: Existing, folder: Path, flags: dict[str, Any], display: Display) -> Progress:
    """Put everything back, and say what is not as it was."""
    saved, name = existing.saved, run.config.run
    assert saved is not None  # noqa: S101
    state.restore(folder, saved, run.optimizer, run.world)
    run.data.loader.load_state_dict(saved.loader)
    saved.progress.metrics = {}
    changes = dict(existing.changes)
    if changes.pop("steps", None):
        display.say(f"{name}: {resume.trained_on(saved, run.config)}")
    if changes.pop("code", None):
        display.say(f"{name}: the code has changed since the checkpoint was written")
    bits = resume.bits(saved, flags, run.world.size)
    if others := [text for key, text in changes.items() if key not in flags]:
        display.say(f"{name}: resuming with {', '.join(others)}")
    if bits:
        display.say(f"{name}: resuming, but not to the same bits: {', '.join(bits)}")
    return saved.progress


def _open_sinks(run: Run, existing: Existing, out: Path, progress: Progress) -> tuple[Jsonl, list[Sink]]:
    """The log and the trackers; a former run is removed when nothing else can be refused."""
    trackers = open_trackers(run.config, out, progress.attempt)
    if existing.replaced:
        for folder in (
            out / "milestones",
            out / "checkpoint",
        ):  # a kill in between finds it another run still
            if folder.exists():
                files.remove(folder)
    log = Jsonl(out / LOG, progress.step, existing.saved.log if existing.saved else "")
    return log, [log, *trackers]


def _meta(run: Run, identity: Identity) -> dict[str, Any]:
    return {
        "run": run.config.run,
        "seed": run.config.seed,
        "corpora": run.data.loader.corpora,
        **({"task": run.config.data.task} if run.data.task else {}),
        "length": run.config.length,
        **initial.record(run.config),
        **({"attach": dataclasses.asdict(run.config.attach)} if run.memory else {}),
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


def _headlines(
    run: Run, progress: Progress, meta: dict[str, Any], flags: dict[str, Any]
) -> tuple[str, str, str]:
    """What is about to happen, and everything that decides its outcome."""
    config, counts = run.config, run.optimizer.counts()
    groups = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    begin = f"from step {progress.step} " if progress.step else f"from {config.init} " if config.init else ""
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
