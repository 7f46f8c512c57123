"""States of attached memories on disk, to resume a stream in another process; see `hope_model.stream`."""

from pathlib import Path
from typing import Any

from hope_model.adapt.attach import AttachedMemory
from hope_model.adapt.memory import AttachedLayer, AttachedState
from hope_model.adapt.targets import theta
from hope_model.errors import InputError
from hope_model.ranges import shown
from hope_model.stream import KINDS, read_value, write_value
from hope_model.tree import tensors


def save_memory(path: Path | str, memory: AttachedMemory, state: AttachedState) -> None:
    """Write a state, detached, with what its memory and model are and a hash of it all."""
    write_value(Path(path), state, _about(memory))


def load_memory(path: Path | str, memory: AttachedMemory) -> AttachedState:
    """Read a state for `memory`, onto its model's device.

    Raises:
        InputError: The file is no state, is damaged, or belongs to another model or memory: then names what differs.
    """
    kinds = {**KINDS, **memory.host.kinds(), "AttachedState": AttachedState, "AttachedLayer": AttachedLayer}
    device = memory.host.head.device
    state: AttachedState = read_value(
        Path(path), _about(memory), device, lambda value: check_memory(memory, value), kinds
    )
    return state


def _about(memory: AttachedMemory) -> dict[str, Any]:
    """What a state belongs to; strength, clip and threshold are the state's own."""
    options = memory.options
    return {
        "model": memory.host.about(),
        "matrices": [mlp.name for mlp in memory.mlps],
        "written": options.matrices,
        "periods": options.periods,
        "bound": options.bound,
        "retention": options.retention,
    }


def check_memory(memory: AttachedMemory, state: Any) -> None:
    """Raise `InputError`, which names the part, unless a state fits a memory."""
    if not isinstance(state, AttachedState):
        raise InputError(f"the state is {shown(state)}; give what `initial` or an earlier call returned")
    if len(state.layers) != len(memory.mlps):
        raise InputError(f"the state has {len(state.layers)} layers, the memory {len(memory.mlps)}")
    memory.host.check(state.inner, state.position)
    B = next((len(x) for x in tensors((state.inner, state.layers)) if x.dim()), 0)
    pending = sum(tokens.shape[1] for tokens, _ in state.pending)
    for n, (mlp, layer) in enumerate(zip(memory.mlps, state.layers, strict=True)):
        shapes = [(B, *theta(module).shape) for module in mlp.written]
        for part in ("delta", "total"):
            held = getattr(layer, part)
            if held is not None and [tuple(x.shape) for x in held] != shapes:
                found = [list(x.shape) for x in held]
                raise InputError(f"layers[{n}].{part} has shapes {found}, not {list(map(list, shapes))}")
        if sum(piece[0].shape[1] for piece in layer.waiting) != pending:
            raise InputError(f"layers[{n}].waiting is not of the {pending} tokens that are pending")
