"""Titans' chunk step (one stable ReLU memory, written with momentum) with its backward written out.

Both layers are the same recurrence, so its parts stand here once, each beside its backward. A state S and its
momentum P are stacked: what reads one reads both. So are columns u (erased, decays by gamma) and w (written,
decays by c), and the two decay matrices that go with them. Derivation in this folder's README.

Letters: N sequences times heads, d head width, m hidden width, C tokens of a chunk; of one layer: K key width,
V value width. `c` is the erase strength of a layer's gate, retention included.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hope_model.ops.deep_memory.written_parts import hidden_back, inverse, masked, shrink, t


class MomentumGates(NamedTuple):
    """Scalars of one chunk; a leading dimension of chunks may come first."""

    eta_NC: Tensor
    output_NC: Tensor  # c of the output layer
    erase_NC: Tensor  # c of the hidden layer
    share_NC: Tensor  # 1 - theta: of a surprise, what enters the momentum
    shares_N2C: Tensor  # of S_0 and P_0 in S_t
    before_N2C: Tensor  # of S_0 and P_0 in S_{t-1}
    reach_N2CC: Tensor  # of u_i k_i^T and w_i k_i^T in S_t
    reach_before_N2CC: Tensor  # the same in S_{t-1}
    push_NC: Tensor  # of w_i k_i^T in P_C
    keep_N: Tensor  # of P_0 in P_C


class _Solved(NamedTuple):
    """One layer's write, as its backward needs it."""

    SP: Tensor  # [N, 2, V, K]
    recalled: Tensor  # [N, 2, V, C]: S_0 k and P_0 k
    uw: Tensor  # [N, V, 2C]
    inverse: Tensor  # [N, C, C]


def _recall(SP: Tensor, x_NKC: Tensor) -> Tensor:
    N, _, V, _ = SP.shape
    return torch.bmm(SP.flatten(1, 2), x_NKC).view(N, 2, V, -1)


def _recall_back(g: Tensor, SP: Tensor, x_NKC: Tensor, g_SP: Tensor, g_x: Tensor) -> None:
    """Add to the gradients at the states and at what they were asked for."""
    g_SP.flatten(1, 2).baddbmm_(g.flatten(1, 2), t(x_NKC))
    g_x.baddbmm_(t(SP.flatten(1, 2)), g.flatten(1, 2))


def _solve(
    SP: Tensor, key: Tensor, recalled: Tensor, w: Tensor, c_NC: Tensor, gates: MomentumGates
) -> _Solved:
    """u (I + M_0) = -(c before_0 S_0 k + c before_1 P_0 k + w M_1), M = K^T K (*) reach_before c."""
    M = (gates.reach_before_N2CC * c_NC[:, None, None]).mul_(torch.bmm(t(key), key)[:, None])
    right = torch.bmm(w, M[:, 1])
    scale = gates.before_N2C * c_NC[:, None]
    right.addcmul_(recalled[:, 0], scale[:, 0, None]).addcmul_(recalled[:, 1], scale[:, 1, None]).neg_()
    made = inverse(M[:, 0])
    return _Solved(SP, recalled, torch.cat((torch.bmm(right, made), w), -1), made)


class _SolveBack(NamedTuple):
    recalled: Tensor
    w: Tensor
    c: Tensor
    before: Tensor
    reach_before: Tensor


def _solve_back(
    g_uw: Tensor, key: Tensor, g_key: Tensor, c_NC: Tensor, kept: _Solved, gates: MomentumGates
) -> _SolveBack:
    N, C = c_NC.shape
    g_right = torch.bmm(g_uw[..., :C], t(kept.inverse)).neg_()
    g_M = torch.bmm(t(kept.uw), g_right).view(N, 2, C, C)
    gram = torch.bmm(t(key), key)
    reach = gates.reach_before_N2CC
    M1 = reach[:, 1] * gram * c_NC[:, None]
    g_w = torch.baddbmm(g_uw[..., C:], g_right, t(M1))
    felt = g_M * gram[:, None]
    by = (kept.recalled * g_right[:, None]).sum(-2)
    g_c = (felt * reach).sum((1, 2)) + (by * gates.before_N2C).sum(1)
    g_gram = g_M.mul_(reach).sum(1).mul_(c_NC[:, None])
    g_key.baddbmm_(key, g_gram + t(g_gram))
    scale = gates.before_N2C * c_NC[:, None]
    return _SolveBack(
        g_right[:, None] * scale[:, :, None], g_w, g_c, by * c_NC[:, None], felt.mul_(c_NC[:, None, None])
    )


def _read(kept: _Solved, key: Tensor, q: Tensor, gates: MomentumGates) -> tuple[Tensor, Tensor]:
    """o_t = S_t q_t, and what both states alone gave."""
    N, C = gates.eta_NC.shape
    recalled = _recall(kept.SP, q)
    reach = (gates.reach_N2CC * torch.bmm(t(key), q)[:, None]).view(N, 2 * C, C)
    shares = gates.shares_N2C[:, :, None]
    o = (recalled[:, 0] * shares[:, 0]).addcmul_(recalled[:, 1], shares[:, 1])
    return o.baddbmm_(kept.uw, reach), recalled


class _ReadBack(NamedTuple):
    q: Tensor
    key: Tensor
    SP: Tensor
    uw: Tensor
    shares: Tensor
    reach: Tensor


def _read_back(
    g_o: Tensor, recalled: Tensor, key: Tensor, q: Tensor, kept: _Solved, gates: MomentumGates
) -> _ReadBack:
    N, C = gates.eta_NC.shape
    match = torch.bmm(t(key), q)
    g_recalled = g_o[:, None] * gates.shares_N2C[:, :, None]
    g_shares = (g_o[:, None] * recalled).sum(-2)
    g_reach = torch.bmm(t(kept.uw), g_o).view(N, 2, C, C)
    g_match = (g_reach * gates.reach_N2CC).sum(1)
    reach = (gates.reach_N2CC * match[:, None]).view(N, 2 * C, C)
    flat = g_recalled.flatten(1, 2)
    g_SP = torch.bmm(flat, t(q)).view(kept.SP.shape)
    g_q = torch.bmm(t(kept.SP.flatten(1, 2)), flat).baddbmm_(key, g_match)
    return _ReadBack(
        g_q, torch.bmm(q, t(g_match)), g_SP, torch.bmm(g_o, t(reach)), g_shares, g_reach.mul_(match[:, None])
    )


def _sent(uw: Tensor, gates: MomentumGates) -> Tensor:
    """Columns that enter S and P at the chunk's end: [N, 2, V, C]."""
    C = gates.eta_NC.shape[-1]
    end = gates.reach_N2CC[..., -1]
    into_S = (uw[..., :C] * end[:, 0, None]).addcmul_(uw[..., C:], end[:, 1, None])
    return torch.stack((into_S, uw[..., C:] * gates.push_NC[:, None]), 1)


def _after(kept: _Solved, key: Tensor, gates: MomentumGates) -> Tensor:
    end = gates.shares_N2C[..., -1, None, None]
    SP = kept.SP * torch.stack((end[:, 0], gates.keep_N[:, None, None]), 1)
    SP[:, 0].addcmul_(kept.SP[:, 1], end[:, 1])
    SP.flatten(1, 2).baddbmm_(_sent(kept.uw, gates).flatten(1, 2), t(key))
    return SP


def _after_back(
    g_new: Tensor, key: Tensor, kept: _Solved, gates: MomentumGates, read: _ReadBack
) -> tuple[Tensor, Tensor]:
    """Adds to what the read sends back; returns gradients at push and keep."""
    C = gates.eta_NC.shape[-1]
    end, shares, uw = gates.reach_N2CC[..., -1], gates.shares_N2C[..., -1, None, None], kept.uw
    flat = g_new.flatten(1, 2)
    back = torch.bmm(flat, key).view(*g_new.shape[:3], C)
    read.key.baddbmm_(t(flat), _sent(uw, gates).flatten(1, 2))
    read.uw[..., :C].addcmul_(back[:, 0], end[:, 0, None])
    read.uw[..., C:].addcmul_(back[:, 0], end[:, 1, None]).addcmul_(back[:, 1], gates.push_NC[:, None])
    read.reach[:, 0, :, -1] += (back[:, 0] * uw[..., :C]).sum(-2)
    by_w = (back * uw[:, None, :, C:]).sum(-2)
    read.reach[:, 1, :, -1] += by_w[:, 0]
    read.SP[:, 0].addcmul_(g_new[:, 0], shares[:, 0])
    read.SP[:, 1].addcmul_(g_new[:, 0], shares[:, 1]).addcmul_(g_new[:, 1], gates.keep_N[:, None, None])
    read.shares[..., -1] += (g_new[:, :1] * kept.SP).sum((-2, -1))
    return by_w[:, 1], (g_new[:, 1] * kept.SP[:, 1]).sum((-2, -1))


class _Step(torch.autograd.Function):
    """Write the memory with (k, v) and read it with q, for one chunk that begins at its gradient point."""

    @staticmethod
    def forward(
        ctx: Any, SP2: Tensor, SP1: Tensor, k: Tensor, v: Tensor, q: Tensor, *scalars: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        gates = MomentumGates(*scalars)
        recalled2 = _recall(SP2, k)
        a_k, s_k = shrink(recalled2[:, 0].relu())
        recalled1 = _recall(SP1, a_k)
        aim = v - k
        back = torch.bmm(t(SP1[:, 0]), recalled1[:, 0] - aim)
        w2 = masked(back, a_k).mul_((gates.share_NC * -gates.eta_NC)[:, None] * s_k)
        w1 = aim.mul_((gates.share_NC * gates.output_NC)[:, None])
        layer2 = _solve(SP2, k, recalled2, w2, gates.erase_NC, gates)
        layer1 = _solve(SP1, a_k, recalled1, w1, gates.output_NC, gates)
        z_q, recalled_q = _read(layer2, k, q, gates)
        a_q, s_q = shrink(z_q.relu_())
        o, recalled_a = _read(layer1, a_k, a_q, gates)
        ctx.save_for_backward(
            *layer2, *layer1, k, v, q, a_k, s_k, back, recalled_q, a_q, s_q, recalled_a, *gates
        )
        return o.add_(q), _after(layer2, k, gates), _after(layer1, a_k, gates)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        g_o, g_SP2_new, g_SP1_new = grads
        saved = ctx.saved_tensors
        layer2, layer1, gates = _Solved(*saved[:4]), _Solved(*saved[4:8]), MomentumGates(*saved[18:])
        k, v, q, a_k, s_k, back, recalled_q, a_q, s_q, recalled_a = saved[8:18]
        read1 = _read_back(g_o, recalled_a, a_k, a_q, layer1, gates)
        g_z_q = hidden_back(read1.q, a_q, s_q)
        read2 = _read_back(g_z_q, recalled_q, k, q, layer2, gates)
        g_push, g_keep = (
            x + y
            for x, y in zip(
                _after_back(g_SP1_new, a_k, layer1, gates, read1),
                _after_back(g_SP2_new, k, layer2, gates, read2),
                strict=True,
            )
        )
        g_k, g_a_k = read2.key, read1.key
        solve1 = _solve_back(read1.uw, a_k, g_a_k, gates.output_NC, layer1, gates)
        solve2 = _solve_back(read2.uw, k, g_k, gates.erase_NC, layer2, gates)
        # w1 = share c (v - k); w2 = -share eta s mask W1^T e, e = W1 a - (v - k)
        aim = v - k
        by_aim = (solve1.w * aim).sum(-2)
        g_share, g_output = gates.output_NC * by_aim, solve1.c + gates.share_NC * by_aim
        g_back = masked(solve2.w, a_k)
        felt = (g_back * back).sum(-2) * -s_k[:, 0]
        g_share += gates.eta_NC * felt
        g_eta = gates.share_NC * felt
        rate = (gates.share_NC * -gates.eta_NC)[:, None]
        g_s = rate * (g_back * back).sum(-2, keepdim=True)
        g_back.mul_(rate * s_k)
        error = layer1.recalled[:, 0] - aim
        read1.SP[:, 0] += torch.bmm(error, t(g_back))
        g_error = torch.bmm(layer1.SP[:, 0], g_back)
        solve1.recalled[:, 0] += g_error
        g_aim = solve1.w.mul_((gates.share_NC * gates.output_NC)[:, None]).sub_(g_error)
        g_k -= g_aim
        _recall_back(solve1.recalled, layer1.SP, a_k, read1.SP, g_a_k)
        solve2.recalled[:, 0] += hidden_back(g_a_k, a_k, s_k, g_s)
        _recall_back(solve2.recalled, layer2.SP, k, read2.SP, g_k)
        return (
            read2.SP, read1.SP, g_k, g_aim, g_o + read2.q, g_eta, g_output, solve2.c, g_share,
            read1.shares + read2.shares, solve1.before + solve2.before, read1.reach + read2.reach,
            solve1.reach_before + solve2.reach_before, g_push, g_keep,
        )  # fmt: skip


_step: Callable[..., Any] = _Step.apply


def written_momentum_step(
    SP2_N2md: Tensor, SP1_N2dm: Tensor, k_NdC: Tensor, v_NdC: Tensor, q_NdC: Tensor, gates: MomentumGates
) -> tuple[Tensor, Tensor, Tensor]:
    """Reads o_NdC, and both layers' weights and momenta after the chunk."""
    o, SP2, SP1 = _step(SP2_N2md, SP1_N2dm, k_NdC, v_NdC, q_NdC, *gates)
    return o, SP2, SP1
