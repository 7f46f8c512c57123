"""Deep memories a chunk at a time: tokens are cut where chunks end, each piece takes the fastest step that it may.

Letters: N leading dimensions (batch, heads), R memories that share keys, d head width, m hidden width,
T tokens, C tokens of one chunk. Inside a chunk tokens are the last dimension.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hope_model.observe import note
from hope_model.ops.activations import NEGATIVE_SLOPES, l2norm
from hope_model.ops.deep_memory.chunk_step import after, memory_forward, present, read, read_last, write
from hope_model.ops.deep_memory.kernels import self_modifying_kernel, titans_kernel
from hope_model.ops.deep_memory.types import FastWeights, Gates, MemoryState, Readout, Rules
from hope_model.ops.deep_memory.written_projection import written_projection
from hope_model.ops.deep_memory.written_span import written_span
from hope_model.ops.deep_memory.written_step import Bank, StepGates, written_step
from hope_model.ops.gated_delta.chunk import chunk_decays


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
        layers = write(state, k_NdC, v_NdC[..., None, :, :], gates_C, rules, origin)
        outputs.append(read(*layers, state.start, q_NdC, rules, origin))
        state = after(*layers, state, rules, origin)
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
    layers = write(state, k_NdC, target_NRdC, gates, rules, origin, tuple(x[..., :C] for x in both))
    return read(*layers, state.start, q_NdC, rules, origin), after(*layers, state, rules, origin)


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
    output_NRC = log_a_NC.exp()[..., None, :] * _by_memory(present(gates.output_NRT), readout, W2.shape[1])
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
    return read_last(state.now, q_NTd.transpose(-1, -2), rules).transpose(-1, -2)
