"""The model's state: a value that is passed in and returned, to be kept, forked, saved and loaded.

Letters: B sequences, n tokens whose successor is not known yet, V vocabulary.
"""

from typing import Any, NamedTuple

from torch import Tensor

from hope_model.tree import tensors, tree_map


class MemorySettings(NamedTuple):
    """How memories are written at this moment; part of the state, so a test-time switch edits no model."""

    teach_scale: float
    teach_clip: float
    surprise_threshold: float
    writes: tuple[str, ...] | None = None  # of "titans", "cms.0", "cms.1" ...; None: all


class Pending(NamedTuple):
    """Tokens whose teach signal waits for the token after the last of them."""

    tokens_Bn: Tensor
    logits_BnV: Tensor


class Teach(NamedTuple):
    """Running sums of what the teach signal did, for logging."""

    norm: Tensor
    hits: Tensor
    tokens: int


class BlockState(NamedTuple):
    """State of a block's two halves."""

    mixer: Any
    channel: Any


class State(NamedTuple):
    """Everything that a stream carries from one call to the next."""

    position: int
    blocks: tuple[BlockState, ...]
    pending: Pending | None
    teach: Teach | None
    settings: MemorySettings


def detach(state: State) -> State:
    """The same state without history: cuts backpropagation through time."""
    return tree_map(Tensor.detach, state)


def clone(state: State) -> State:
    """An independent copy. States are never changed in place, so a fork needs no copy."""
    return tree_map(Tensor.clone, state)


def repeat(state: State, times: int) -> State:
    """Every sequence `times` times in a row, as `repeat_interleave`: one prefix, many continuations."""
    return tree_map(lambda x: x.repeat_interleave(times, 0) if x.dim() else x, state)


def select(state: State, rows: Tensor) -> State:
    """The sequences named by `rows`."""
    return tree_map(lambda x: x[rows] if x.dim() else x, state)


def n_bytes(state: State) -> int:
    """Bytes that the state's distinct tensors hold."""
    unique = {(x.data_ptr(), x.numel()): x.numel() * x.element_size() for x in tensors(state)}
    return sum(unique.values())


def metrics(state: State) -> dict[str, float]:
    """Inner-loop metrics: mean norm of the teach signal, share of tokens past the gate, size of the deltas."""
    result: dict[str, float] = {}
    if state.teach is not None and state.teach.tokens:
        result["teach_norm"] = float(state.teach.norm) / state.teach.tokens
        result["gate_hit_rate"] = float(state.teach.hits) / state.teach.tokens
    sizes: dict[int, list[float]] = {}
    for block in state.blocks:
        for n, level in enumerate(block.channel or ()):
            if level.delta is not None:
                square = sum(float(d.square().sum()) / len(d) for d in level.delta)
                sizes.setdefault(n, []).append(square**0.5)
    result |= {f"delta_norm_{n}": sum(values) / len(values) for n, values in sizes.items()}
    return result
