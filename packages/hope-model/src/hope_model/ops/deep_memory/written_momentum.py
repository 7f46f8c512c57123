"""Titans' chunk step (one stable memory with (leaky) ReLU, written with momentum) with its backward written out.

Both layers are the same recurrence, so its parts stand here once, each beside its backward. A state S and its
momentum P are stacked: what reads one reads both; so are S and the first weights O, to which retention pulls. Columns w
(written, decaying by c) are all that the hidden layer sends; the output layer also sends u (erased, decaying by gamma),
stacked before them, and so are the decay matrices that go with them. Derivation in this folder's README.

Letters: N sequences times heads, d head width, m hidden width, C tokens of a chunk; of one layer: K key width,
V value width, J kinds of columns. `c` is the erase strength of the output layer's gate, retention included.
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
    shrink,
    soft_clip,
    soft_clip_back,
    t,
)


class MomentumGates(NamedTuple):
    """Scalars of one chunk; a leading dimension of chunks may come first."""

    eta_NC: Tensor
    output_NC: Tensor  # c
    share_NC: Tensor  # 1 - theta: of a surprise, what enters the momentum
    shares_N3C: Tensor  # of S_0, P_0 and O in S_t
    before_N3C: Tensor  # of S_0, P_0 and O in S_{t-1}
    reach_N2CC: Tensor  # of u_i k_i^T and w_i k_i^T in S_t
    reach_before_N2CC: Tensor  # the same in S_{t-1}
    push_NC: Tensor  # of w_i k_i^T in P_C
    keep_N: Tensor  # of P_0 in P_C


class _Layer(NamedTuple):
    """One layer in one chunk."""

    SPO: Tensor  # [N, 3, V, K]
    key: Tensor  # [N, K, C]
    columns: Tensor  # [N, V, J C]


def _recall(SPO: Tensor, x_NKC: Tensor) -> Tensor:
    """What S, P and O give: [N, 3, V, C]."""
    N, n, V, _ = SPO.shape
    return torch.bmm(SPO.flatten(1, 2), x_NKC).view(N, n, V, -1)


def _weighed(recalled_N3VC: Tensor, shares_N3C: Tensor) -> Tensor:
    """Sum over S, P and O."""
    shares = shares_N3C[:, :, None]
    total = recalled_N3VC[:, 0] * shares[:, 0]
    return total.addcmul_(recalled_N3VC[:, 1], shares[:, 1]).addcmul_(recalled_N3VC[:, 2], shares[:, 2])


def _reach(gates: MomentumGates, layer: _Layer) -> Tensor:
    """[N, J, C, C]."""
    C = layer.key.shape[-1]
    return gates.reach_N2CC[:, -(layer.columns.shape[-1] // C) :]


def _solve(key: Tensor, recalled: Tensor, w: Tensor, gates: MomentumGates) -> tuple[Tensor, Tensor]:
    """u (I + M_0) = -(c (S, P and O)_{t-1} k + w M_1), M = K^T K (*) reach_before c; and the inverse."""
    c = gates.output_NC[:, None]
    M = (gates.reach_before_N2CC * c[:, None]).mul_(torch.bmm(t(key), key)[:, None])
    right = torch.bmm(w, M[:, 1]).addcmul_(_weighed(recalled, gates.before_N3C), c).neg_()
    inverted = inverse(M[:, 0])
    return torch.cat((torch.bmm(right, inverted), w), -1), inverted


class _SolveBack(NamedTuple):
    recalled: Tensor
    w: Tensor
    c: Tensor
    before: Tensor
    reach_before: Tensor


def _solve_back(
    g_uw: Tensor, layer: _Layer, recalled: Tensor, inverted: Tensor, g_key: Tensor, gates: MomentumGates
) -> _SolveBack:
    N, _, C = layer.key.shape
    c, reach = gates.output_NC[:, None], gates.reach_before_N2CC
    g_right = torch.bmm(g_uw[..., :C], t(inverted)).neg_()
    g_M = torch.bmm(t(layer.columns), g_right).view(N, 2, C, C)
    gram = torch.bmm(t(layer.key), layer.key)
    g_w = torch.baddbmm(g_uw[..., C:], g_right, t(reach[:, 1] * gram * c))
    felt = g_M * gram[:, None]
    by = (recalled * g_right[:, None]).sum(-2)
    g_c = (felt * reach).sum((1, 2)) + (by * gates.before_N3C).sum(1)
    g_gram = g_M.mul_(reach).sum(1).mul_(c)
    g_key.baddbmm_(layer.key, g_gram + t(g_gram))
    g_recalled = g_right[:, None] * (gates.before_N3C * c)[:, :, None]
    return _SolveBack(g_recalled, g_w, g_c, by * c, felt.mul_(c[:, None]))


def _read(layer: _Layer, q: Tensor, gates: MomentumGates) -> Tensor:
    """o_t = S_t q_t."""
    N, _, C = q.shape
    reach = (_reach(gates, layer) * torch.bmm(t(layer.key), q)[:, None]).view(N, -1, C)
    return _weighed(_recall(layer.SPO, q), gates.shares_N3C).baddbmm_(layer.columns, reach)


class _ReadBack(NamedTuple):
    q: Tensor
    key: Tensor
    SPO: Tensor
    columns: Tensor
    shares: Tensor
    reach: Tensor  # [N, 2, C, C]


def _read_back(g_o: Tensor, q: Tensor, layer: _Layer, gates: MomentumGates) -> _ReadBack:
    N, _, C = q.shape
    match, decay = torch.bmm(t(layer.key), q), _reach(gates, layer)
    J = decay.shape[1]
    g_recalled = g_o[:, None] * gates.shares_N3C[:, :, None]
    g_shares = (g_o[:, None] * _recall(layer.SPO, q)).sum(-2)
    g_decay = torch.bmm(t(layer.columns), g_o).view(N, J, C, C)
    g_match = (g_decay * decay).sum(1)
    reach = (decay * match[:, None]).view(N, J * C, C)
    flat = g_recalled.flatten(1, 2)
    g_SPO = torch.bmm(flat, t(q)).view(layer.SPO.shape)
    g_q = torch.bmm(t(layer.SPO.flatten(1, 2)), flat).baddbmm_(layer.key, g_match)
    g_reach = g_o.new_zeros(N, 2, C, C)
    torch.mul(g_decay, match[:, None], out=g_reach[:, -J:])
    return _ReadBack(g_q, torch.bmm(q, t(g_match)), g_SPO, torch.bmm(g_o, t(reach)), g_shares, g_reach)


def _sent(layer: _Layer, gates: MomentumGates) -> Tensor:
    """Columns that enter S and P at the chunk's end: [N, 2, V, C]."""
    C = layer.key.shape[-1]
    end, w = _reach(gates, layer)[..., -1], layer.columns[..., -C:]
    into_S = w * end[:, -1, None]
    if len(end[0]) == 2:
        into_S.addcmul_(layer.columns[..., :C], end[:, 0, None])
    return torch.stack((into_S, w * gates.push_NC[:, None]), 1)


def _after(layer: _Layer, gates: MomentumGates) -> Tensor:
    """S, P and O for the next chunk."""
    end, SPO = gates.shares_N3C[..., -1, None, None], layer.SPO
    new = SPO.clone()
    torch.mul(SPO[:, 0], end[:, 0], out=new[:, 0])
    new[:, 0].addcmul_(SPO[:, 1], end[:, 1]).addcmul_(SPO[:, 2], end[:, 2])
    new[:, 1].mul_(gates.keep_N[:, None, None])
    sent = torch.bmm(_sent(layer, gates).flatten(1, 2), t(layer.key))
    new[:, :2] += sent.view(new[:, :2].shape)
    return new


def _after_back(g_new: Tensor, layer: _Layer, gates: MomentumGates, read: _ReadBack) -> tuple[Tensor, Tensor]:
    """Adds to what the read sends back; returns gradients at push and keep."""
    C = layer.key.shape[-1]
    end, shares, columns = _reach(gates, layer)[..., -1], gates.shares_N3C[..., -1, None, None], layer.columns
    flat = g_new[:, :2].flatten(1, 2)
    back = torch.bmm(flat, layer.key).view(-1, 2, *columns.shape[1:-1], C)
    read.key.baddbmm_(t(flat), _sent(layer, gates).flatten(1, 2))
    for j in range(end.shape[1]):
        kind = slice(j * C, (j + 1) * C)
        read.columns[..., kind].addcmul_(back[:, 0], end[:, j, None])
        read.reach[:, j - end.shape[1], :, -1] += (back[:, 0] * columns[..., kind]).sum(-2)
    read.columns[..., -C:].addcmul_(back[:, 1], gates.push_NC[:, None])
    g_push = (back[:, 1] * columns[..., -C:]).sum(-2)
    read.SPO.addcmul_(g_new[:, :1], shares)
    read.SPO[:, 1].addcmul_(g_new[:, 1], gates.keep_N[:, None, None])
    read.SPO[:, 2] += g_new[:, 2]
    read.shares[..., -1] += (g_new[:, :1] * layer.SPO).sum((-2, -1))
    return g_push, dot(g_new[:, 1], layer.SPO[:, 1])


class _Step(torch.autograd.Function):
    """Write the memory with (k, v) and read it with q, for one chunk that begins at its gradient point."""

    @staticmethod
    def forward(
        ctx: Any, slope: float, SPO2: Tensor, SPO1: Tensor, k: Tensor, v: Tensor, q: Tensor, *scalars: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        gates = MomentumGates(*scalars)
        a_k, s_k = shrink(torch.bmm(SPO2[:, 0], k), slope)
        recalled = _recall(SPO1, a_k)
        aim = v - k
        back = torch.bmm(t(SPO1[:, 0]), recalled[:, 0] - aim)
        inner, _ = soft_clip(back, a_k, s_k, slope)
        w2 = inner.mul_((gates.share_NC * -gates.eta_NC)[:, None])
        w1 = aim.mul_((gates.share_NC * gates.output_NC)[:, None])
        uw, inverted = _solve(a_k, recalled, w1, gates)
        layer2, layer1 = _Layer(SPO2, k, w2), _Layer(SPO1, a_k, uw)
        a_q, s_q = shrink(_read(layer2, q, gates), slope)
        o = _read(layer1, a_q, gates).add_(q)
        ctx.slope = slope
        ctx.save_for_backward(*layer2, *layer1, inverted, v, q, s_k, a_q, s_q, *gates)
        return o, _after(layer2, gates), _after(layer1, gates)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        g_o, g_SPO2_new, g_SPO1_new = grads
        saved = ctx.saved_tensors
        layer2, layer1, gates = _Layer(*saved[:3]), _Layer(*saved[3:6]), MomentumGates(*saved[12:])
        inverted, v, q, s_k, a_q, s_q = saved[6:12]
        k, a_k = layer2.key, layer1.key
        read1 = _read_back(g_o, a_q, layer1, gates)
        read2 = _read_back(hidden_back(read1.q, a_q, s_q, ctx.slope), q, layer2, gates)
        g_push, g_keep = (
            x + y
            for x, y in zip(
                _after_back(g_SPO1_new, layer1, gates, read1),
                _after_back(g_SPO2_new, layer2, gates, read2),
                strict=True,
            )
        )
        g_k, g_a_k, g_w2 = read2.key, read1.key, read2.columns
        recalled = _recall(layer1.SPO, a_k)
        solve = _solve_back(read1.columns, layer1, recalled, inverted, g_a_k, gates)
        # w1 = share c (v - k); w2 = -share eta soft_clip(s slope W1^T e), e = W1 a - (v - k)
        aim = v - k
        by_aim = (solve.w * aim).sum(-2)
        g_share, g_output = gates.output_NC * by_aim, solve.c + gates.share_NC * by_aim
        error = recalled[:, 0] - aim
        rate = (gates.share_NC * -gates.eta_NC)[:, None]
        inner, r = soft_clip(torch.bmm(t(layer1.SPO[:, 0]), error), a_k, s_k, ctx.slope)
        g_back, g_s, g_rate = soft_clip_back(g_w2, inner, r, a_k, s_k, ctx.slope, rate)
        g_share -= gates.eta_NC * g_rate[:, 0]
        g_eta = -gates.share_NC * g_rate[:, 0]
        read1.SPO[:, 0] += torch.bmm(error, t(g_back))
        g_error = torch.bmm(layer1.SPO[:, 0], g_back)
        solve.recalled[:, 0] += g_error
        g_aim = solve.w.mul_((gates.share_NC * gates.output_NC)[:, None]).sub_(g_error)
        g_k -= g_aim
        flat = solve.recalled.flatten(1, 2)
        read1.SPO.flatten(1, 2).baddbmm_(flat, t(a_k))
        g_a_k.baddbmm_(t(layer1.SPO.flatten(1, 2)), flat)
        g_z = hidden_back(g_a_k, a_k, s_k, ctx.slope, g_s)
        read2.SPO[:, 0] += torch.bmm(g_z, t(k))
        g_k.baddbmm_(t(layer2.SPO[:, 0]), g_z)
        return (
            None, read2.SPO, read1.SPO, g_k, g_aim, g_o + read2.q, g_eta, g_output, g_share,
            read1.shares + read2.shares, solve.before, read1.reach + read2.reach, solve.reach_before, g_push, g_keep,
        )  # fmt: skip


_step: Callable[..., Any] = _Step.apply


def written_momentum_step(
    SPO2_N3md: Tensor,
    SPO1_N3dm: Tensor,
    k_NdC: Tensor,
    v_NdC: Tensor,
    q_NdC: Tensor,
    gates: MomentumGates,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Reads o_NdC, and both layers' weights, momenta and first weights after the chunk; see `written_step`."""
    o, SPO2, SPO1 = _step(slope, SPO2_N3md, SPO1_N3dm, k_NdC, v_NdC, q_NdC, *gates)
    return o, SPO2, SPO1
