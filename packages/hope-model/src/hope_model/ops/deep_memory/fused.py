"""The chunk step of stable ReLU memories with its backward written out; same contract as `chunk.py`.

Autograd would keep and re-read some forty intermediate tensors a chunk. Here a dozen are kept, the rest is
recomputed from them, and every product accumulates where it is needed. The derivation is in this folder's README;
`g_x` is the gradient of the loss with respect to x.

Letters: N sequences times heads, R memories that share keys, d head width, m hidden width, C tokens of a chunk.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class StepGates(NamedTuple):
    """Scalars of one chunk, decays included (see `gated_delta.chunk.Decays`)."""

    eta_NRC: Tensor
    output_NC: Tensor  # b of the output layer
    erase_NC: Tensor  # b of the hidden layer
    gamma_NC: Tensor
    before_NC: Tensor
    within_NCC: Tensor
    between_NCC: Tensor


def _pre(W2_NRmd: Tensor, x_NdC: Tensor) -> Tensor:
    N, R, m, d = W2_NRmd.shape
    return torch.bmm(W2_NRmd.view(N, R * m, d), x_NdC).view(N, R, m, -1)


def _shrink(a: Tensor) -> tuple[Tensor, Tensor]:
    """Shrunk activation and its factor, from a = relu(z), consumed: a s with s = 1/sqrt(1 + ||a||^2)."""
    s = a.square().sum(-2, keepdim=True).add_(1).rsqrt_()
    return a.mul_(s), s


def _masked(x: Tensor, a: Tensor) -> Tensor:
    """x where the unit is active: ReLU's own backward is eight times as fast as a product with a Boolean mask."""
    y: Tensor = torch.ops.aten.threshold_backward(x, a, 0)
    return y


def _hidden_back(g_a: Tensor, a: Tensor, s: Tensor, g_s: Tensor | None = None) -> Tensor:
    """Gradient at z from the gradients at a (consumed) and at s."""
    pull = (g_a * a).sum(-2, keepdim=True)
    if g_s is not None:
        pull.addcmul_(s, g_s)
    return _masked(g_a.addcmul_(a, pull, value=-1).mul_(s), a)


class _Forward(torch.autograd.Function):
    """y = x + W1 a(W2 x) for R memories and the same x."""

    @staticmethod
    def forward(ctx: Any, W2: Tensor, W1: Tensor, x_NdC: Tensor) -> Tensor:
        a, s = _shrink(_pre(W2, x_NdC).relu_())
        ctx.save_for_backward(W2, W1, x_NdC, a, s)
        y: Tensor = (W1 @ a).add_(x_NdC[:, None])
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (g_y,) = grads
        W2, W1, x_NdC, a, s = ctx.saved_tensors
        N, R, m, d = W2.shape
        g_z = _hidden_back(W1.transpose(-1, -2) @ g_y, a, s).view(N, R * m, -1)
        g_W2 = torch.bmm(g_z, x_NdC.transpose(-1, -2)).view(W2.shape)
        g_x = torch.baddbmm(g_y.sum(1), W2.view(N, R * m, d).transpose(-1, -2), g_z)
        return g_W2, g_y @ a.transpose(-1, -2), g_x


class _Kept(NamedTuple):
    """What the forward of a chunk leaves for its backward, beside the gates."""

    W2: Tensor
    W1: Tensor
    k: Tensor
    v: Tensor
    q: Tensor
    z_k: Tensor
    a_k: Tensor
    s_k: Tensor
    a_v: Tensor
    s_v: Tensor
    recalled1: Tensor
    t: Tensor
    inverse: Tensor
    back: Tensor
    u2: Tensor
    u1: Tensor
    inverse2: Tensor
    inverse1: Tensor
    a_q: Tensor
    s_q: Tensor


class _Step(torch.autograd.Function):
    """Write R memories with (k, v) and read the last with q, for one chunk that begins at its gradient point."""

    @staticmethod
    def forward(
        ctx: Any, W2: Tensor, W1: Tensor, k_NdC: Tensor, v_NdC: Tensor, q_NdC: Tensor, *scalars: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        gates = StepGates(*scalars)
        N, R, m, d = W2.shape
        C = k_NdC.shape[-1]
        k_NCd = k_NdC.transpose(-1, -2)
        z_k = _pre(W2, k_NdC)
        a_k, s_k = _shrink(z_k.relu())
        a_v, s_v = _shrink(_pre(W2, v_NdC).relu_())
        recalled1 = W1 @ a_k
        # Targets M(v) / ||M(v)||; aim = target - k; error at the chunk's start = recalled1 - aim.
        t = (W1 @ a_v).add_(v_NdC[:, None])
        inverse = t.square().sum(-2, keepdim=True).add_(1e-6).rsqrt_()
        aim = t.mul_(inverse) - k_NdC[:, None]
        back = W1.transpose(-1, -2) @ (recalled1 - aim)
        c1, c2 = gates.output_NC[:, None, None], gates.erase_NC[:, None]
        before = gates.before_NC[:, None]
        r2 = _masked(back, a_k).mul_(-gates.eta_NRC[:, :, None] * s_k).view(N, R * m, C)
        r2.addcmul_(z_k.view(N, R * m, C), -c2 * before)
        r1 = aim.addcmul_(recalled1, before[:, None], value=-1).mul_(c1)
        gram1, gram2 = a_k.transpose(-1, -2) @ a_k, k_NCd @ k_NdC
        inverse2 = _inverse(gram2.mul_(gates.between_NCC * c2))
        inverse1 = _inverse(gram1.mul_((gates.between_NCC * gates.output_NC[:, None])[:, None]).flatten(0, 1))
        u2 = r2 @ inverse2
        u1 = torch.bmm(r1.flatten(0, 1), inverse1).view(r1.shape)
        end, keep = gates.within_NCC[..., -1], gates.gamma_NC[:, -1, None, None]
        W2_new = torch.baddbmm(keep * W2.view(N, R * m, d), u2 * end[:, None], k_NCd)
        W1_new = (keep[:, None] * W1).view(N * R, d, m)
        W1_new.baddbmm_((u1 * end[:, None, None]).view(N * R, d, C), a_k.view(N * R, m, C).transpose(-1, -2))
        gamma = gates.gamma_NC[:, None]
        match = (k_NCd @ q_NdC).mul_(gates.within_NCC)
        a_q, s_q = _shrink(torch.baddbmm((W2[:, -1] @ q_NdC).mul_(gamma), u2[:, -m:], match).relu_())
        match = (a_k[:, -1].transpose(-1, -2) @ a_q).mul_(gates.within_NCC)
        o = torch.baddbmm((W1[:, -1] @ a_q).mul_(gamma).add_(q_NdC), u1[:, -1], match)
        inverse1 = inverse1.view(gram1.shape)
        kept = (
            W2,
            W1,
            k_NdC,
            v_NdC,
            q_NdC,
            z_k,
            a_k,
            s_k,
            a_v,
            s_v,
            recalled1,
            t,
            inverse,
            back,
            u2,
            u1,
            inverse2,
            inverse1,
            a_q,
            s_q,
        )
        ctx.save_for_backward(*kept, *gates)
        return o, W2_new.view(W2.shape), W1_new.view(W1.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        g_o, g_W2, g_W1 = grads
        return _step_back(g_o, g_W2, g_W1, _Kept(*saved[:-7]), StepGates(*saved[-7:]))


def _inverse(L_NCC: Tensor) -> Tensor:
    """(I + L)^-1 of strictly upper triangular L, by halves: forward and backward then need products only."""
    N, C, _ = L_NCC.shape
    if C <= 32:
        eye = torch.eye(C, dtype=L_NCC.dtype, device=L_NCC.device).expand(N, C, C)
        small: Tensor = torch.linalg.solve_triangular(L_NCC, eye, upper=True, left=False, unitriangular=True)
        return small
    h = C // 2
    first, last, corner = L_NCC[:, :h, :h], L_NCC[:, h:, h:], L_NCC[:, :h, h:]
    if C % 2:
        first, last = _inverse(first), _inverse(last)
    else:
        first, last = _inverse(torch.cat((first, last))).chunk(2)
    whole = torch.zeros_like(L_NCC)
    whole[:, :h, :h], whole[:, h:, h:] = first, last
    whole[:, :h, h:] = (first @ corner @ last).neg_()
    return whole


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


def _read_back(g_o: Tensor, kept: _Kept, gates: StepGates) -> _ReadBack:
    m = kept.a_q.shape[-2]
    k, q, a_q, a_k, W2, W1 = kept.k, kept.q, kept.a_q, kept.a_k[:, -1], kept.W2[:, -1], kept.W1[:, -1]
    u1, u2, gamma, within = kept.u1[:, -1], kept.u2[:, -m:], gates.gamma_NC[:, None], gates.within_NCC
    match_o = a_k.transpose(-1, -2) @ a_q
    g_state = g_o * gamma
    g_gamma = (g_o * (W1 @ a_q)).sum(-2)
    g_match = u1.transpose(-1, -2) @ g_o
    g_within = g_match * match_o
    g_match.mul_(within)
    g_a_q = torch.baddbmm(W1.transpose(-1, -2) @ g_state, a_k, g_match)
    g_a_k, g_W1 = a_q @ g_match.transpose(-1, -2), g_state @ a_q.transpose(-1, -2)
    g_u1 = g_o @ (match_o * within).transpose(-1, -2)
    g_z = _hidden_back(g_a_q, a_q, kept.s_q)
    match_z = k.transpose(-1, -2) @ q
    g_gamma += (g_z * (W2 @ q)).sum(-2)
    g_state = g_z * gamma
    g_match = u2.transpose(-1, -2) @ g_z
    g_within.addcmul_(g_match, match_z)
    g_match.mul_(within)
    g_q = torch.baddbmm(g_o, W2.transpose(-1, -2), g_state).baddbmm_(k, g_match)
    g_k, g_u2 = q @ g_match.transpose(-1, -2), g_z @ (match_z * within).transpose(-1, -2)
    return _ReadBack(g_state @ q.transpose(-1, -2), g_W1, g_u2, g_u1, g_a_k, g_k, g_q, g_gamma, g_within)


class _SystemsBack(NamedTuple):
    output: Tensor
    erase: Tensor
    between: Tensor
    a_k: Tensor
    k: Tensor


def _systems_back(
    g_u2: Tensor, g_u1: Tensor, kept: _Kept, gates: StepGates
) -> tuple[Tensor, Tensor, _SystemsBack]:
    """Gradients at both right-hand sides, and through both matrices I + L."""
    k, a_k, between = kept.k, kept.a_k, gates.between_NCC
    output, erase = gates.output_NC[:, None], gates.erase_NC[:, None]
    gram1, gram2 = a_k.transpose(-1, -2) @ a_k, k.transpose(-1, -2) @ k
    scale1, scale2 = between * output, between * erase
    g_r1, g_r2 = g_u1 @ kept.inverse1.transpose(-1, -2), g_u2 @ kept.inverse2.transpose(-1, -2)
    # u (I + L) = r, so g_L = -u^T g_r; the sign is carried to the end.
    g_L1, g_L2 = kept.u1.transpose(-1, -2) @ g_r1, kept.u2.transpose(-1, -2) @ g_r2
    felt1, felt2 = (g_L1 * gram1).sum(1), g_L2 * gram2
    g_gram1, g_gram2 = g_L1.mul_(scale1[:, None]), g_L2.mul_(scale2)
    return (
        g_r2,
        g_r1,
        _SystemsBack(
            (felt1 * between).sum(-2).neg_(),
            (felt2 * between).sum(-2).neg_(),
            (felt1 * output).addcmul_(felt2, erase).neg_(),
            (a_k @ (g_gram1 + g_gram1.transpose(-1, -2))).neg_(),
            (k @ (g_gram2 + g_gram2.transpose(-1, -2))).neg_(),
        ),
    )


def _state_back(
    g_W2_new: Tensor, g_W1_new: Tensor, kept: _Kept, gates: StepGates, read: _ReadBack
) -> tuple[Tensor, ...]:
    """W2' = keep W2 + (u2 end) k^T, W1' = keep W1 + (u1 end) a^T; joined with what the read sends."""
    u2, u1, m = kept.u2, kept.u1, kept.W2.shape[2]
    end = gates.within_NCC[..., -1]
    flat2 = g_W2_new.flatten(1, 2)
    g_keep = _dot(g_W2_new, kept.W2) + _dot(g_W1_new, kept.W1)
    g_u2, g_u1 = flat2 @ kept.k, g_W1_new @ kept.a_k
    g_end = (g_u2 * u2).sum(-2) + (g_u1 * u1).sum((-3, -2))
    g_u2, g_u1 = g_u2.mul_(end[:, None]), g_u1.mul_(end[:, None, None])
    g_u2[:, -m:] += read.u2
    g_u1[:, -1] += read.u1
    g_k = torch.baddbmm(read.k, flat2.transpose(-1, -2), u2 * end[:, None])
    g_a_k = g_W1_new.transpose(-1, -2) @ (u1 * end[:, None, None])
    g_a_k[:, -1] += read.a_k
    return g_u2, g_u1, g_k, g_a_k, g_keep, g_end


def _step_back(
    g_o: Tensor, g_W2_new: Tensor, g_W1_new: Tensor, kept: _Kept, gates: StepGates
) -> tuple[Tensor, ...]:
    W2, W1, k, v, q, z_k, a_k, s_k, a_v, s_v, recalled1, t, inverse, back, *_ = kept
    N, R, m, d = W2.shape
    C = q.shape[-1]
    read = _read_back(g_o, kept, gates)
    keep = gates.gamma_NC[:, -1, None, None, None]
    c1, c2 = gates.output_NC[:, None, None], gates.erase_NC[:, None]
    before = gates.before_NC[:, None]
    g_u2, g_u1, g_k, g_a_k, g_keep, g_end = _state_back(g_W2_new, g_W1_new, kept, gates, read)
    g_r2, g_r1, systems = _systems_back(g_u2, g_u1, kept, gates)
    g_output, g_erase, g_between = systems.output, systems.erase, systems.between
    g_a_k += systems.a_k
    g_k += systems.k
    # Right-hand sides: r1 = c1 (aim - before recalled1), r2 = w2 - z_k c2 before, w2 = -eta s mask back
    aim = t - k[:, None]
    by_recalled = (g_r1 * recalled1).sum((-3, -2))
    g_output += (g_r1 * aim).sum((-3, -2)) - gates.before_NC * by_recalled
    by_z = (g_r2 * z_k.view(N, R * m, C)).sum(-2)
    g_before = -gates.output_NC * by_recalled - gates.erase_NC * by_z
    g_erase -= gates.before_NC * by_z
    g_z_k = g_r2 * (-c2 * before)
    g_back = _masked(g_r2.view(N, R, m, C), a_k)
    felt = (g_back * back).sum(-2)
    g_eta, g_s = -s_k[:, :, 0] * felt, -gates.eta_NRC * felt
    g_back.mul_(-gates.eta_NRC[:, :, None] * s_k)
    # back = W1^T e, e = recalled1 - aim
    error = recalled1 - aim
    g_W1 = error @ g_back.transpose(-1, -2)
    g_error = W1 @ g_back
    g_r1 = g_r1.mul_(c1)
    g_recalled1 = g_error.addcmul(g_r1, before[:, None], value=-1)
    g_aim = g_r1.sub_(g_error)
    g_k -= g_aim.sum(1)
    # t = h inverse, h = v + W1 a_v
    g_h = torch.addcmul(g_aim, t, (g_aim * t).sum(-2, keepdim=True), value=-1).mul_(inverse)
    g_W1 = _add_products(g_W1, (g_recalled1, a_k), (g_h, a_v)).addcmul_(g_W1_new, keep)
    g_W1[:, -1] += read.W1
    g_a_k += W1.transpose(-1, -2) @ g_recalled1
    g_z_v = _hidden_back(W1.transpose(-1, -2) @ g_h, a_v, s_v).view(N, R * m, C)
    g_z_k += _hidden_back(g_a_k, a_k, s_k, g_s[:, :, None]).view(N, R * m, C)
    g_W2 = (
        (keep[:, 0] * g_W2_new.flatten(1, 2))
        .baddbmm_(g_z_k, k.transpose(-1, -2))
        .baddbmm_(g_z_v, v.transpose(-1, -2))
    )
    g_W2 = g_W2.view(W2.shape)
    g_W2[:, -1] += read.W2
    W2_back = W2.view(N, R * m, d).transpose(-1, -2)
    g_k, g_v = torch.baddbmm(g_k, W2_back, g_z_k), torch.baddbmm(g_h.sum(1), W2_back, g_z_v)
    g_gamma, g_within = read.gamma, read.within
    g_gamma[:, -1] += g_keep
    g_within[..., -1] += g_end
    return g_W2, g_W1, g_k, g_v, read.q, g_eta, g_output, g_erase, g_gamma, g_before, g_within, g_between


def _add_products(total: Tensor, *pairs: tuple[Tensor, Tensor]) -> Tensor:
    """Add x y^T of every pair to `total` in place; all have leading dimensions N, R."""
    flat = total.flatten(0, 1)
    for x, y in pairs:
        flat.baddbmm_(x.flatten(0, 1), y.flatten(0, 1).transpose(-1, -2))
    return total


def _dot(x: Tensor, y: Tensor) -> Tensor:
    """Inner product per leading index, without a temporary."""
    N = len(x)
    return torch.bmm(x.reshape(N, 1, -1), y.reshape(N, -1, 1)).view(N)


def fused_forward(W2: Tensor, W1: Tensor, x_NdC: Tensor) -> Tensor:
    """y_NRdC = M(x) of R memories."""
    y: Tensor = _forward(W2, W1, x_NdC)
    return y


def fused_step(
    W2: Tensor, W1: Tensor, k_NdC: Tensor, v_NdC: Tensor, q_NdC: Tensor, gates: StepGates
) -> tuple[Tensor, Tensor, Tensor]:
    """Reads o_NdC and the weights after the chunk."""
    o, W2_new, W1_new = _step(W2, W1, k_NdC, v_NdC, q_NdC, *gates)
    return o, W2_new, W1_new


_forward: Callable[..., Any] = _Forward.apply
_step: Callable[..., Any] = _Step.apply
