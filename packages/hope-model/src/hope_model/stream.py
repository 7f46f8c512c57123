"""States on disk, to resume a stream in another process: safetensors, a JSON skeleton, a hash; nothing is unpickled."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse
from safetensors.torch import save as serialise
from torch import Tensor

from hope_model.errors import InputError
from hope_model.files import parse_json, read_bytes, write_atomic
from hope_model.layers.attention import AttentionState
from hope_model.layers.cms import LevelState
from hope_model.layers.deltanet import DeltaState
from hope_model.layers.titans import TitansState
from hope_model.layers.titans_attention import MACState, MAGState
from hope_model.model import LanguageModel
from hope_model.ops.cms import LevelWeights
from hope_model.ops.deep_memory import FastWeights, MemoryState
from hope_model.ranges import shown
from hope_model.state import BlockState, MemorySettings, Pending, State, Teach

KINDS: dict[str, Any] = {
    kind.__name__: kind
    for kind in (
        *(State, BlockState, MemorySettings, Pending, Teach, AttentionState, DeltaState, TitansState),
        *(MAGState, MACState, MemoryState, FastWeights, LevelState, LevelWeights),
    )
}


# The hash of the whole file, with zeros in its own place.
_UNSIGNED = b'"sha256":"' + 64 * b"0" + b'"'
_SIGNED = re.compile(rb'"sha256":"[0-9a-f]{64}"')


def save_state(path: Path | str, model: LanguageModel, state: State) -> None:
    """Write a state, detached, with the configuration of the model that it belongs to and a hash of it all."""
    write_value(Path(path), state, model.config.to_dict())


def write_value(path: Path, state: Any, about: dict[str, Any]) -> None:
    """Write nested tuples of tensors, numbers and None with what they belong to and a hash of it all."""
    tensors: dict[str, Tensor] = {}
    names: dict[tuple[Any, ...], str] = {}

    def pack(value: Any) -> Any:
        if isinstance(value, Tensor):
            key = (value.data_ptr(), value.shape, value.stride(), value.dtype)
            if key not in names:  # tensors that parts of a state share are written once
                names[key] = str(len(names))
                tensors[names[key]] = value.detach().cpu().clone().contiguous()
            return {"tensor": names[key]}
        if isinstance(value, tuple):
            return {"kind": type(value).__name__, "parts": [pack(part) for part in value]}
        return value

    skeleton = json.dumps({"state": pack(state), "model": about})
    data = serialise(tensors, metadata={"hope_state": skeleton, "sha256": 64 * "0"})
    signature = _UNSIGNED.replace(64 * b"0", hashlib.sha256(data).hexdigest().encode())
    write_atomic(path, data.replace(_UNSIGNED, signature, 1))


def load_state(path: Path | str, model: LanguageModel) -> State:
    """Read a state for `model`, onto its device; weights of the same configuration are not told apart.

    Raises:
        InputError: The file is no state, is damaged, or belongs to another model: then names what differs.
    """
    state: State = read_value(
        Path(path), model.config.to_dict(), next(model.parameters()).device, model.check
    )
    return state


def read_value(
    path: Path,
    about: dict[str, Any],
    device: torch.device,
    check: Callable[[Any], None],
    kinds: Mapping[str, Any] = KINDS,
) -> Any:
    """Read what `write_value` wrote.

    Args:
        path: The file.
        about: What it must belong to.
        device: Where its tensors go.
        check: Raises `InputError` unless the value fits.
        kinds: Types of tuples by name.
    """
    skeleton, tensors = _read(path)
    try:
        state = _unpack(skeleton["state"], {name: x.to(device) for name, x in tensors.items()}, kinds)
        other = _differences(skeleton["model"], about)
    except (KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as a state: its structure is damaged ({error})") from None
    belongs = (
        f"{path} holds the state of another model configuration, {', '.join(other[:3])}"
        if other
        else str(path)
    )
    try:
        check(state)
    except InputError as error:
        raise InputError(f"{belongs}: {error}") from None
    if other:
        raise InputError(f"{belongs}; load that model")
    return state


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Skeleton and tensors of a file whose hash is right."""
    try:
        data = read_bytes(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read as a state: {error.strerror}") from None
    header = data[8 : 8 + int.from_bytes(data[:8], "little")]
    signature = _SIGNED.search(header)
    if signature is None:
        raise InputError(f"{path} cannot be read as a state: it has no hash; write it with save_state")
    digest = hashlib.sha256(data.replace(signature[0], _UNSIGNED, 1)).hexdigest()
    if digest not in signature[0].decode():
        raise InputError(f"{path} cannot be read as a state: its content is not what was saved")
    try:
        about = parse_json(header, str(path))["__metadata__"]
        return parse_json(about["hope_state"].encode(), str(path)), parse(data)
    except (SafetensorError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} cannot be read as a state: {error}") from None


def _differences(theirs: Any, ours: dict[str, Any], name: str = "model") -> list[str]:
    """Keys of two configurations that differ, with both values."""
    if not isinstance(theirs, dict):
        return [f"{name} {shown(theirs)}"]
    differences: list[str] = []
    for key in {**theirs, **ours}:
        one, other = theirs.get(key), ours.get(key)
        if isinstance(other, dict):
            differences += _differences(one, other, f"{name}.{key}")
        elif one != other:
            differences.append(f"{name}.{str(key)[:40]} {shown(one)} instead of {shown(other)}")
    return differences


def _unpack(value: Any, tensors: dict[str, Tensor], kinds: Mapping[str, Any]) -> Any:
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    parts = [_unpack(part, tensors, kinds) for part in value["parts"]]
    return tuple(parts) if value["kind"] == "tuple" else kinds[value["kind"]](*parts)
