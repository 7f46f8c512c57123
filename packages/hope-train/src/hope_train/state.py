"""The training state on disk: hope-model's checkpoint plus what is needed to go on as if never stopped.

checkpoint/  model.safetensors config.json meta.json     by hope-model; enough for evaluation
             training.safetensors training.json          optimiser, random numbers, loader, counters
"""

from __future__ import annotations

import dataclasses
import json
import secrets
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor

from hope_data.files import sha256_file, write_atomic
from hope_model import LanguageModel, checkpoint
from hope_model.errors import InputError
from hope_train import files
from hope_train.config import TrainConfig
from hope_train.optim import Optimizer

TENSORS, SIDECAR = "training.safetensors", "training.json"


@dataclass
class Progress:
    """What the loop has counted.

    Attributes:
        step: optimiser steps done.
        tokens: tokens predicted.
        seconds: time spent in the loop, interruptions left out.
        losses: nats per token of the steps since the last row of the log.
        metrics: the run's final numbers; empty while it is unfinished.
        attempt: names this run and its continuations to trackers.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    attempt: str = field(default_factory=lambda: secrets.token_hex(8))


@dataclass(frozen=True)
class Identity:
    """What makes two runs the same run, as SHA-256."""

    config: str
    data: str
    code: str


@dataclass(frozen=True)
class Saved:
    """The sidecar of a checkpoint: everything but tensors."""

    identity: Identity
    config: dict[str, Any]
    progress: Progress
    loader: dict[str, Any]
    tensors_sha256: str = ""


def save(
    folder: Path,
    model: LanguageModel,
    optimizer: Optimizer,
    saved: Saved,
    meta: dict[str, Any],
) -> None:
    """Write a whole checkpoint folder, or leave the former one as it was."""
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.parent.mkdir(parents=True, exist_ok=True)
    try:
        checkpoint.save(temporary, model, meta)
        write_atomic(temporary / TENSORS, to_bytes({**optimizer.tensors(), **_random_state()}))
        saved = dataclasses.replace(saved, tensors_sha256=sha256_file(temporary / TENSORS))
        write_atomic(temporary / SIDECAR, (json.dumps(dataclasses.asdict(saved), indent=1) + "\n").encode())
        files.flush(temporary)
        files.swap_in(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read(folder: Path) -> Saved | None:
    """The sidecar of a checkpoint; None where there is no checkpoint.

    Raises:
        InputError: a checkpoint that cannot be continued from.
    """
    files.recover(folder)
    if not folder.exists():
        return None
    try:
        values = json.loads((folder / SIDECAR).read_text(encoding="utf-8"))
        identity, progress = Identity(**values.pop("identity")), Progress(**values.pop("progress"))
        return Saved(identity=identity, progress=progress, **values)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder / SIDECAR}: not the state of a run ({error}); move {folder} away"
        ) from None


def restore(folder: Path, saved: Saved, model: LanguageModel, optimizer: Optimizer) -> None:
    """Put weights, optimiser and random numbers back.

    Raises:
        InputError: a file that is missing or not what was written.
    """
    loaded, _ = checkpoint.load(folder)
    model.load_state_dict(loaded.state_dict(), strict=True)
    path = folder / TENSORS
    try:
        if sha256_file(path) != saved.tensors_sha256:
            raise InputError(f"{path}: damaged: its SHA-256 is not that of {SIDECAR}; move {folder} away")
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: {error}; move {folder} away") from None
    _set_random_state({key: tensors.pop(key) for key in list(tensors) if key.startswith("rng/")})
    optimizer.load_tensors(tensors)


def differences(saved: Saved, config: TrainConfig, identity: Identity) -> list[str]:
    """What keeps a checkpoint from being this run's, in words; empty where nothing does."""
    found = []
    if saved.identity.config != identity.config:
        before, now = _flat(saved.config), _flat(dataclasses.asdict(config))
        keys = [key for key in (*now, *(before.keys() - now.keys())) if before.get(key) != now.get(key)]
        found += [f"{key} {before.get(key)} -> {now.get(key)}" for key in keys]
    if saved.identity.data != identity.data:
        found.append("the shards or the tokenizer")
    if saved.identity.code != identity.code:
        found.append("the code")
    return found


def _random_state() -> dict[str, Tensor]:
    devices = {f"rng/cuda{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
    return {"rng/cpu": torch.get_rng_state(), **devices}


def _set_random_state(states: dict[str, Tensor]) -> None:
    torch.set_rng_state(states["rng/cpu"])
    for index in range(torch.cuda.device_count()):
        if f"rng/cuda{index}" in states:
            torch.cuda.set_rng_state(states[f"rng/cuda{index}"], index)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        out.update(_flat(value, f"{name}.") if isinstance(value, dict) else {name: value})
    return out
