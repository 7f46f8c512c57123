"""Which kernel walks whole chunks of deep memories: C++ on a CPU, Triton on CUDA, or none."""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from hope_model.ops.deep_memory.native_span import SELF_MODIFYING, TITANS, self_modifying_span, titans_span
from hope_model.ops.deep_memory.types import FastWeights, Gates, MemoryState, Readout, Rules
from hope_model.ops.triton.areas import bank_scratch, bank_state, titans_scratch, titans_state
from hope_model.ops.triton.launch import TritonKernel

TRITON_TITANS = TritonKernel(TITANS, titans_scratch, titans_state)
TRITON_SELF_MODIFYING = TritonKernel(SELF_MODIFYING, bank_scratch, bank_state)
Span = Callable[..., tuple[Tensor, MemoryState]]


def titans_kernel(
    gates: Gates, rules: Rules, state: MemoryState, origin: FastWeights | None, *tokens: Tensor
) -> Span | None:
    """`written_span` by a kernel that takes these, where there is one; `tokens`: q, k and v."""
    if not _one_strength(gates):
        return None
    tensors = (*tokens, *state.now, *(state.momentum or ()), *(origin or ()), *gates)
    if TRITON_TITANS.takes(rules.chunk, *state.now.W2_NRmd.shape[-2:], *tensors):
        return partial(titans_span, TRITON_TITANS)
    return partial(titans_span, TITANS) if TITANS.applies(*tensors) else None


def self_modifying_kernel(
    gates: Gates,
    rules: Rules,
    readout: Readout,
    state: MemoryState,
    fixed: FastWeights | None,
    origin: FastWeights | None,
    *tokens: Tensor,
) -> Span | None:
    """Whole chunks of self-modifying Titans, likewise; `tokens`: x and q."""
    if not _one_strength(gates):
        return None
    tensors = (*tokens, *state.now, *readout, *(fixed or ()), *(origin or ()), *gates)
    if TRITON_SELF_MODIFYING.takes(rules.chunk, *state.now.W2_NRmd.shape[-2:], *tensors):
        return partial(self_modifying_span, TRITON_SELF_MODIFYING)
    return partial(self_modifying_span, SELF_MODIFYING) if SELF_MODIFYING.applies(*tensors) else None


def _one_strength(gates: Gates) -> bool:
    """One output strength for all memories."""
    return gates.output_NRT is not None and gates.output_NRT.shape[-2] == 1
