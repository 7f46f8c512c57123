"""Deep memories a chunk at a time: every write and read goes through the one recurrence.

Letters: N leading dimensions (batch, heads), R memories that share keys, d head width, m hidden width,
T tokens, C tokens of one chunk. Inside a chunk tokens are the last dimension.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hope_model.observe import note
from hope_model.ops.activations import ACTIVATIONS, NEGATIVE_SLOPES, l2norm, shrink_factor, soft_clip
from hope_model.ops.deep_memory.kernels import self_modifying_kernel, titans_kernel
from hope_model.ops.deep_memory.types import FastWeights, Gates, MemoryState, Readout, Rules
from hope_model.ops.deep_memory.written_projection import written_projection
from hope_model.ops.deep_memory.written_span import written_span
from hope_model.ops.deep_memory.written_step import Bank, StepGates, written_step
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


def _write(
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
    log_a_NC, eta_NRC = _present(gates.log_a_NT), _present(gates.eta_NRT)
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
        strength1 = keep_NC[..., None, :] * _present(gates.output_NRT)
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


def _present(gate: Tensor | None) -> Tensor:
    if gate is None:
        raise TypeError("a gate that this rule needs is missing")
    return gate


def _after(
    layer2: Layer, layer1: Layer, state: MemoryState, rules: Rules, origin: FastWeights | None
) -> MemoryState:
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


def _read(
    layer2: Layer,
    layer1: Layer,
    start: FastWeights,
    q_NdC: Tensor,
    rules: Rules,
    origin: FastWeights | None,
) -> Tensor:
    """Token-exact reads of the last memory: z_t = W2_t q_t, o_t = q_t + W1_t phi(z_t); or reads of the start."""
    if rules.read == "chunk":
        return _read_last(start, q_NdC, rules)
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


def _read_last(weights: FastWeights, q_NdC: Tensor, rules: Rules) -> Tensor:
    last = FastWeights(*(W[..., -1:, :, :] for W in weights))
    return memory_forward(last, q_NdC, rules)[0][..., 0, :, :]


def _pieces(position: int, T: int, rules: Rules) -> list[int]:
    """Lengths that cut the next T tokens at every chunk's end."""
    lengths, t = [], 0
    while t < T:
        lengths.append(min(T - t, rules.to_end(position + t)))
        t += lengths[-1]
    return lengths


def _split(gates: Gates, lengths: list[int]) -> list[Gates]:
    """Cut along tokens; `split` and not slices, whose backward fills a tensor of the whole length for every piece."""
    parts = ([None] * len(lengths) if g is None else torch.split(g, lengths, -1) for g in gates)
    return [Gates(*part) for part in zip(*parts, strict=True)]


def titans_memory(
    q_NTd: Tensor,
    k_NTd: Tensor,
    v_NTd: Tensor,
    gates: Gates,
    state: MemoryState,
    rules: Rules,
    origin: FastWeights | None = None,
    *,
    written: bool = True,
) -> tuple[Tensor, MemoryState]:
    """`titans_memory_naive`, a chunk at a time; `written=False` leaves the backward to autograd."""
    q_NdT, k_NdT, v_NdT = (x.transpose(-1, -2).contiguous() for x in (q_NTd, k_NTd, v_NTd))
    written = written and _has_written_backward(rules, gates, origin) and state.momentum is not None
    kernel = titans_kernel(gates, rules, state, origin, q_NdT, k_NdT, v_NdT) if written else None
    whole_span = kernel or written_span
    outputs = []
    lengths = _spans(state.position, q_NdT.shape[-1], rules)
    inputs = (torch.split(x, lengths, -1) for x in (q_NdT, k_NdT, v_NdT))
    for q, k, v, gates_C in zip(*inputs, _split(gates, lengths), strict=True):
        span = whole_span if written and state.position % rules.chunk == 0 else _plain_span
        o, state = span(q, k, v, gates_C, state, rules, origin)
        outputs.append(o)
    return torch.cat(outputs, -1).transpose(-1, -2), state


def _spans(position: int, T: int, rules: Rules) -> list[int]:
    """Lengths of the rest of a chunk, of whole chunks, and of what is left."""
    chunk = rules.chunk
    head = min(T, -position % chunk)
    whole = (T - head) // chunk * chunk
    return [n for n in (head, whole, T - head - whole) if n]


def _plain_span(
    q_NdT: Tensor,
    k_NdT: Tensor,
    v_NdT: Tensor,
    gates: Gates,
    state: MemoryState,
    rules: Rules,
    origin: FastWeights | None,
) -> tuple[Tensor, MemoryState]:
    outputs = []
    lengths = _pieces(state.position, q_NdT.shape[-1], rules)
    inputs = (torch.split(x, lengths, -1) for x in (q_NdT, k_NdT, v_NdT))
    for q_NdC, k_NdC, v_NdC, gates_C in zip(*inputs, _split(gates, lengths), strict=True):
        layers = _write(state, k_NdC, v_NdC[..., None, :, :], gates_C, rules, origin)
        outputs.append(_read(*layers, state.start, q_NdC, rules, origin))
        state = _after(*layers, state, rules, origin)
    return torch.cat(outputs, -1), state


def self_modifying(
    x_NTd: Tensor,
    q_NTd: Tensor,
    gates: Gates,
    readout: Readout,
    state: MemoryState,
    rules: Rules,
    fixed: FastWeights | None = None,
    origin: FastWeights | None = None,
    *,
    written: bool = True,
) -> tuple[Tensor, MemoryState]:
    """`self_modifying_naive`, a chunk at a time; `written=False` leaves the backward to autograd."""
    x_NdT, q_NdT = (x.transpose(-1, -2).contiguous() for x in (x_NTd, q_NTd))
    outputs = []
    written = written and _has_written_backward(rules, gates, origin)
    written = written and rules.unit_values and gates.log_theta_NT is None and not rules.bank_chunk
    kernel = None
    if written:
        kernel = self_modifying_kernel(gates, rules, readout, state, fixed, origin, x_NdT, q_NdT)
    first = tuple(W.contiguous() for W in origin or ())
    lengths = (_spans if kernel else _pieces)(state.position, x_NdT.shape[-1], rules)
    for x_NdC, q_NdC, gates_C in zip(
        torch.split(x_NdT, lengths, -1), torch.split(q_NdT, lengths, -1), _split(gates, lengths), strict=True
    ):
        whole = state.position % rules.chunk == 0
        if kernel and whole and origin is not None:
            o, state = kernel(x_NdC, q_NdC, gates_C, readout, state, rules, fixed, origin)
        elif written and whole:
            o, state, first = _written_chunk(x_NdC, q_NdC, gates_C, readout, state, fixed, first, rules)
        else:
            o, state = _plain_chunk(x_NdC, q_NdC, gates_C, readout, state, fixed, rules, origin)
        outputs.append(o)
    return torch.cat(outputs, -1).transpose(-1, -2), state


def _has_written_backward(rules: Rules, gates: Gates, origin: FastWeights | None) -> bool:
    default = rules.stable and rules.activation in NEGATIVE_SLOPES and rules.through_writes
    default = default and rules.read == "after" and not rules.momentum_sum
    return default and not (rules.tied_gates or rules.twice) and gates.erase_NT is None and origin is not None


def _batch(W: Tensor) -> Tensor:
    return W.flatten(0, -4).contiguous()


def _plain_chunk(
    x_NdC: Tensor,
    q_NdC: Tensor,
    gates: Gates,
    readout: Readout,
    state: MemoryState,
    fixed: FastWeights | None,
    rules: Rules,
    origin: FastWeights | None,
) -> tuple[Tensor, MemoryState]:
    projecting = FastWeights(*(W[..., :4, :, :] for W in fixed or state.start))
    y = memory_forward(projecting, x_NdC, rules)[0]
    R, C = state.start.W2_NRmd.shape[-3], y.shape[-1]
    k_NdC, v_NdC = l2norm(y[..., 0, :, :], -2), y[..., 1, :, :]
    if rules.unit_values:
        v_NdC = l2norm(v_NdC, -2)
    readers_H12d = torch.stack((readout.eta_Hd, readout.alpha_Hd), 1)[:, :, None]
    raw_N2C = (readers_H12d @ y[..., 2:4, :, :])[..., 0, :]
    log_a_NC, eta_NC, eta_NRC = _gates(raw_N2C, readout, R, rules)
    both = memory_forward(state.start, torch.cat((k_NdC, v_NdC), -1), rules)
    target_NRdC = both[0][..., C:]
    if rules.stable and rules.unit_values:
        target_NRdC = l2norm(target_NRdC, -2)
    erase_NC = eta_NC if rules.tied_gates else gates.erase_NT
    output_NRC = None if gates.output_NRT is None else _by_memory(gates.output_NRT, readout, R)
    gates = Gates(log_a_NC, erase_NC, output_NRC, eta_NRC, gates.log_theta_NT)
    layers = _write(state, k_NdC, target_NRdC, gates, rules, origin, tuple(x[..., :C] for x in both))
    return _read(*layers, state.start, q_NdC, rules, origin), _after(*layers, state, rules, origin)


def _written_chunk(
    x_NdC: Tensor,
    q_NdC: Tensor,
    gates: Gates,
    readout: Readout,
    state: MemoryState,
    fixed: FastWeights | None,
    first: tuple[Tensor, ...],
    rules: Rules,
) -> tuple[Tensor, MemoryState, tuple[Tensor, ...]]:
    """`first`: the origin, flat; comes back for the next chunk."""
    shape, C = q_NdC.shape, q_NdC.shape[-1]
    W2, W1 = (_batch(W) for W in state.now)
    readers_NH2d = torch.stack((readout.eta_Hd, readout.alpha_Hd), 1).expand(*shape[:-2], 2, -1)
    readers, slope = readers_NH2d.flatten(0, -3), NEGATIVE_SLOPES[rules.activation]
    if fixed is None:
        kv, raw, W2, W1 = written_projection(W2, W1, x_NdC.flatten(0, -3), readers, slope)
    else:
        fixed2, fixed1 = (_batch(W) for W in fixed)
        kv, raw, *_ = written_projection(fixed2, fixed1, x_NdC.flatten(0, -3), readers, slope)
    log_a_NC, _, eta_NRC = _gates(raw.view(*shape[:-2], 2, C), readout, W2.shape[1], rules)
    output_NRC = log_a_NC.exp()[..., None, :] * _by_memory(_present(gates.output_NRT), readout, W2.shape[1])
    scalars = (eta_NRC, output_NRC, *chunk_decays(log_a_NC))
    flat = StepGates(*(g.flatten(0, len(shape) - 3) for g in scalars))
    o, after = written_step(Bank(W2, W1, *first), kv, q_NdC.flatten(0, -3), flat, slope)
    now = FastWeights(*(W.view(like.shape) for W, like in zip(after[:2], state.now, strict=True)))
    position = state.position + C
    start = state.start if position % rules.chunk else now
    return o.view(shape), MemoryState(now, start, None, position), after[2:]


def _gates(raw_N2C: Tensor, readout: Readout, R: int, rules: Rules) -> tuple[Tensor, Tensor, Tensor]:
    """log alpha, eta, and eta by memory, from what is read of their memories."""
    eta_NC = rules.eta_max * (raw_N2C[..., 0, :] + readout.eta_bias_H[:, None]).sigmoid()
    log_a_NC = F.logsigmoid(raw_N2C[..., 1, :] + readout.alpha_bias_H[:, None])
    note("eta", eta_NC)
    note("alpha", log_a_NC.exp())
    if readout.eta_scale_HR is None:
        return log_a_NC, eta_NC, eta_NC[..., None, :].expand(*eta_NC.shape[:-1], R, -1)
    scale_HR1 = readout.eta_scale_HR[..., -R:, None]
    return log_a_NC, eta_NC, scale_HR1 * eta_NC[..., None, :]


def _by_memory(output_NRC: Tensor, readout: Readout, R: int) -> Tensor:
    """Output strengths [N, R, C] (or [N, 1, C] where all memories share one)."""
    if readout.output_share_HR is None:
        return output_NRC.expand(*output_NRC.shape[:-2], R, -1)
    return output_NRC * readout.output_share_HR[..., -R:, None]


def read_memory(state: MemoryState, q_NTd: Tensor, rules: Rules) -> Tensor:
    """Reads of the last memory without any write."""
    return _read_last(state.now, q_NTd.transpose(-1, -2), rules).transpose(-1, -2)
