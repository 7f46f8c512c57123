"""What self-modifying Titans' memories make of a chunk: keys, values and gates, with the backward written out.

Letters: N sequences times heads, R memories, d head width, m hidden width, C tokens of a chunk.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hope_model.ops.deep_memory.written_parts import hidden_back, normalise, normalise_back, shrink, t


class Projection(NamedTuple):
    """Of one chunk. The weights go through, so that their gradient is summed in place and not by autograd."""

    kv_Nd2C: Tensor  # keys, then values, of norm 1
    raw_N2C: Tensor  # r . M(x) of the eta and the alpha memory
    W2_NRmd: Tensor
    W1_NRdm: Tensor


def _hidden(W2: Tensor, x_NdC: Tensor, slope: float) -> tuple[Tensor, Tensor]:
    N, _, m, _ = W2.shape
    return shrink(torch.bmm(W2.flatten(1, 2)[:, : 4 * m], x_NdC).view(N, 4, m, -1), slope)


class _Project(torch.autograd.Function):
    """The first four memories of BANK; of the last two only the scalar that is read from them is computed."""

    @staticmethod
    def forward(
        ctx: Any, slope: float, W2: Tensor, W1: Tensor, x_NdC: Tensor, r_N2d: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        a, _ = _hidden(W2, x_NdC, slope)
        kv = torch.cat([torch.baddbmm(x_NdC, W1[:, n], a[:, n]) for n in (0, 1)], -1)
        inverse = normalise(kv)
        c_N2m = torch.cat([torch.bmm(r_N2d[:, n, None], W1[:, 2 + n]) for n in (0, 1)], 1)
        raw = torch.bmm(r_N2d, x_NdC)
        raw += torch.cat([torch.bmm(c_N2m[:, n, None], a[:, 2 + n]) for n in (0, 1)], 1)
        ctx.slope = slope
        ctx.save_for_backward(W2, W1, x_NdC, r_N2d, kv, inverse, c_N2m)
        return kv, raw, W2.view_as(W2), W1.view_as(W1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # The last two come from the chunk's step, their only reader: they are ours to add to.
        g_kv, g_raw, g_W2, g_W1 = grads
        W2, W1, x, r, kv, inverse, c = ctx.saved_tensors
        a, s = _hidden(W2, x, ctx.slope)
        N, _, m, _ = W2.shape
        g_kv = normalise_back(g_kv, kv, inverse)
        g_x = torch.baddbmm(torch.add(*g_kv.chunk(2, -1)), t(r), g_raw)
        g_a, g_r = torch.empty_like(a), torch.bmm(g_raw, t(x))
        for n, g_y in enumerate(g_kv.chunk(2, -1)):
            torch.bmm(t(W1[:, n]), g_y, out=g_a[:, n])
            g_W1[:, n] += torch.bmm(g_y, t(a[:, n]))  # baddbmm_ loops over N where its target has gaps
            g_p, W1_n, a_n = g_raw[:, n, None], W1[:, 2 + n], a[:, 2 + n]
            torch.mul(c[:, n, :, None], g_p, out=g_a[:, 2 + n])
            g_c = torch.bmm(g_p, t(a_n))
            g_W1[:, 2 + n].addcmul_(r[:, n, :, None], g_c)
            g_r[:, n, None] += torch.bmm(g_c, t(W1_n))
        g_z = hidden_back(g_a, a, s, ctx.slope).view(N, 4 * m, -1)
        g_W2.flatten(1, 2)[:, : 4 * m] += torch.bmm(g_z, t(x))
        g_x.baddbmm_(t(W2.flatten(1, 2)[:, : 4 * m]), g_z)
        return None, g_W2, g_W1, g_x, g_r


_project: Callable[..., Any] = _Project.apply


def written_projection(W2: Tensor, W1: Tensor, x_NdC: Tensor, r_N2d: Tensor, slope: float) -> Projection:
    """Keys, values and raw gates that the memories make of x, and the weights to go on with.

    `slope`: of the activation below zero.
    """
    return Projection(*_project(slope, W2, W1, x_NdC, r_N2d))
