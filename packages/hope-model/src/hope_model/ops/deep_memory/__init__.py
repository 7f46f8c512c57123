"""MLP memories M(x) = x + W1 phi(W2 x): read, written and self-modified; derivation in this folder's README."""

from hope_model.ops.deep_memory.chunk import read_memory, self_modifying, titans_memory
from hope_model.ops.deep_memory.naive import self_modifying_naive, titans_memory_naive
from hope_model.ops.deep_memory.types import BANK, FastWeights, Gates, MemoryState, Readout, Rules

__all__ = [
    "BANK",
    "FastWeights",
    "Gates",
    "MemoryState",
    "Readout",
    "Rules",
    "read_memory",
    "self_modifying",
    "self_modifying_naive",
    "titans_memory",
    "titans_memory_naive",
]
