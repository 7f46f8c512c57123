"""States of attached memories on disk, to resume a stream in another process; see `hope_model.stream`."""

from pathlib import Path
from typing import Any

from hope_model.adapt.attach import AttachedMemory
from hope_model.adapt.check import check_memory
from hope_model.adapt.memory import AttachedLayer, AttachedState
from hope_model.stream import KINDS, read_value, write_value


def save_memory(path: Path | str, memory: AttachedMemory, state: AttachedState) -> None:
    """Write a state, detached, with what its memory and model are and a hash of it all."""
    write_value(Path(path), state, _about(memory))


def load_memory(path: Path | str, memory: AttachedMemory) -> AttachedState:
    """Read a state for `memory`, onto its model's device; weights of the same configuration are not told apart.

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
