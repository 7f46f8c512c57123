"""Pieces of the chunk steps whose backward is written out.

Letters: N sequences times heads, R memories that share keys, d head width, m hidden width, C tokens of a chunk.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hope_model.ops.activations import SOFTENING


def shrink(z: Tensor, slope: float) -> tuple[Tensor, Tensor]:
    """Shrunk activation and its factor, from z, consumed; `slope` below zero: see `shrink_factor`."""
    a = F.leaky_relu_(z, slope) if slope else z.relu_()
    s = a.square().sum(-2, keepdim=True).add_(SOFTENING).rsqrt_()
    return a.mul_(s), s


def sloped(x: Tensor, a: Tensor, slope: float) -> Tensor:
    """x times the activation's slope: its own backward is eight times as fast as a product with a Boolean mask."""
    y: Tensor = torch.ops.aten.leaky_relu_backward(x, a, slope, True)
    return y


def hidden_back(g_a: Tensor, a: Tensor, s: Tensor, slope: float, g_s: Tensor | None = None) -> Tensor:
    """Gradient at z from the gradients at a (consumed) and at s; g_s may cover the first tokens only."""
    pull = (g_a * a).sum(-2, keepdim=True)
    if g_s is not None:
        C = g_s.shape[-1]
        pull[..., :C].addcmul_(s[..., :C], g_s)
    return sloped(g_a.addcmul_(a, pull, value=-1).mul_(s), a, slope)


def soft_clip(back: Tensor, a: Tensor, s: Tensor, slope: float) -> tuple[Tensor, Tensor]:
    """The inner gradient y = x / (1 + ||x||^2)^1/2 at z, and that factor; x = s slope back, back consumed."""
    x = sloped(back, a, slope).mul_(s)
    r = x.square().sum(-2, keepdim=True).add_(1).rsqrt_()
    return x.mul_(r), r


def soft_clip_back(
    g: Tensor, y: Tensor, r: Tensor, a: Tensor, s: Tensor, slope: float, rate: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients at back, s and rate from the one at rate y (consumed)."""
    felt = (g * y).sum(-2, keepdim=True)
    g_back = sloped(g.addcmul_(y, felt, value=-1), a, slope).mul_(rate * r * s)
    return g_back, rate * felt * r.square() / s, felt


def normalise(x: Tensor) -> Tensor:
    """x / ||x|| over the dimension before tokens, in place; returns 1 / ||x||."""
    inverse = x.square().sum(-2, keepdim=True).add_(1e-6).rsqrt_()
    x.mul_(inverse)
    return inverse


def normalise_back(g: Tensor, unit: Tensor, inverse: Tensor) -> Tensor:
    """Gradient at x from the one at unit = x / ||x||."""
    return torch.addcmul(g, unit, (g * unit).sum(-2, keepdim=True), value=-1).mul_(inverse)


def inverse(L_NCC: Tensor) -> Tensor:
    """(I + L)^-1 of strictly upper triangular L, by halves: forward and backward then need products only."""
    N, C, _ = L_NCC.shape
    if C <= 32:
        eye = torch.eye(C, dtype=L_NCC.dtype, device=L_NCC.device).expand(N, C, C)
        small: Tensor = torch.linalg.solve_triangular(L_NCC, eye, upper=True, left=False, unitriangular=True)
        return small
    h = C // 2
    first, last, corner = L_NCC[:, :h, :h], L_NCC[:, h:, h:], L_NCC[:, :h, h:]
    if C % 2:
        first, last = inverse(first), inverse(last)
    else:
        first, last = inverse(torch.cat((first, last))).chunk(2)
    whole = torch.zeros_like(L_NCC)
    whole[:, :h, :h], whole[:, h:, h:] = first, last
    whole[:, :h, h:] = (first @ corner @ last).neg_()
    return whole


def dot(x: Tensor, y: Tensor) -> Tensor:
    """Inner product per leading index."""
    return (x * y).flatten(1).sum(1)


def t(x: Tensor) -> Tensor:
    """Transpose of the last two dimensions."""
    return x.transpose(-1, -2)
