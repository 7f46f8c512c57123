"""States on disk: a stream goes on in another process. Safetensors and a JSON skeleton; nothing is ever unpickled."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Tensor

from hope_model.checkpoint import write_atomic
from hope_model.errors import InputError
from hope_model.layers.attention import AttentionState
from hope_model.layers.cms import LevelState
from hope_model.layers.deltanet import DeltaState
from hope_model.layers.titans import TitansState
from hope_model.layers.titans_attention import MACState, MAGState
from hope_model.model import LanguageModel
from hope_model.ops.cms import LevelWeights
from hope_model.ops.deep_memory import FastWeights, MemoryState
from hope_model.state import BlockState, MemorySettings, Pending, State, Teach

KINDS: dict[str, Any] = {
    kind.__name__: kind
    for kind in (
        *(State, BlockState, MemorySettings, Pending, Teach, AttentionState, DeltaState, TitansState),
        *(MAGState, MACState, MemoryState, FastWeights, LevelState, LevelWeights),
    )
}


def save_state(path: Path | str, model: LanguageModel, state: State) -> None:
    """Write a state, detached, with the configuration of the model that it belongs to."""
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

    skeleton = json.dumps({"state": pack(state), "model": model.config.to_dict()})
    write_atomic(Path(path), serialise(tensors, metadata={"hope_state": skeleton}))


def load_state(path: Path | str, model: LanguageModel) -> State:
    """Read a state for `model`, onto its device.

    Raises:
        InputError: The file is no state, is damaged, or belongs to another model.
    """
    device = str(next(model.parameters()).device)
    try:
        with safe_open(path, framework="pt", device=device) as file:
            skeleton = json.loads((file.metadata() or {})["hope_state"])
            if skeleton["model"] != model.config.to_dict():
                raise InputError(f"{path} holds the state of another model configuration; load that model")
            state = _unpack(skeleton["state"], file)
    except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} cannot be read as a state: {error}") from error
    if not isinstance(state, State):
        raise InputError(f"{path} holds no state; write one with save_state")
    return state


def _unpack(value: Any, file: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return file.get_tensor(value["tensor"])
    parts = [_unpack(part, file) for part in value["parts"]]
    return tuple(parts) if value["kind"] == "tuple" else KINDS[value["kind"]](*parts)
