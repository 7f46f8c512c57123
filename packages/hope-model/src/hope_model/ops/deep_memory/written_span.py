"""Whole chunks of Titans' memory: all gates and decays at once, then one written-out step a chunk.

Letters: n chunks, N sequences times heads, d head width, m hidden width, T tokens, C tokens of a chunk.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hope_model.ops.activations import NEGATIVE_SLOPES
from hope_model.ops.deep_memory.types import FastWeights, Gates, MemoryState, Rules
from hope_model.ops.deep_memory.written_momentum import MomentumGates, written_momentum_step
from hope_model.ops.gated_delta.chunk import chunk_decays


def written_span(
    q_NdT: Tensor,
    k_NdT: Tensor,
    v_NdT: Tensor,
    gates: Gates,
    state: MemoryState,
    rules: Rules,
    origin: FastWeights | None,
) -> tuple[Tensor, MemoryState]:
    """Tokens that begin at a chunk's start and cover whole chunks, or a part of one; momentum and origin are needed."""
    shape, T, slope = q_NdT.shape, q_NdT.shape[-1], NEGATIVE_SLOPES[rules.activation]
    chunks = max(T // rules.chunk, 1)
    inputs = (_by_chunk(x, chunks) for x in (k_NdT, v_NdT, q_NdT))
    steps = _momentum_gates(gates, chunks)
    assert state.momentum is not None  # noqa: S101
    assert origin is not None  # noqa: S101
    SPO2, SPO1 = (
        torch.stack((S, P, first.expand_as(S)), -3).flatten(0, -5).squeeze(1)
        for S, P, first in zip(state.now, state.momentum, origin, strict=True)
    )
    outputs, before = [], (SPO2, SPO1)
    for k, v, q, *scalars in zip(*(x.unbind(0) for x in inputs), *(x.unbind(0) for x in steps), strict=True):
        before = (SPO2, SPO1)
        o, SPO2, SPO1 = written_momentum_step(SPO2, SPO1, k, v, q, MomentumGates(*scalars), slope)
        outputs.append(o)
    now, momentum = (_weights(n, SPO2, SPO1, state.now) for n in (0, 1))
    position = state.position + T
    start = _weights(0, *before, state.now) if position % rules.chunk else now
    return torch.cat(outputs, -1).view(shape), MemoryState(now, start, momentum, position)


def _weights(n: int, SPO2: Tensor, SPO1: Tensor, like: FastWeights) -> FastWeights:
    return FastWeights(SPO2[:, n].view(like.W2_NRmd.shape), SPO1[:, n].view(like.W1_NRdm.shape))


def _by_chunk(x_NdT: Tensor, chunks: int) -> Tensor:
    """[n, N, d, C]."""
    N, d = x_NdT.shape[:-2].numel(), x_NdT.shape[-2]
    return x_NdT.reshape(N, d, chunks, -1).permute(2, 0, 1, 3).contiguous()


def _momentum_gates(gates: Gates, chunks: int) -> MomentumGates:
    """All scalars of all chunks; the products of decays are those of `gated_delta.chunk.Momentum`."""
    log_a, log_theta, output, eta = (
        _flat(gate, chunks) for gate in (gates.log_a_NT, gates.log_theta_NT, gates.output_NRT, gates.eta_NRT)
    )
    decays, theta = chunk_decays(log_a), chunk_decays(log_theta)
    written = theta.within_NCC @ decays.within_NCC
    start = (theta.gamma_NC[..., None, :] @ decays.within_NCC)[..., 0, :]
    written_before, start_before = (F.pad(x, (1, 0))[..., :-1] for x in (written, start))
    return MomentumGates(
        eta,
        log_a.exp() * output,
        -torch.expm1(log_theta),
        torch.stack((decays.gamma_NC, start, 1 - decays.gamma_NC), -2),
        torch.stack((decays.before_NC, start_before, 1 - decays.before_NC), -2),
        torch.stack((decays.within_NCC, written), -3),
        torch.stack((decays.between_NCC, written_before), -3),
        theta.within_NCC[..., -1],
        theta.gamma_NC[..., -1],
    )


def _flat(gate: Tensor | None, chunks: int) -> Tensor:
    """[n, N, C]."""
    if gate is None:
        raise TypeError("a gate that this rule needs is missing")
    return gate.reshape(gate.shape[:-1].numel(), chunks, -1).transpose(0, 1)
