"""Checkpoints: safetensors, configuration and a sidecar with the hash of every file. Nothing is ever unpickled."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialise

from hope_model.config import ModelConfig
from hope_model.errors import InputError
from hope_model.model import LanguageModel

WEIGHTS, CONFIG, META = "model.safetensors", "config.json", "meta.json"


def sha256(path: Path) -> str:
    """Hash of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomic(path: Path, data: bytes) -> None:
    """Write beside the target, flush to disk, rename: the target is whole or as it was."""
    beside = path.with_name(f".{path.name}.part")
    with beside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def save(folder: Path | str, model: LanguageModel, meta: Mapping[str, Any]) -> None:
    """Write weights and configuration, then `meta.json` with their hashes: a torn save cannot verify."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: p.detach().cpu().contiguous() for name, p in model.named_parameters()}
    write_atomic(folder / WEIGHTS, serialise(tensors, metadata={"format": "pt"}))
    write_atomic(folder / CONFIG, (json.dumps(model.config.to_dict(), indent=1) + "\n").encode())
    sidecar = {**meta, "sha256": {name: sha256(folder / name) for name in (WEIGHTS, CONFIG)}}
    write_atomic(folder / META, (json.dumps(sidecar, indent=1) + "\n").encode())


def load(folder: Path | str, device: str = "cpu") -> tuple[LanguageModel, dict[str, Any]]:
    """Load strictly: hashes, keys and shapes must match.

    Returns:
        The model in evaluation mode, and the sidecar's contents.

    Raises:
        InputError: Names the file and what is wrong with it.
    """
    folder = Path(folder)
    meta = _read_json(folder / META)
    for name, expected in meta.get("sha256", {}).items():
        if not (folder / name).is_file():
            raise InputError(f"{folder / name} is missing; the checkpoint is incomplete")
        if sha256(folder / name) != expected:
            raise InputError(
                f"{folder / name} does not match the hash in {META}: torn or changed after saving"
            )
    model = LanguageModel(ModelConfig.from_dict(_read_json(folder / CONFIG)))
    try:
        tensors = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{folder / WEIGHTS} cannot be read as safetensors: {error}") from error
    own = dict(model.named_parameters())
    wrong = [f"missing {n}" for n in own.keys() - tensors.keys()] + [
        f"unknown {n}" for n in tensors.keys() - own.keys()
    ]
    wrong += [
        f"{n} has shape {list(tensors[n].shape)}, not {list(own[n].shape)}"
        for n in own.keys() & tensors.keys()
        if own[n].shape != tensors[n].shape
    ]
    if wrong:
        raise InputError(f"{folder / WEIGHTS} does not fit {CONFIG}: {'; '.join(sorted(wrong)[:5])}")
    for name, parameter in own.items():
        parameter.data.copy_(tensors[name])
    return model.to(device).eval(), meta


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing; is {path.parent} a checkpoint folder?") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} must hold a JSON object")
    return value
