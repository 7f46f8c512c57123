"""The model's state: a value that is passed in and returned, to be kept, forked, saved and loaded.

Letters: B sequences, n tokens whose successor is not known yet, V vocabulary.
"""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple, TypeVar

from torch import Tensor

from hope_model.tree import tensors, tree_map

T = TypeVar("T")


class MemorySettings(NamedTuple):
    """How memories are written at this moment; part of the state, so a test-time switch edits no model."""

    teach_scale: float
    teach_clip: float
    surprise_threshold: float
    writes: tuple[str, ...] | None = None  # of "titans", "cms.0", "cms.1" ...; None: all
    rates: tuple[float, ...] | None = None  # by CMS level, factor of its inner learning rate; None: 1
    chunk: int = 0  # tokens of a deep memory that share one gradient point; 0: as configured

    def scales(self, levels: int) -> tuple[float, ...]:
        """Strength of every level's writes."""
        return tuple(self.teach_scale * rate for rate in self.rates or (1.0,) * levels)

    def silent(self) -> "MemorySettings":
        """Return the same settings with nothing written."""
        return self._replace(teach_scale=0.0, surprise_threshold=0.0, writes=())


class BlockState(NamedTuple):
    """State of a block's two halves."""

    mixer: Any
    channel: Any


class Pending(NamedTuple):
    """Tokens whose teach signal waits for the token after the last of them."""

    tokens_Bn: Tensor
    logits_BnV: Tensor | None  # signal "output"
    start: tuple[BlockState, ...] | None  # signal "layer": the blocks before these tokens


class Teach(NamedTuple):
    """Running sums of what the teach signal did, for logging."""

    norm: Tensor
    hits: tuple[Tensor, ...]  # by CMS level: signals past the gate, where the level may write
    signals: int


class State(NamedTuple):
    """Everything that a stream carries from one call to the next."""

    position: int
    blocks: tuple[BlockState, ...]
    pending: Pending | None
    teach: Teach | None
    settings: MemorySettings


def detach(state: T) -> T:
    """The same state without history: cuts backpropagation through time."""
    return tree_map(Tensor.detach, state)


def clone(state: T) -> T:
    """An independent copy. States are never changed in place, so a fork needs no copy."""
    return tree_map(Tensor.clone, state)


def repeat(state: T, times: int) -> T:
    """Every sequence `times` times in a row, as `repeat_interleave`: one prefix, many continuations."""
    return tree_map(lambda x: x.repeat_interleave(times, 0) if x.dim() else x, state)


def select(state: T, rows: Tensor) -> T:
    """The sequences named by `rows`."""
    return tree_map(lambda x: x[rows] if x.dim() else x, state)


def n_bytes(state: object) -> int:
    """Bytes that the state's distinct tensors hold."""
    unique = {(x.data_ptr(), x.numel()): x.numel() * x.element_size() for x in tensors(state)}
    return sum(unique.values())


def metrics(state: State) -> dict[str, float]:
    """What the memories of a state hold and what taught them; gates are `hope_model.observe`'s.

    Returns:
        `teach_norm`, the mean norm of a token's teach signal before clipping; `gate_hit_rate_n`, the share of them
        that level n was written with; `delta_norm_n`, the size of level n's delta; `memory_norm`, that of the mixers'
        fast weights. Sizes are Frobenius norms, means over blocks (and sequences).
    """
    result: dict[str, float] = {}
    if state.teach is not None and state.teach.signals:
        result["teach_norm"] = float(state.teach.norm) / state.teach.signals
        rates = {n: float(hits) / state.teach.signals for n, hits in enumerate(state.teach.hits)}
        result |= {f"gate_hit_rate_{n}": rate for n, rate in rates.items()}
    sizes: dict[str, list[float]] = {}
    for block in state.blocks:
        if fast := fast_weights(block.mixer):
            sizes.setdefault("memory_norm", []).append(size(fast))
        for n, level in enumerate(block.channel or ()):
            if level.delta is not None:
                sizes.setdefault(f"delta_norm_{n}", []).append(size(level.delta))
    return result | {name: sum(values) / len(values) for name, values in sizes.items()}


def fast_weights(mixer: Any) -> tuple[Tensor, ...]:
    """The mixer's memory, wherever in its state it lies; attention has none."""
    while mixer is not None and not isinstance(mixer, Tensor):
        if hasattr(mixer, "now"):
            return tuple(mixer.now)
        mixer = getattr(mixer, "memory", getattr(mixer, "S_BHdd", None))
    return () if mixer is None else (mixer,)


def size(parts: Iterable[Tensor]) -> float:
    """Root of the summed squares, meaned over sequences."""
    return math.sqrt(sum(float(part.detach().square().sum()) / len(part) for part in parts))
