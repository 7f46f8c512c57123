"""Checkpoints: safetensors, configuration and a sidecar with the hash of every file. Nothing is ever unpickled."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Tensor

from hope_model.blocks import variant_parts
from hope_model.config import ModelConfig
from hope_model.errors import InputError
from hope_model.files import no_checkpoint, parse_json, read_bytes, sha256, write_atomic
from hope_model.model import LanguageModel
from hope_model.ranges import shown
from hope_model.shapes import without_values

WEIGHTS, CONFIG, META = "model.safetensors", "config.json", "meta.json"
TOKENIZER = "tokenizer/"  # of a converted model, inside its checkpoint
# Those whose every number float32 holds; a model is loaded in float32.
PRECISIONS = ("F32", "F16", "BF16")


def save(folder: Path | str, model: LanguageModel, meta: Mapping[str, Any]) -> None:
    """Write weights and configuration, then `meta.json` with their hashes: a torn save cannot verify."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: p.detach().cpu().contiguous() for name, p in model.named_parameters()}
    write(folder, tensors, model.config, meta)


def write(folder: Path, tensors: Mapping[str, Tensor], config: ModelConfig, meta: Mapping[str, Any]) -> None:
    """The same of tensors by their names; the hashes cover the files of a tokenizer in the folder `tokenizer`, too."""
    write_atomic(folder / WEIGHTS, serialise(dict(tensors), metadata={"format": "pt"}))
    write_atomic(folder / CONFIG, (json.dumps(config.to_dict(), indent=1) + "\n").encode())
    tokenizer = sorted(f"{TOKENIZER}{path.name}" for path in (folder / TOKENIZER).glob("*") if path.is_file())
    hashes = {name: sha256(folder / name) for name in (WEIGHTS, CONFIG, *tokenizer)}
    sidecar = {**meta, "sha256": hashes}
    hashes[META] = own_hash(sidecar)
    write_atomic(folder / META, (json.dumps(sidecar, indent=1) + "\n").encode())


def load(folder: Path | str, device: str = "cpu") -> tuple[LanguageModel, dict[str, Any]]:
    """Load strictly: hashes, keys, shapes and types must match.

    Weights are float32, or float16 or bfloat16, which become the same numbers in float32. Other types are refused.

    Returns:
        The model in evaluation mode, and the sidecar's contents.

    Raises:
        InputError: Names the file and what is wrong with it.
    """
    folder = Path(folder)
    config, meta = read(folder)
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            # Compared before memory is taken for the model.
            if wrong := sorted(_differences(file, config))[:5]:
                raise InputError(f"{folder / WEIGHTS} does not fit {CONFIG}: {'; '.join(wrong)}")
            model = LanguageModel(config)
            for name, parameter in model.named_parameters():
                parameter.data.copy_(file.get_tensor(name))
    except (SafetensorError, OSError) as error:
        raise InputError(f"{folder / WEIGHTS} cannot be read as safetensors: {error}") from error
    return model.to(device).eval(), meta


def read(folder: Path) -> tuple[ModelConfig, dict[str, Any]]:
    """Return configuration and sidecar of a checkpoint, all its hashes verified."""
    meta = _read(folder / META)
    _verify(folder, meta)
    try:
        config = ModelConfig.from_dict(_read(folder / CONFIG))
        variant_parts(config)
    except InputError as error:
        raise InputError(f"{folder / CONFIG}: {error}") from None
    return config, meta


def check_tokenizer_hash(folder: Path, meta: Mapping[str, Any], file: Path) -> None:
    """Raise `InputError` where a checkpoint was made with another tokenizer than this file's."""
    expected = meta.get("tokenizer_sha256")
    if expected and sha256(file) != expected:
        raise InputError(f"{file}: not the tokenizer of {folder} ({str(expected)[:12]}); name the right one")


def own_hash(meta: Mapping[str, Any]) -> str:
    """SHA-256 of all that a sidecar says but this; empty where it is nested too deeply."""
    hashes = {name: value for name, value in meta["sha256"].items() if name != META}
    try:
        return hashlib.sha256(json.dumps({**meta, "sha256": hashes}).encode()).hexdigest()
    except RecursionError:
        return ""


def _verify(folder: Path, meta: Mapping[str, Any]) -> None:
    """Compare every file that the sidecar names, the model's at least, with its hash there."""
    hashes = meta.get("sha256")
    if not isinstance(hashes, dict) or not {WEIGHTS, CONFIG} <= hashes.keys():
        raise InputError(
            f"{folder / META} has no hashes ('sha256') of {WEIGHTS} and {CONFIG}; save the checkpoint anew"
        )
    for name, expected in hashes.items():
        if name == META:  # older checkpoints have none
            if expected != own_hash(meta):
                raise InputError(f"{folder / META} does not match its own hash: torn or changed after saving")
            continue
        if Path(name).name != name.removeprefix(TOKENIZER):
            raise InputError(
                f"{folder / META}: 'sha256' names {shown(name)}, which is no file of this folder"
            )
        if not (folder / name).is_file():
            raise InputError(f"{folder / name} is missing; the checkpoint is incomplete")
        if sha256(folder / name) != expected:
            raise InputError(
                f"{folder / name} does not match the hash in {META}: torn or changed after saving"
            )


def _differences(file: Any, config: ModelConfig) -> Iterator[str]:
    """What of a file's tensors the model of a configuration does not have, or has otherwise."""
    names = set(file.keys())
    layers = len({name.split(".")[1] for name in names if name.startswith("blocks.")})
    if layers != config.layers:  # first, because thousands of layers take long to build even without memory
        yield f"it holds {layers} layers, not {config.layers}"
        return
    with without_values():
        own = dict(LanguageModel(config).named_parameters())
    yield from (f"missing {name}" for name in own.keys() - names)
    yield from (f"unknown {name}" for name in names - own.keys())
    for name in own.keys() & names:
        part = file.get_slice(name)
        if list(part.get_shape()) != list(own[name].shape):
            yield f"{name} has shape {list(part.get_shape())}, not {list(own[name].shape)}"
        elif part.get_dtype() not in PRECISIONS:
            yield f"{name} is of type {part.get_dtype()}, not {', '.join(PRECISIONS)}"


def _read(path: Path) -> dict[str, Any]:
    try:
        return parse_json(read_bytes(path, 2**26), str(path))
    except FileNotFoundError:
        raise InputError(no_checkpoint(path)) from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
