"""Is a checkpoint whole? Every file, every hash, every tensor."""

from pathlib import Path

import torch

from hope_model.config import ModelConfig
from hope_model.counting import build_meta
from hope_model.errors import InputError
from hope_train.checkpoint import state, tensors
from hope_train.checkpoint.state import Saved
from hope_train.tracking import LOG, rows


def verify(folder: Path) -> str:
    """Check a checkpoint strictly.

    Files must be exactly those of the sidecar and have its hashes; weights must be those of the configuration, by name
    and shape; every row of every optimiser tensor must be there; nothing may be infinite or no number.

    Args:
        folder: `checkpoint`, a milestone, or the folder of a run; the log beside `checkpoint` is checked too.

    Returns:
        One line about what is in it.

    Raises:
        InputError: names the file and what is wrong.
    """
    if not (folder / state.SIDECAR).exists() and (folder / "checkpoint").is_dir():
        folder /= "checkpoint"
    saved = state.read(folder)
    if saved is None:
        raise InputError(f"{folder}: no such checkpoint")
    _check_names(folder, saved)
    weights, slots = _check_tensors(folder, saved)
    if folder.name == "checkpoint":
        rows(folder.with_name(LOG), saved.progress.step, saved.log)
    return (
        f"{folder}: whole; run {saved.config['run']}, step {saved.progress.step}, {saved.progress.tokens:,} tokens, "
        f"{weights} weights and {slots} optimiser tensors of {saved.processes} processes"
    )


def _check_names(folder: Path, saved: Saved) -> None:
    state.check_files(folder, saved)
    extra = {path.name for path in folder.iterdir()} - {*saved.sha256, state.SIDECAR}
    if extra:
        raise InputError(f"{folder}: files that no sidecar knows: {', '.join(sorted(extra))}")
    missing = {state.WEIGHTS, "config.json", "meta.json"} - saved.sha256.keys()
    if missing or any(path.name not in saved.sha256 for path in state.training_files(folder, saved)):
        raise InputError(f"{folder / state.SIDECAR}: does not list every file of a checkpoint")


def _check_tensors(folder: Path, saved: Saved) -> tuple[int, int]:
    """Return how many weights and how many of the optimiser's tensors there are."""
    weights = tensors.Reader([folder / state.WEIGHTS])
    model = build_meta(ModelConfig.from_dict(saved.config["model"]))
    named = {name: list(p.shape) for name, p in model.named_parameters()}
    state.fit(folder, weights, named)
    slots = tensors.Reader(state.training_files(folder, saved))
    remembered = [key for key in slots.shapes() if not key.startswith("rng/")]
    for key in remembered:
        name, _, _ = key.rpartition("/")
        shape = slots.shapes()[key]
        if name not in named or shape not in ([], named[name]):
            raise InputError(f"{folder}: optimiser tensor '{key}' fits no parameter")
    for reader, names in ((weights, list(named)), (slots, remembered)):
        for name in names:
            if not torch.isfinite(reader.read(name)).all():
                raise InputError(
                    f"{folder}: tensor '{name}' holds infinite values or values that are no number"
                )
    return len(named), len(remembered)
