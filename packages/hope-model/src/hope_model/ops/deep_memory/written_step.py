"""The chunk step of stable memories with (leaky) ReLU with its backward written out; same contract as `chunk.py`.

Retention pulls to the first weights O; the hidden layer erases nothing, so its writes need no solve. Autograd would
keep and re-read some forty intermediate tensors a chunk. Here a dozen are kept, the rest is made anew from them, and
every product accumulates where it is needed. Keys and values go through both layers side by side: each weight is read
once. The derivation is in this folder's README; `g_x` is the gradient at x.

Letters: N sequences times heads, R memories that share keys, d head width, m hidden width, C tokens of a chunk.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hope_model.ops.deep_memory.written_parts import (
    dot,
    hidden_back,
    inverse,
    normalise,
    normalise_back,
    shrink,
    soft_clip,
    soft_clip_back,
    t,
)


class StepGates(NamedTuple):
    """Scalars of one chunk, decays included (see `gated_delta.chunk.Decays`)."""

    eta_NRC: Tensor
    output_NRC: Tensor  # b of the output layer
    gamma_NC: Tensor
    before_NC: Tensor
    within_NCC: Tensor
    between_NCC: Tensor


class Bank(NamedTuple):
    """Weights at the chunk's start and the first weights. Firsts go through, so that their gradient sums in place.

    Outside, firsts are one copy for the batch; a step spreads them while it runs, so that no copy outlives it.
    """

    W2_NRmd: Tensor
    W1_NRdm: Tensor
    first2_NRmd: Tensor  # outside [H, R, m, d]
    first1_NRdm: Tensor  # outside [H, R, d, m]

    def spread(self) -> "Bank":
        """Firsts for every sequence."""
        times = len(self.W2_NRmd) // len(self.first2_NRmd)
        return Bank(*self[:2], *(W.expand(times, *W.shape).flatten(0, 1).contiguous() for W in self[2:]))


class _Kept(NamedTuple):
    """What the forward of a chunk leaves for its backward, beside bank and gates; `kv`: keys, then values."""

    kv: Tensor
    q: Tensor
    u2: Tensor
    u1: Tensor
    a_q: Tensor
    s_q: Tensor


class _Hidden(NamedTuple):
    """What the chunk's weights make of keys and values: made anew for the backward, kept it would fill memory."""

    a_kv: Tensor
    s_kv: Tensor
    recalled: Tensor  # W1 a_k
    moved: Tensor  # (W1 - O1) a_k
    target: Tensor
    inverse: Tensor
    back: Tensor


def _hidden(bank: Bank, kv: Tensor, slope: float) -> _Hidden:
    W2, W1, _, O1 = bank
    N, R, m, d = W2.shape
    C = kv.shape[-1] // 2
    a_kv, s_kv = shrink(torch.bmm(W2.view(N, R * m, d), kv).view(N * R, m, 2 * C), slope)
    y = torch.bmm(W1.view(N * R, d, m), a_kv).view(N, R, d, 2 * C)
    first = torch.bmm(O1.view(N * R, d, m), a_kv[..., :C]).view(N, R, d, C)
    # Targets M(v) / ||M(v)||; aim = target - k; error at the chunk's start = recalled - aim.
    recalled = y[..., :C].contiguous()
    target = y[..., C:] + kv[:, None, :, C:]
    inverse_norm = normalise(target)
    error = (recalled - target).add_(kv[:, None, :, :C])
    back = torch.bmm(t(W1.view(N * R, d, m)), error.view(N * R, d, C))
    return _Hidden(a_kv, s_kv, recalled, torch.sub(recalled, first, out=first), target, inverse_norm, back)


class _Step(torch.autograd.Function):
    """Write R memories with (k, v) and read the last with q, for one chunk that begins at its gradient point."""

    @staticmethod
    def forward(ctx: Any, slope: float, *args: Tensor) -> tuple[Tensor, ...]:
        given, (kv, q), gates = Bank(*args[:4]), args[4:6], StepGates(*args[6:])
        bank = given.spread()
        N, R, m, d = bank.W2_NRmd.shape
        C = q.shape[-1]
        k = kv[..., :C]
        a_kv, s_kv, recalled, moved, target, _, back = _hidden(bank, kv, slope)
        a_k, aim = a_kv[..., :C], target.sub_(k[:, None])
        inner, _ = soft_clip(back, a_k, s_kv[..., :C], slope)
        u2 = inner.mul_((-gates.eta_NRC).view(N * R, 1, C)).view(N, R * m, C)
        # recalled - (1 - before) moved: what the output layer would hold, had nothing been written since the start.
        aim.sub_(recalled).add_(moved.mul_(1 - gates.before_NC[:, None, None]))
        r1 = aim.mul_(gates.output_NRC[:, :, None]).view(N * R, d, C)
        gram = torch.bmm(t(a_k), a_k).view(N, R, C, C)
        gram.mul_(gates.between_NCC[:, None] * gates.output_NRC[:, :, None])
        u1 = torch.bmm(r1, inverse(gram.view(N * R, C, C))).view(N, R, d, C)
        end, keep = gates.within_NCC[..., -1], gates.gamma_NC[:, -1, None, None, None]
        W2_new = torch.lerp(bank.first2_NRmd, bank.W2_NRmd, keep)
        W1_new = torch.lerp(bank.first1_NRdm, bank.W1_NRdm, keep)
        W2_new.view(N, R * m, d).baddbmm_(u2 * end[:, None], t(k))
        W1_new.view(N * R, d, m).baddbmm_((u1 * end[:, None, None]).view(N * R, d, C), t(a_k))
        o, a_q, s_q = _read(bank, kv, q, a_k.view(N, R, m, C)[:, -1], u2, u1, gates, slope)
        ctx.slope = slope
        ctx.save_for_backward(*given, kv, q, u2, u1, a_q, s_q, *gates)
        return o, W2_new, W1_new, *(W.view_as(W) for W in given[2:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # The last two come from the next chunk's step, their only reader: they are ours to add to.
        saved, (g_o, *g_bank) = ctx.saved_tensors, grads
        bank, kept = Bank(*saved[:4]).spread(), _Kept(*saved[4:-6])
        return None, *_step_back(g_o, Bank(*g_bank), bank, kept, StepGates(*saved[-6:]), ctx.slope)


def _read(
    bank: Bank, kv: Tensor, q: Tensor, a_k: Tensor, u2: Tensor, u1: Tensor, gates: StepGates, slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Token-exact reads of the last memory."""
    W2, W1, O2, O1 = (W[:, -1] for W in bank)
    m, gamma = W2.shape[-2], gates.gamma_NC[:, None]
    match = torch.bmm(t(kv[..., : q.shape[-1]]), q).mul_(gates.within_NCC)
    z = torch.bmm(O2, q).lerp_(torch.bmm(W2, q), gamma).baddbmm_(u2[:, -m:], match)
    a_q, s_q = shrink(z, slope)
    match = torch.bmm(t(a_k), a_q).mul_(gates.within_NCC)
    o = torch.bmm(O1, a_q).lerp_(torch.bmm(W1, a_q), gamma)
    return o.add_(q).baddbmm_(u1[:, -1], match), a_q, s_q


class _ReadBack(NamedTuple):
    """What the read sends back to the write."""

    bank: Bank  # of the last memory
    u2: Tensor
    u1: Tensor
    a_k: Tensor
    k: Tensor
    q: Tensor
    gamma: Tensor
    within: Tensor


def _state_read_back(
    g: Tensor, x: Tensor, W: Tensor, first: Tensor, gates: StepGates
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of gamma W x + (1 - gamma) O x at x, W, O and gamma."""
    moved, g_state = W - first, g * gates.gamma_NC[:, None]
    g_x = torch.bmm(t(first), g).baddbmm_(t(moved), g_state)
    g_W = torch.bmm(g_state, t(x))
    return g_x, g_W, torch.bmm(g, t(x)).sub_(g_W), (g * torch.bmm(moved, x)).sum(-2)


def _read_back(
    g_o: Tensor, bank: Bank, kept: _Kept, a_kv: Tensor, gates: StepGates, slope: float
) -> _ReadBack:
    N, R, m, _ = bank.W2_NRmd.shape
    q, a_q, (W2, W1, O2, O1) = kept.q, kept.a_q, (W[:, -1] for W in bank)
    C = q.shape[-1]
    k, a_k = kept.kv[..., :C], a_kv.view(N, R, m, 2 * C)[:, -1, :, :C]
    u1, u2, within = kept.u1[:, -1], kept.u2[:, -m:], gates.within_NCC
    g_a_q, g_W1, g_O1, g_gamma = _state_read_back(g_o, a_q, W1, O1, gates)
    match = torch.bmm(t(a_k), a_q)
    g_match = torch.bmm(t(u1), g_o)
    g_within = g_match * match
    g_match.mul_(within)
    g_a_q.baddbmm_(a_k, g_match)
    g_a_k, g_u1 = torch.bmm(a_q, t(g_match)), torch.bmm(g_o, t(match.mul_(within)))
    g_z = hidden_back(g_a_q, a_q, kept.s_q, slope)
    g_q, g_W2, g_O2, by_z = _state_read_back(g_z, q, W2, O2, gates)
    match = torch.bmm(t(k), q)
    g_match = torch.bmm(t(u2), g_z)
    g_within.addcmul_(g_match, match)
    g_match.mul_(within)
    g_q.add_(g_o).baddbmm_(k, g_match)
    g_k, g_u2 = torch.bmm(q, t(g_match)), torch.bmm(g_z, t(match.mul_(within)))
    return _ReadBack(Bank(g_W2, g_W1, g_O2, g_O1), g_u2, g_u1, g_a_k, g_k, g_q, g_gamma.add_(by_z), g_within)


def _system_back(
    g_u1: Tensor, u1: Tensor, a_k: Tensor, gates: StepGates, g_a_k: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients at the output layer's right-hand side, at b and `between`; adds to that at a_k."""
    N, C = gates.gamma_NC.shape
    between, output = gates.between_NCC[:, None], gates.output_NRC[:, :, None]
    gram = torch.bmm(t(a_k), a_k).view(N, -1, C, C)
    scale = between * output
    g_r1 = torch.bmm(g_u1, t(inverse((gram * scale).view(-1, C, C))))
    # u (I + L) = r, so g_L = -u^T g_r; the sign is carried to the end.
    g_L = torch.bmm(t(u1.flatten(0, 1)), g_r1).view(gram.shape)
    felt = gram.mul_(g_L)
    g_gram = g_L.mul_(scale).flatten(0, 1)
    g_a_k.baddbmm_(a_k, g_gram + t(g_gram), alpha=-1)
    g_output = (felt * between).sum(-2).neg_()
    return g_r1, g_output, felt.mul_(output).sum(1).neg_()


def _state_back(
    g: Bank, bank: Bank, kept: _Kept, a_k: Tensor, gates: StepGates, read: _ReadBack
) -> tuple[Tensor, ...]:
    """W' = keep W + (1 - keep) O + (u end) k^T of both layers; joined with what the read sends.

    Returns gradients at W2, W1, O2, O1 (per sequence), u2, u1, k and a_k.
    """
    N, R, m, d = bank.W2_NRmd.shape
    C = kept.q.shape[-1]
    u2, u1, k = kept.u2, kept.u1, kept.kv[..., :C]
    end, keep = gates.within_NCC[..., -1], gates.gamma_NC[:, -1, None, None, None]
    flat2, flat1 = g.W2_NRmd.view(N, R * m, d), g.W1_NRdm.view(N * R, d, m)
    g_keep = dot(g.W2_NRmd, bank.W2_NRmd - bank.first2_NRmd) + dot(g.W1_NRdm, bank.W1_NRdm - bank.first1_NRdm)
    g_W2, g_W1 = g.W2_NRmd * keep, g.W1_NRdm * keep
    g_O2, g_O1 = g.W2_NRmd - g_W2, g.W1_NRdm - g_W1
    g_O2[:, -1] += read.bank.first2_NRmd
    g_O1[:, -1] += read.bank.first1_NRdm
    g_u2, g_u1 = torch.bmm(flat2, k), torch.bmm(flat1, a_k).view(N, R, d, C)
    g_end = (g_u2 * u2).sum(-2) + (g_u1 * u1).sum((-3, -2))
    g_u2, g_u1 = g_u2.mul_(end[:, None]), g_u1.mul_(end[:, None, None])
    g_u2[:, -m:] += read.u2
    g_u1[:, -1] += read.u1
    g_k = read.k.baddbmm_(t(flat2), u2 * end[:, None])
    g_a_k = torch.bmm(t(flat1), (u1 * end[:, None, None]).view(N * R, d, C))
    g_a_k.view(N, R, m, C)[:, -1] += read.a_k
    read.gamma[:, -1] += g_keep
    read.within[..., -1] += g_end
    return g_W2, g_W1, g_O2, g_O1, g_u2, g_u1.view(N * R, d, C), g_k, g_a_k


def _step_back(
    g_o: Tensor, g: Bank, bank: Bank, kept: _Kept, gates: StepGates, slope: float
) -> tuple[Tensor, ...]:
    a_kv, s_kv, recalled, moved, target, inverse_norm, back = _hidden(bank, kept.kv, slope)
    N, R, m, d = bank.W2_NRmd.shape
    C = kept.q.shape[-1]
    k, a_k, s_k = kept.kv[..., :C], a_kv[..., :C], s_kv[..., :C]
    read = _read_back(g_o, bank, kept, a_kv, gates, slope)
    g_W2, g_W1, g_O2, g_O1, g_u2, g_u1, g_k, g_a_k = _state_back(g, bank, kept, a_k, gates, read)
    g_r1, g_output, g_between = _system_back(g_u1, kept.u1, a_k, gates, g_a_k)
    # r1 = b (-e + (1 - before) moved), e = recalled - aim, moved = recalled - O1 a_k
    g_r1 = g_r1.view(N, R, d, C)
    error, gone = recalled.sub_(target).add_(k[:, None]), 1 - gates.before_NC[:, None, None]
    by_moved = (g_r1 * moved).sum(-2)
    g_output += by_moved * gone[:, 0] - (g_r1 * error).sum(-2)
    g_before = -(gates.output_NRC * by_moved).sum(1)
    g_r1.mul_(gates.output_NRC[:, :, None])
    g_moved = g_r1 * gone
    g_first = g_moved.view(N * R, d, C)
    g_O1.view(N * R, d, m).baddbmm_(g_first, t(a_k), alpha=-1)
    for g_first_HR, g_O in zip(g[2:], (g_O2, g_O1), strict=True):
        g_first_HR += g_O.view(-1, *g_first_HR.shape).sum(0)
    g_a_k.baddbmm_(t(bank.first1_NRdm.view(N * R, d, m)), g_first, alpha=-1)
    # u2 = -eta soft_clip(s slope back), back = W1^T e
    inner, r = soft_clip(back, a_k, s_k, slope)
    minus_eta = -gates.eta_NRC.view(N * R, 1, C)
    g_back, g_s, g_minus_eta = soft_clip_back(g_u2.view(N * R, m, C), inner, r, a_k, s_k, slope, minus_eta)
    flat1 = bank.W1_NRdm.view(N * R, d, m)
    g_aim = g_r1.sub_(torch.bmm(flat1, g_back).view(N, R, d, C))  # minus the gradient at e
    g_k -= g_aim.sum(1)
    g_recalled = g_moved.sub_(g_aim)
    g_h = normalise_back(g_aim, target, inverse_norm)  # target = h inverse, h = v + W1 a_v
    flat_y = torch.cat((g_recalled, g_h), -1).view(N * R, d, 2 * C)
    g_W1.view(N * R, d, m).baddbmm_(error.view(N * R, d, C), t(g_back)).baddbmm_(flat_y, t(a_kv))
    g_W1[:, -1] += read.bank.W1_NRdm
    g_a = torch.bmm(t(flat1), flat_y)
    g_a[..., :C] += g_a_k
    g_z = hidden_back(g_a, a_kv, s_kv, slope, g_s).view(N, R * m, 2 * C)
    g_W2.view(N, R * m, d).baddbmm_(g_z, t(kept.kv))
    g_W2[:, -1] += read.bank.W2_NRmd
    g_kv = torch.bmm(t(bank.W2_NRmd.view(N, R * m, d)), g_z)
    g_kv[..., :C] += g_k
    g_kv[..., C:] += g_h.sum(1)
    return (
        g_W2, g_W1, *g[2:], g_kv, read.q,
        -g_minus_eta.view(N, R, C), g_output, read.gamma, g_before, read.within, g_between,
    )  # fmt: skip


_step: Callable[..., Any] = _Step.apply


def written_step(
    bank: Bank, kv_Nd2C: Tensor, q_NdC: Tensor, gates: StepGates, slope: float
) -> tuple[Tensor, Bank]:
    """Reads o_NdC and the bank after the chunk; `slope`: of the activation below zero."""
    o, *after = _step(slope, *bank, kv_Nd2C, q_NdC, *gates)
    return o, Bank(*after)
