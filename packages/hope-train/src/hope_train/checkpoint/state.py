"""The training state on disk: hope-model's checkpoint plus what is needed to go on as if never stopped.

checkpoint/  model.safetensors config.json meta.json     by hope-model; enough for evaluation
             training-RANK-of-SIZE.safetensors           each process's part of the optimiser, its random numbers
             training.json                               loader, counters, SHA-256 of every other file; sealed
"""

import dataclasses
import json
import secrets
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hope_data.errors import InputError as DataInputError
from hope_data.files import dump_sealed, load_sealed, sha256_file
from hope_data.publishing import fsync, replace_folder, temporary_folder
from hope_model import checkpoint
from hope_model.config import ModelConfig
from hope_model.counting import build_meta
from hope_model.errors import InputError
from hope_model.ranges import check_ranges, within
from hope_train.checkpoint import tensors
from hope_train.config import STEPS
from hope_train.optim import Optimizer
from hope_train.parallel.distributed import World
from hope_train.values import strict

WEIGHTS, SIDECAR = "model.safetensors", "training.json"


@dataclass
class Progress:
    """What the loop has counted.

    Attributes:
        step: optimiser steps done.
        tokens: tokens predicted.
        seconds: time spent in the loop, interruptions left out.
        step_seconds: what the steps cost, validation and saving left out: this process's CPU time, which others on the
            machine do not disturb; on an accelerator, time.
        losses: nats per token of the steps since the last row of the log.
        metrics: the run's final numbers; empty while it is unfinished.
        attempt: names this run and its continuations to trackers.
    """

    step: int = field(default=0, metadata=within(0, STEPS))
    tokens: int = field(default=0, metadata=within(0))
    seconds: float = field(default=0.0, metadata=within(0))
    step_seconds: float = field(default=0.0, metadata=within(0))
    losses: list[float] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)  # a validation may end at no number
    attempt: str = field(default_factory=lambda: secrets.token_hex(8))


@dataclass(frozen=True)
class Identity:
    """What makes two runs the same run, as SHA-256."""

    config: str
    tokenizer: str
    data: str
    code: str


@dataclass(frozen=True)
class Saved:
    """The sidecar of a checkpoint: everything but tensors.

    Attributes:
        identity: of the run.
        config: of the run, as nested plain values.
        progress: what the loop has counted.
        loader: position in the data.
        flags: what else decides the last bits.
        processes: that wrote the checkpoint.
        sha256: of every other file, by name.
        log: SHA-256 of the log's rows up to this step; empty where it is not known.
    """

    identity: Identity
    config: dict[str, Any]
    progress: Progress
    loader: dict[str, Any]
    flags: dict[str, Any]
    processes: int = field(default=1, metadata=within(1, 2**20))
    sha256: dict[str, str] = field(default_factory=dict)
    log: str = ""

    def __post_init__(self) -> None:
        check_ranges(self, "")


def save(folder: Path, optimizer: Optimizer, world: World, saved: Saved, meta: dict[str, Any]) -> None:
    """Write a whole checkpoint folder, or leave the former one as it was; every process calls it."""
    with temporary_folder(folder) if world.main else nullcontext(folder) as temporary:
        # All processes write into the folder that the first one has made.
        name = f"{temporary.name}" if world.main else f".{folder.name}.--------.tmp"
        temporary = folder.with_name(world.gather(name.encode())[0].decode())
        weights = {name: _on_main(optimizer.whole(name), world) for name in optimizer.named}
        own = temporary / f"training-{world.rank:05}-of-{world.size:05}.safetensors"
        state = optimizer.tensors() if world.main or optimizer.sharded else {}
        tensors.write(own, {**state, **_random_state()})
        fsync(own)
        digests = world.gather(bytes.fromhex(sha256_file(own)))
        if world.main:
            hashes = _save_model(temporary, saved, weights, meta)
            for rank, digest in enumerate(digests):
                hashes[f"training-{rank:05}-of-{world.size:05}.safetensors"] = digest.hex()
            saved = dataclasses.replace(saved, processes=world.size, sha256=hashes)
            (temporary / SIDECAR).write_bytes(dump_sealed(dataclasses.asdict(saved)))
            replace_folder(temporary, folder)
        world.barrier()


def _on_main(full: Tensor, world: World) -> Tensor:
    return full.cpu() if world.main else full.new_empty(0)


def _save_model(
    folder: Path, saved: Saved, weights: dict[str, Tensor], meta: dict[str, Any]
) -> dict[str, str]:
    """hope-model writes its own files; returns the hash of each."""
    model = build_meta(ModelConfig.from_dict(saved.config["model"]))
    for name, tensor in weights.items():
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, nn.Parameter(tensor, requires_grad=False))
    if model.config.tied_embedding:
        model.head.weight = model.embed.weight
    checkpoint.save(folder, model, meta)
    path = folder / checkpoint.META
    hashes: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))["sha256"]
    return {**hashes, path.name: sha256_file(path)}


def read(folder: Path) -> Saved | None:
    """The sidecar of a checkpoint; None where there is no checkpoint.

    Raises:
        InputError: a checkpoint that cannot be continued from.
    """
    if not folder.exists():
        return None
    try:
        values = load_sealed(folder / SIDECAR, f"move {folder} away")
        saved = strict(Saved, values, f"{folder / SIDECAR}: not the state of a run")
    except DataInputError as error:
        raise InputError(str(error)) from None
    for key, kind in {"run": str, "steps": int, "model": dict}.items():
        if not isinstance(saved.config.get(key), kind):
            raise InputError(f"{folder / SIDECAR}: not the state of a run: no {key} in its configuration")
    if not isinstance(saved.loader.get("samples", saved.loader.get("batches")), int):
        raise InputError(f"{folder / SIDECAR}: not the state of a run: no position in the data")
    return saved


def check_files(folder: Path, saved: Saved, names: list[str] | None = None) -> None:
    """Compare files with the hashes in the sidecar.

    Args:
        folder: of the checkpoint.
        saved: its sidecar.
        names: which files; none given means all.

    Raises:
        InputError: a file that is missing or not what was written; names it.
    """
    for name in names or saved.sha256:
        path = folder / name
        if not path.is_file():
            raise InputError(f"{path}: missing; the checkpoint is incomplete; move {folder} away")
        if sha256_file(path) != saved.sha256.get(name):
            raise InputError(f"{path}: damaged: its SHA-256 is not that of {SIDECAR}; move {folder} away")


def restore(folder: Path, saved: Saved, optimizer: Optimizer, world: World) -> None:
    """Put weights, optimiser and random numbers back, over as many processes as there are now.

    Raises:
        InputError: a file that is missing or not what was written, weights that are not this model's.
    """
    names = sorted(saved.sha256)
    with world.agreed():
        check_files(folder, saved, names[world.rank :: world.size] or names[:1])
    weights = tensors.Reader([folder / WEIGHTS])
    fit(folder, weights, optimizer.shapes)
    optimizer.load_weights(weights.read)
    parts = training_files(folder, saved)
    mine = min(world.rank, len(parts) - 1)
    own = tensors.Reader([parts[mine]])
    _set_random_state({k: own.read(k) for k in own.shapes() if k.startswith("rng/")})
    slots = tensors.Reader(parts)
    optimizer.load_tensors([key for key in slots.shapes() if not key.startswith("rng/")], slots.read)


def fit(folder: Path, weights: tensors.Reader, wanted: dict[str, list[int]]) -> None:
    """Refuse weights that are not exactly the model's.

    Raises:
        InputError: names the parameters.
    """
    present = weights.shapes()
    wrong = [f"missing {n}" for n in wanted.keys() - present.keys()]
    wrong += [f"unknown {n}" for n in present.keys() - wanted.keys()]
    both = wanted.keys() & present.keys()
    wrong += [f"{n} has shape {present[n]}, not {wanted[n]}" for n in both if present[n] != wanted[n]]
    if wrong:
        raise InputError(f"{folder / WEIGHTS} is not this model's: {'; '.join(sorted(wrong)[:5])}")


def training_files(folder: Path, saved: Saved) -> list[Path]:
    """The file of every process, in their order."""
    size = saved.processes
    return [folder / f"training-{rank:05}-of-{size:05}.safetensors" for rank in range(size)]


def _random_state() -> dict[str, Tensor]:
    device = {"rng/cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {}
    return {"rng/cpu": torch.get_rng_state(), **device}


def _set_random_state(states: dict[str, Tensor]) -> None:
    torch.set_rng_state(states["rng/cpu"])
    if "rng/cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["rng/cuda"])
