"""One run from configuration to finished checkpoint: build, continue, train, save, report."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import torch

from hope_data.files import write_atomic
from hope_model import LanguageModel, counting
from hope_model.allocator import keep_freed_memory
from hope_model.errors import InputError
from hope_train import state
from hope_train.config import TrainConfig, fingerprint
from hope_train.data import Data, open_data
from hope_train.loop import DivergedError, Run, Stop, fit
from hope_train.optim import Optimizer
from hope_train.provenance import code_sha256, revision
from hope_train.state import Identity, Progress, Saved
from hope_train.tracking import Display, open_sinks
from hope_train.validate import Validation

FINISHED, RESUMABLE = 0, 75


def train(
    config: TrainConfig, out: Path, *, fresh_on_mismatch: bool = False, report: Path | None = None
) -> int:
    """Train a run, or go on with it, or find it finished.

    Args:
        config: of the run.
        out: its folder; gets `checkpoint/` and `log.jsonl`.
        fresh_on_mismatch: start anew where `out` holds another run; otherwise that is an error.
        report: file for the final numbers.

    Returns:
        Exit status: 0 finished, 75 stopped by a signal with everything saved.

    Raises:
        InputError: something the user can mend.
        DivergedError: the loss stopped being a number; the last checkpoint stands.
    """
    data = open_data(config)
    identity = Identity(fingerprint(config), data.sha256, code_sha256())
    folder = out / "checkpoint"
    display = Display(config.run, config.steps)
    saved = _former(config, identity, folder, fresh_on_mismatch, display)
    if saved and saved.progress.metrics:
        display.say(f"{config.run}: finished at step {saved.progress.step}; nothing to do")
        return _finish(saved.progress.metrics, report)

    run = build(config, data)
    progress = Progress()
    if saved:
        state.restore(folder, saved, run.model, run.optimizer)
        run.data.loader.load_state_dict(saved.loader)
        progress = saved.progress
    meta = _meta(run, identity)
    display.say(_headline(run, progress))

    def save() -> None:
        now = Saved(identity, dataclasses.asdict(config), progress, run.data.loader.state_dict())
        counted = {"step": progress.step, "tokens": progress.tokens}
        state.save(folder, run.model, run.optimizer, now, {**meta, **counted})

    sinks = open_sinks(config, out, progress.step, progress.attempt)
    try:
        with Stop(display.say) as stop, display:
            final = fit(run, progress, sinks=sinks, display=display, save=save, stop=stop)
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
    return _finish(progress.metrics, report)


def build(config: TrainConfig, data: Data) -> Run:
    """Everything a run works with, its initial weights drawn from the seed.

    Raises:
        InputError: a device that is not there.
    """
    device = pick_device(config.device)
    keep_freed_memory()
    torch.manual_seed(config.seed)
    model = LanguageModel(config.model).to(device)
    return Run(
        config=config,
        model=model,
        forward=torch.compile(model) if config.compile else model,
        optimizer=Optimizer(counting.parameter_groups(model), config.optim),
        data=data,
        validation=Validation(data.windows, data.token_bytes, config.batch_size),
        device=device,
        precision=pick_precision(config.precision, device),
    )


def pick_device(name: str) -> torch.device:
    """`auto` takes the GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device '{name}': {str(error).splitlines()[0]}") from None
    return device


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
    config: TrainConfig, identity: Identity, folder: Path, fresh_on_mismatch: bool, display: Display
) -> Saved | None:
    """The checkpoint to go on from, if it is this run's."""
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
        "length": run.config.length,
        "tokenizer_sha256": run.data.tokenizer_sha256,
        "config_sha256": identity.config,
        "data_sha256": identity.data,
        "code_sha256": identity.code,
        "revision": revision(),
        "precision": run.precision,
        "device": str(run.device),
        "torch": torch.__version__,
    }


def _headline(run: Run, progress: Progress) -> str:
    config, counts = run.config, run.optimizer.counts()
    groups = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    begin = f"from step {progress.step} " if progress.step else ""
    return (
        f"{config.run}: {sum(counts.values()):,} parameters ({groups}), {begin}to step {config.steps} of "
        f"{config.batch_size} x {config.length} tokens, {run.precision} on {run.device}"
    )


def _result(run: Run, progress: Progress) -> str:
    bpb = f"{progress.metrics['val_bpb']:.3f}"
    if "val_bpb_se" in progress.metrics:
        bpb += f" ± {progress.metrics['val_bpb_se']:.3f}"
    return f"{run.config.run}: {bpb} bits per byte after {progress.seconds:.0f} s"


def _metrics(run: Run, progress: Progress, validation: dict[str, float]) -> dict[str, float]:
    return {
        "steps": progress.step,
        "tokens": progress.tokens,
        **validation,
        "parameters": sum(run.optimizer.counts().values()),
        "tokens_per_s": progress.tokens / progress.seconds,
        "seconds": progress.seconds,
        "seed": run.config.seed,
    }


def _finish(metrics: dict[str, float], report: Path | None) -> int:
    if report:
        write_atomic(report, (json.dumps(metrics, indent=1) + "\n").encode())
    return FINISHED
