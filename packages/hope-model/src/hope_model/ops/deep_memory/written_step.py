"""The chunk step of stable ReLU memories with its backward written out; same contract as `chunk.py`.

Autograd would keep and re-read some forty intermediate tensors a chunk. Here a dozen are kept, the rest is
recomputed from them, and every product accumulates where it is needed. Keys and values go through both layers side
by side: each weight is read once. The derivation is in this folder's README; `g_x` is the gradient at x.

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
    masked,
    normalise,
    normalise_back,
    shrink,
    t,
)


class StepGates(NamedTuple):
    """Scalars of one chunk, decays included (see `gated_delta.chunk.Decays`)."""

    eta_NRC: Tensor
    output_NRC: Tensor  # b of the output layer
    erase_NC: Tensor  # b of the hidden layer
    gamma_NC: Tensor
    before_NC: Tensor
    within_NCC: Tensor
    between_NCC: Tensor


class _Kept(NamedTuple):
    """What the forward of a chunk leaves for its backward, beside the gates; `kv`: keys, then values."""

    W2: Tensor
    W1: Tensor
    kv: Tensor
    q: Tensor
    u2: Tensor
    u1: Tensor
    a_q: Tensor
    s_q: Tensor


class _Hidden(NamedTuple):
    """What the chunk's first weights make of keys and values: made anew for the backward, kept it would fill memory."""

    z_k: Tensor
    a_kv: Tensor
    s_kv: Tensor
    recalled1: Tensor
    target: Tensor
    inverse: Tensor
    back: Tensor


def _hidden(W2: Tensor, W1: Tensor, kv: Tensor) -> _Hidden:
    N, R, m, d = W2.shape
    C = kv.shape[-1] // 2
    z = torch.bmm(W2.view(N, R * m, d), kv).view(N * R, m, 2 * C)
    a_kv, s_kv = shrink(z.relu())
    y = torch.bmm(W1.view(N * R, d, m), a_kv).view(N, R, d, 2 * C)
    # Targets M(v) / ||M(v)||; aim = target - k; error at the chunk's start = recalled1 - aim.
    recalled1 = y[..., :C].contiguous()
    target = y[..., C:] + kv[:, None, :, C:]
    inverse_norm = normalise(target)
    error = (recalled1 - target).add_(kv[:, None, :, :C])
    back = torch.bmm(t(W1.view(N * R, d, m)), error.view(N * R, d, C))
    return _Hidden(z[..., :C].contiguous(), a_kv, s_kv, recalled1, target, inverse_norm, back)


class _Step(torch.autograd.Function):
    """Write R memories with (k, v) and read the last with q, for one chunk that begins at its gradient point."""

    @staticmethod
    def forward(
        ctx: Any, W2: Tensor, W1: Tensor, kv: Tensor, q: Tensor, *scalars: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        gates = StepGates(*scalars)
        N, R, m, d = W2.shape
        C = q.shape[-1]
        k = kv[..., :C]
        z_k, a_kv, s_kv, recalled1, target, _, back = _hidden(W2, W1, kv)
        a_k, aim = a_kv[..., :C], target.sub_(k[:, None])
        c1, c2 = gates.output_NRC[:, :, None], gates.erase_NC[:, None]
        before = gates.before_NC[:, None]
        r2 = masked(back, a_k).mul_((-gates.eta_NRC).view(N * R, 1, C) * s_kv[..., :C]).view(N, R * m, C)
        r2.addcmul_(z_k.view(N, R * m, C), -c2 * before)
        r1 = aim.addcmul_(recalled1, before[:, None], value=-1).mul_(c1)
        gram1, gram2 = torch.bmm(t(a_k), a_k).view(N, R, C, C), t(k) @ k
        inverse2 = inverse(gram2.mul_(gates.between_NCC * c2))
        inverse1 = inverse(
            gram1.mul_(gates.between_NCC[:, None] * gates.output_NRC[:, :, None]).view(N * R, C, C)
        )
        u2, u1 = torch.bmm(r2, inverse2), torch.bmm(r1.view(N * R, d, C), inverse1)
        end, keep = gates.within_NCC[..., -1], gates.gamma_NC[:, -1, None, None]
        W2_new = (keep * W2.view(N, R * m, d)).baddbmm_(u2 * end[:, None], t(k))
        W1_new = (keep[:, None] * W1).view(N * R, d, m)
        W1_new.baddbmm_((u1.view(N, R, d, C) * end[:, None, None]).view(N * R, d, C), t(a_k))
        o, a_q, s_q = _read(
            W2[:, -1], W1[:, -1], kv, q, a_k.view(N, R, m, C)[:, -1], u2, u1.view(N, R, d, C), gates
        )
        kept = _Kept(W2, W1, kv, q, u2, u1, a_q, s_q)
        ctx.save_for_backward(*kept, *gates)
        return o, W2_new.view(W2.shape), W1_new.view(W1.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        saved, (g_o, g_W2, g_W1) = ctx.saved_tensors, grads
        return _step_back(g_o, g_W2, g_W1, _Kept(*saved[:-7]), StepGates(*saved[-7:]))


def _read(
    W2: Tensor, W1: Tensor, kv: Tensor, q: Tensor, a_k: Tensor, u2: Tensor, u1: Tensor, gates: StepGates
) -> tuple[Tensor, Tensor, Tensor]:
    """Token-exact reads of the last memory."""
    m, gamma = W2.shape[-2], gates.gamma_NC[:, None]
    match = torch.bmm(t(kv[..., : q.shape[-1]]), q).mul_(gates.within_NCC)
    z = torch.bmm(W2, q).mul_(gamma).baddbmm_(u2[:, -m:], match)
    a_q, s_q = shrink(z.relu_())
    match = torch.bmm(t(a_k), a_q).mul_(gates.within_NCC)
    return torch.bmm(W1, a_q).mul_(gamma).add_(q).baddbmm_(u1[:, -1], match), a_q, s_q


class _ReadBack(NamedTuple):
    """What the read sends back to the write."""

    W2: Tensor
    W1: Tensor
    u2: Tensor
    u1: Tensor
    a_k: Tensor
    k: Tensor
    q: Tensor
    gamma: Tensor
    within: Tensor


def _read_back(g_o: Tensor, kept: _Kept, a_kv: Tensor, gates: StepGates) -> _ReadBack:
    N, R, m, _ = kept.W2.shape
    q, a_q, W2, W1 = kept.q, kept.a_q, kept.W2[:, -1], kept.W1[:, -1]
    C = q.shape[-1]
    k, a_k = kept.kv[..., :C], a_kv.view(N, R, m, 2 * C)[:, -1, :, :C]
    u1, u2, gamma, within = (
        kept.u1.view(N, R, -1, C)[:, -1],
        kept.u2[:, -m:],
        gates.gamma_NC[:, None],
        gates.within_NCC,
    )
    match_o = torch.bmm(t(a_k), a_q)
    g_state = g_o * gamma
    g_gamma = (g_o * torch.bmm(W1, a_q)).sum(-2)
    g_match = torch.bmm(t(u1), g_o)
    g_within = g_match * match_o
    g_match.mul_(within)
    g_a_q = torch.bmm(t(W1), g_state).baddbmm_(a_k, g_match)
    g_a_k, g_W1 = torch.bmm(a_q, t(g_match)), torch.bmm(g_state, t(a_q))
    g_u1 = torch.bmm(g_o, t(match_o.mul_(within)))
    g_z = hidden_back(g_a_q, a_q, kept.s_q)
    match_z = torch.bmm(t(k), q)
    g_gamma += (g_z * torch.bmm(W2, q)).sum(-2)
    g_state = g_z * gamma
    g_match = torch.bmm(t(u2), g_z)
    g_within.addcmul_(g_match, match_z)
    g_match.mul_(within)
    g_q = torch.baddbmm(g_o, t(W2), g_state).baddbmm_(k, g_match)
    g_k, g_u2 = torch.bmm(q, t(g_match)), torch.bmm(g_z, t(match_z.mul_(within)))
    return _ReadBack(torch.bmm(g_state, t(q)), g_W1, g_u2, g_u1, g_a_k, g_k, g_q, g_gamma, g_within)


class _SystemsBack(NamedTuple):
    output: Tensor
    erase: Tensor
    between: Tensor


def _systems_back(
    g_u2: Tensor, g_u1: Tensor, kept: _Kept, a_k: Tensor, gates: StepGates, g_a_k: Tensor, g_k: Tensor
) -> tuple[Tensor, Tensor, _SystemsBack]:
    """Gradients at both right-hand sides, and through both matrices I + L; adds to those at a_k and k."""
    N, C = gates.gamma_NC.shape
    k, between = kept.kv[..., :C], gates.between_NCC
    output, erase = gates.output_NRC[:, :, None], gates.erase_NC[:, None]
    gram1, gram2 = torch.bmm(t(a_k), a_k).view(N, -1, C, C), torch.bmm(t(k), k)
    scale1, scale2 = between[:, None] * output, between * erase
    g_r1 = torch.bmm(g_u1, t(inverse((gram1 * scale1).view(-1, C, C))))
    g_r2 = torch.bmm(g_u2, t(inverse(gram2 * scale2)))
    # u (I + L) = r, so g_L = -u^T g_r; the sign is carried to the end.
    g_L1, g_L2 = torch.bmm(t(kept.u1), g_r1).view(gram1.shape), torch.bmm(t(kept.u2), g_r2)
    felt1, felt2 = gram1.mul_(g_L1), gram2.mul_(g_L2)
    g_gram1, g_gram2 = g_L1.mul_(scale1).flatten(0, 1), g_L2.mul_(scale2)
    g_a_k.baddbmm_(a_k, g_gram1 + t(g_gram1), alpha=-1)
    g_k.baddbmm_(k, g_gram2 + t(g_gram2), alpha=-1)
    g_output = (felt1 * between[:, None]).sum(-2).neg_()
    g_between = felt1.mul_(output).sum(1).addcmul_(felt2, erase).neg_()
    return (
        g_r2,
        g_r1,
        _SystemsBack(g_output, (felt2 * between).sum(-2).neg_(), g_between),
    )


def _state_back(
    g_W2_new: Tensor, g_W1_new: Tensor, kept: _Kept, a_k: Tensor, gates: StepGates, read: _ReadBack
) -> tuple[Tensor, ...]:
    """W2' = keep W2 + (u2 end) k^T, W1' = keep W1 + (u1 end) a^T; joined with what the read sends."""
    N, R, m, d = kept.W2.shape
    C = kept.q.shape[-1]
    u2, u1, k = kept.u2, kept.u1.view(N, R, d, C), kept.kv[..., :C]
    end = gates.within_NCC[..., -1]
    flat2, flat1 = g_W2_new.view(N, R * m, d), g_W1_new.view(N * R, d, m)
    g_keep = dot(g_W2_new, kept.W2) + dot(g_W1_new, kept.W1)
    g_u2, g_u1 = torch.bmm(flat2, k), torch.bmm(flat1, a_k).view(N, R, d, C)
    g_end = (g_u2 * u2).sum(-2) + (g_u1 * u1).sum((-3, -2))
    g_u2, g_u1 = g_u2.mul_(end[:, None]), g_u1.mul_(end[:, None, None])
    g_u2[:, -m:] += read.u2
    g_u1[:, -1] += read.u1
    g_k = read.k.baddbmm_(t(flat2), u2 * end[:, None])
    g_a_k = torch.bmm(t(flat1), (u1 * end[:, None, None]).view(N * R, d, C))
    g_a_k.view(N, R, m, C)[:, -1] += read.a_k
    return g_u2, g_u1.view(N * R, d, C), g_k, g_a_k, g_keep, g_end


def _step_back(
    g_o: Tensor, g_W2_new: Tensor, g_W1_new: Tensor, kept: _Kept, gates: StepGates
) -> tuple[Tensor, ...]:
    W2, W1, kv, q, *_ = kept
    z_k, a_kv, s_kv, recalled1, target, inverse_norm, back = _hidden(W2, W1, kv)
    N, R, m, d = W2.shape
    C = q.shape[-1]
    k, a_k, s_k = kv[..., :C], a_kv[..., :C], s_kv[..., :C]
    read = _read_back(g_o, kept, a_kv, gates)
    keep = gates.gamma_NC[:, -1, None, None, None]
    c1, c2 = gates.output_NRC[:, :, None], gates.erase_NC[:, None]
    before = gates.before_NC[:, None]
    g_u2, g_u1, g_k, g_a_k, g_keep, g_end = _state_back(g_W2_new, g_W1_new, kept, a_k, gates, read)
    g_r2, g_r1, (g_output, g_erase, g_between) = _systems_back(g_u2, g_u1, kept, a_k, gates, g_a_k, g_k)
    g_r1 = g_r1.view(N, R, d, C)
    # Right-hand sides: r1 = c1 (aim - before recalled1), r2 = w2 - z_k c2 before, w2 = -eta s mask back
    aim = target - k[:, None]
    by_recalled = (g_r1 * recalled1).sum(-2)
    g_output += (g_r1 * aim).sum(-2) - gates.before_NC[:, None] * by_recalled
    by_z = (g_r2 * z_k.view(N, R * m, C)).sum(-2)
    g_before = -(gates.output_NRC * by_recalled).sum(1) - gates.erase_NC * by_z
    g_erase -= gates.before_NC * by_z
    g_back = masked(g_r2.view(N * R, m, C), a_k)
    felt = (g_back * back).sum(-2, keepdim=True)
    minus_eta = -gates.eta_NRC.view(N * R, 1, C)
    g_eta, g_s = -s_k * felt, minus_eta * felt
    g_back.mul_(minus_eta * s_k)
    # back = W1^T e, e = recalled1 - aim
    flat1 = W1.view(N * R, d, m)
    g_error = torch.bmm(flat1, g_back).view(N, R, d, C)
    g_r1.mul_(c1)
    g_y = q.new_empty(N, R, d, 2 * C)
    torch.addcmul(g_error, g_r1, before[:, None], value=-1, out=g_y[..., :C])  # at recalled1
    g_aim = g_r1.sub_(g_error)
    g_k -= g_aim.sum(1)
    g_h = normalise_back(g_aim, target, inverse_norm)  # target = h inverse, h = v + W1 a_v
    g_y[..., C:] = g_h
    flat_y = g_y.view(N * R, d, 2 * C)
    g_W1 = torch.bmm((recalled1 - aim).view(N * R, d, C), t(g_back)).baddbmm_(flat_y, t(a_kv)).view(W1.shape)
    g_W1.addcmul_(g_W1_new, keep)
    g_W1[:, -1] += read.W1
    g_a = torch.bmm(t(flat1), flat_y)
    g_a[..., :C] += g_a_k
    g_z = hidden_back(g_a, a_kv, s_kv, g_s).view(N, R * m, 2 * C)
    g_z[..., :C].addcmul_(g_r2, -c2 * before)
    g_W2 = (keep[:, 0] * g_W2_new.view(N, R * m, d)).baddbmm_(g_z, t(kv)).view(W2.shape)
    g_W2[:, -1] += read.W2
    g_kv = torch.bmm(t(W2.view(N, R * m, d)), g_z)
    g_kv[..., :C] += g_k
    g_kv[..., C:] += g_h.sum(1)
    read.gamma[:, -1] += g_keep
    read.within[..., -1] += g_end
    return (
        g_W2, g_W1, g_kv, read.q, g_eta.view(N, R, C), g_output, g_erase, read.gamma, g_before, read.within, g_between
    )  # fmt: skip


_step: Callable[..., Any] = _Step.apply


def written_step(
    W2: Tensor, W1: Tensor, kv_Nd2C: Tensor, q_NdC: Tensor, gates: StepGates
) -> tuple[Tensor, Tensor, Tensor]:
    """Reads o_NdC and the weights after the chunk."""
    o, W2_new, W1_new = _step(W2, W1, kv_Nd2C, q_NdC, *gates)
    return o, W2_new, W1_new
