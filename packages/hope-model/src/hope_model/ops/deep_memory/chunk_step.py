"""One chunk of deep memories: writes and reads of both layers, all through the one recurrence.

Letters as in `chunk`.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from hope_model.ops.activations import ACTIVATIONS, shrink_factor, soft_clip
from hope_model.ops.deep_memory.types import FastWeights, Gates, MemoryState, Rules
from hope_model.ops.gated_delta.chunk import (
    Decays,
    Momentum,
    Writes,
    chunk_decays,
    chunk_momentum,
    chunk_read,
    chunk_state,
    chunk_writes,
)


class Layer(NamedTuple):
    """One layer of the memories inside one chunk. W2's rows of all memories are stacked: they share the key.

    With an origin the recurrence is that of S - origin.
    """

    S: Tensor  # W2: [N, R m, d]; W1: [N, R, d, m]
    key: Tensor  # W2: [N, d, C]; W1: [N, R, m, C]
    writes: Writes
    decays: Decays
    momentum: Momentum | None


def memory_forward(
    weights: FastWeights, x_NdC: Tensor, rules: Rules
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """M(x) of R memories for the same x: (y_NRdC, hidden a_NRmC, its slope, pre-activation z_NRmC)."""
    R, m = weights.W2_NRmd.shape[-3:-1]
    z = weights.W2_NRmd.flatten(-3, -2) @ x_NdC
    z = z.view(*z.shape[:-2], R, m, z.shape[-1])
    phi, slope = _activate(z, rules)
    return x_NdC[..., None, :, :] + weights.W1_NRdm @ phi, phi, slope, z


def _activate(z: Tensor, rules: Rules) -> tuple[Tensor, Tensor]:
    phi, slope = ACTIVATIONS[rules.activation](z)
    if not rules.stable:
        return phi, slope
    s = shrink_factor(phi, -2)
    return phi * s, slope * s


def _for_each_memory(decays: Decays) -> Decays:
    gamma, before, within, between = decays
    return Decays(
        *(x[..., None, :] for x in (gamma, before)), *(x[..., None, :, :] for x in (within, between))
    )


def write(
    state: MemoryState,
    k_NdC: Tensor,
    target_NRdC: Tensor,
    gates: Gates,
    rules: Rules,
    origin: FastWeights | None,
    hidden: tuple[Tensor, ...] | None = None,
) -> tuple[Layer, Layer]:
    """The chunk's writes. Cut off from the outer gradient, they are constants: only the weights they add to are not."""
    if not rules.through_writes and state.momentum is not None:
        state = state._replace(momentum=FastWeights(*map(Tensor.detach, state.momentum)))
    with torch.set_grad_enabled(rules.through_writes and torch.is_grad_enabled()):
        hidden = hidden or memory_forward(state.start, k_NdC, rules)
        layer2, layer1 = _solve(state, k_NdC, hidden, target_NRdC, gates, rules, origin)
    if not rules.through_writes:
        W2, W1 = state.now if origin is None else (W - W0 for W, W0 in zip(state.now, origin, strict=True))
        layer2 = layer2._replace(S=W2.flatten(-3, -2), key=layer2.key.detach())
        layer1 = layer1._replace(S=W1, key=layer1.key.detach())
    return layer2, layer1


def _solve(
    state: MemoryState,
    k_NdC: Tensor,
    hidden: tuple[Tensor, ...],
    target_NRdC: Tensor,
    gates: Gates,
    rules: Rules,
    origin: FastWeights | None,
) -> tuple[Layer, Layer]:
    """Solve the writes of both layers. `hidden` is memory_forward(start, k)."""
    y, a_NRmC, slope, z = hidden
    log_a_NC, eta_NRC = present(gates.log_a_NT), present(gates.eta_NRT)
    k_N1dC, keep_NC = k_NdC[..., None, :, :], log_a_NC.exp()
    whole = rules.whole(state.position)  # the piece begins with its chunk: S_0 k is known
    error = y - target_NRdC
    back = slope * (state.start.W1_NRdm.transpose(-1, -2) @ error)
    clip = 1.0 if rules.stable else rules.clip
    write2 = -eta_NRC[..., None, :] * (soft_clip(back, -2, clip) if clip else back)
    strength2 = None if rules.erase == "none" else gates.erase_NT
    if strength2 is not None and not rules.tied_gates:
        strength2 = keep_NC * strength2
    strength1 = None if strength2 is None or rules.erase != "both" else strength2[..., None, :]
    W2_flat, W1 = state.now.W2_NRmd.flatten(-3, -2), state.now.W1_NRdm
    recalled2 = z.flatten(-3, -2) if whole else None
    if rules.stable:
        strength1 = keep_NC[..., None, :] * present(gates.output_NRT)
        write1 = (target_NRdC - k_N1dC) * strength1[..., None, :]
    else:
        write1 = -eta_NRC[..., None, :] * (soft_clip(error, -2, clip) if clip else error)
    recalled1 = y - k_N1dC if whole and strength1 is not None else None
    held1 = None
    if origin is not None:
        W2_flat, W1, recalled2 = W2_flat - origin.W2_NRmd.flatten(-3, -2), W1 - origin.W1_NRdm, None
        held1 = None if strength1 is None else origin.W1_NRdm @ a_NRmC
        recalled1 = None if recalled1 is None or held1 is None else recalled1 - held1
    decays2 = chunk_decays(log_a_NC)
    decays1 = _for_each_memory(decays2)
    momentum1 = momentum2 = None
    if gates.log_theta_NT is not None and state.momentum is not None:
        P2, P1 = state.momentum
        momentum2 = chunk_momentum(decays2, gates.log_theta_NT, P2.flatten(-3, -2))
        momentum1 = chunk_momentum(decays1, gates.log_theta_NT[..., None, :], P1)
        if not rules.momentum_sum:
            # An average of past surprises: the equilibrium of a write does not depend on theta.
            share = -torch.expm1(gates.log_theta_NT)[..., None, None, :]
            write1, write2 = write1 * share, write2 * share
    write2_flat = write2.flatten(-3, -2)
    writes2 = chunk_writes(W2_flat, k_NdC, write2_flat, strength2, decays2, momentum2, recalled2)
    writes1 = chunk_writes(W1, a_NRmC, write1, strength1, decays1, momentum1, recalled1, held1)
    return (
        Layer(W2_flat, k_NdC, writes2, decays2, momentum2),
        Layer(W1, a_NRmC, writes1, decays1, momentum1),
    )


def present(gate: Tensor | None) -> Tensor:
    """A gate that this rule needs."""
    if gate is None:
        raise TypeError("a gate that this rule needs is missing")
    return gate


def after(
    layer2: Layer, layer1: Layer, state: MemoryState, rules: Rules, origin: FastWeights | None
) -> MemoryState:
    """The memories after the piece, and where the next chunk begins."""
    W2, P2 = chunk_state(layer2.S, *layer2[1:])
    W1, P1 = chunk_state(layer1.S, *layer1[1:])
    shape = state.now.W2_NRmd.shape
    now = FastWeights(W2.view(shape), W1)
    if origin is not None:
        now = FastWeights(*(D + W for D, W in zip(now, origin, strict=True)))
    momentum = None if P1 is None or P2 is None else FastWeights(P2.view(shape), P1)
    position = state.position + layer2.key.shape[-1]
    bank, last = (
        state.start if position % chunk else now for chunk in (rules.bank_chunk or rules.chunk, rules.chunk)
    )
    start = bank
    if last is not bank:
        parts = zip(bank, last, strict=True)
        start = FastWeights(*(torch.cat((W[..., :-1, :, :], V[..., -1:, :, :]), -3) for W, V in parts))
    return MemoryState(now, start, momentum, position)


def _last(layer: Layer, rows: slice | int, decays: Decays) -> Layer:
    """The layer of the memory that is read: rows of the stack, or an index along R."""

    def take(x: Tensor) -> Tensor:
        return x[..., rows, :] if isinstance(rows, slice) else x[..., rows, :, :]

    u, w = layer.writes
    writes = Writes(take(u), None if w is None else take(w))
    momentum = layer.momentum
    if momentum is not None:
        momentum = momentum._replace(P_NVK=take(momentum.P_NVK))
    return Layer(take(layer.S), layer.key, writes, decays, momentum)


def read(
    layer2: Layer, layer1: Layer, start: FastWeights, q_NdC: Tensor, rules: Rules, origin: FastWeights | None
) -> Tensor:
    """Token-exact reads of the last memory: z_t = W2_t q_t, o_t = q_t + W1_t phi(z_t); or reads of the start."""
    if rules.read == "chunk":
        return read_last(start, q_NdC, rules)
    before = rules.read == "before"
    m = layer1.key.shape[-2]
    last2 = _last(layer2, slice(layer2.S.shape[-2] - m, None), layer2.decays)
    last1 = _last(layer1, -1, layer2.decays)
    z = chunk_read(last2.S, last2.key, last2.writes, q_NdC, last2.decays, last2.momentum, before=before)
    if origin is not None:
        z = z + origin.W2_NRmd[..., -1, :, :] @ q_NdC
    phi, _ = _activate(z, rules)
    if origin is not None:
        q_NdC = q_NdC + origin.W1_NRdm[..., -1, :, :] @ phi
    momentum1 = None
    if last1.momentum is not None and last2.momentum is not None:
        momentum1 = last2.momentum._replace(P_NVK=last1.momentum.P_NVK)
    key1 = layer1.key[..., -1, :, :]
    return q_NdC + chunk_read(last1.S, key1, last1.writes, phi, last1.decays, momentum1, before=before)


def read_last(weights: FastWeights, q_NdC: Tensor, rules: Rules) -> Tensor:
    """M(q) of the last memory at weights that stay."""
    last = FastWeights(*(W[..., -1:, :, :] for W in weights))
    return memory_forward(last, q_NdC, rules)[0][..., 0, :, :]
