"""Levels through all segments of one call, first order: what a read computes serves the write and the backward.

Letters: B sequences, T tokens of the call, n tokens of one segment, D width, h hidden width of a level.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from hope_model.ops.cms.types import LevelWeights
from hope_model.ops.triton.cms import write_applies, written


class Piece(NamedTuple):
    """Tokens [first, end) that were read with the same weights: of one level, or one fast copy per sequence."""

    first: int
    end: int
    weights: LevelWeights


class LevelRun:
    """One level: reads segment after segment, and writes at the end of its chunks.

    Args:
        theta: Slow weights.
        delta: What earlier calls wrote; None is zero.
        total: Gradient, summed, of those tokens of the open chunk that came in earlier calls; None: of none.
        u_BTD: Room for the level's inputs, in the precision of products.
    """

    def __init__(
        self, theta: LevelWeights, delta: LevelWeights | None, total: LevelWeights | None, u_BTD: Tensor
    ) -> None:
        self.slow = LevelWeights(*(W.detach() for W in theta))
        self.delta, self.total, self.u_BTD = delta, total, u_BTD
        self.z_BTh = u_BTD.new_empty(*u_BTD.shape[:2], len(theta.up))
        self.weights = self._fast(delta)
        self.pieces: list[Piece] = []
        self.unwritten = 0  # first token of the open chunk

    def read(self, u_BnD: Tensor, first: int) -> Tensor:
        """MLP(u) of tokens `first`, `first` + 1, ... with the weights of this moment."""
        end = first + u_BnD.shape[1]
        u_BnD = u_BnD.to(self.u_BTD.dtype)
        self.u_BTD[:, first:end] = u_BnD
        z_Bnh = _product(u_BnD, self.weights.up.mT, self.z_BTh[:, first:end])
        if self.pieces and self.pieces[-1].weights is self.weights:
            first = self.pieces.pop().first
        self.pieces.append(Piece(first, end, self.weights))
        return F.silu(z_Bnh) @ self.weights.down.mT

    def write(self, teach_BTD: Tensor, end: int, rate: float, retention: float, bound: float) -> None:
        """Write the open chunk, which ends before token `end`: `rate` is the step size of one token's signal."""
        chunk = slice(self.unwritten, end)
        u, z, teach = self.u_BTD[:, chunk], self.z_BTh[:, chunk], teach_BTD[:, chunk]
        back = torch.ops.aten.silu_backward(teach @ self.weights.down, z)
        each = zip(
            self.delta or (None, None),
            (back.mT @ u, teach.mT @ F.silu(z)),
            self.total or (None, None),
            self.slow,
            strict=True,
        )
        if write_applies(self.slow.up, u):
            up, down = (written(*m, rate=rate, retention=retention, bound=bound) for m in each)
            self.delta, self.weights = (LevelWeights(*both) for both in zip(up, down, strict=True))
        else:
            self.delta = LevelWeights(
                *(_written(*m, rate=rate, retention=retention, bound=bound) for m in each)
            )
            self.weights = self._fast(self.delta)
        self.total, self.unwritten = None, end

    def _fast(self, delta: LevelWeights | None) -> LevelWeights:
        """theta + delta, added in delta's precision and rounded once."""
        weights = self.slow if delta is None else (W + d for W, d in zip(self.slow, delta, strict=True))
        return LevelWeights(*(W.to(self.u_BTD.dtype) for W in weights))


def _product(x_BnI: Tensor, W: Tensor, out_BnO: Tensor) -> Tensor:
    """x W, written where it is kept."""
    if W.dim() == 2:
        return out_BnO.copy_(x_BnI @ W)
    return torch.bmm(x_BnI, W, out=out_BnO)


def _written(
    delta: Tensor | None,
    gradient: Tensor,
    total: Tensor | None,
    theta: Tensor,
    *,
    rate: float,
    retention: float,
    bound: float,
) -> Tensor:
    """`cms_written` of one matrix, with as few passes over it as torch allows."""
    if total is not None:
        gradient = gradient + total
    if delta is None:
        precise = torch.promote_types(theta.dtype, torch.float32)
        new = gradient.to(precise) * -rate
    else:
        new = torch.add(delta if retention == 1 else retention * delta, gradient, alpha=-rate)
    if bound:
        largest = bound * torch.linalg.vector_norm(theta, dtype=new.dtype)
        size = torch.linalg.vector_norm(new, dim=(-2, -1), keepdim=True)
        new *= (largest / size.clamp(min=1e-30)).clamp(max=1)
    return new


class _Levels(torch.autograd.Function):
    """The chain of levels whose output is known; deltas are constants."""

    @staticmethod
    def forward(ctx: Any, x_BTD: Tensor, y_BTD: Tensor, levels: Sequence[LevelRun], *theta: Tensor) -> Tensor:
        ctx.bounds = [[(piece.first, piece.end) for piece in level.pieces] for level in levels]
        tensors = []
        for level in levels:
            tensors += [level.u_BTD, level.z_BTh, *(W for piece in level.pieces for W in piece.weights)]
        ctx.save_for_backward(*tensors)
        ctx.dtypes = x_BTD.dtype, [W.dtype for W in theta]
        return y_BTD.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (g_BTD,), tensors = grads, list(ctx.saved_tensors)
        g_x: Tensor | None = None  # what later levels add to the gradient at a level's output
        by_theta: list[Tensor] = []
        for bounds in reversed(ctx.bounds):
            weights, tensors = tensors[-2 * len(bounds) :], tensors[: -2 * len(bounds)]
            z, u = tensors.pop(), tensors.pop()
            g = (g_BTD if g_x is None else g_BTD + g_x).to(u.dtype)
            g_phi, g_u = torch.empty_like(z), torch.empty_like(u)
            for (first, end), down in zip(bounds, weights[1::2], strict=True):
                _product(g[:, first:end], down, g_phi[:, first:end])
            g_down = g.flatten(0, 1).T @ F.silu(z).flatten(0, 1)
            g_z = torch.ops.aten.silu_backward(g_phi, z)
            for (first, end), up in zip(bounds, weights[::2], strict=True):
                _product(g_z[:, first:end], up, g_u[:, first:end])
            by_theta += [g_down, g_z.flatten(0, 1).T @ u.flatten(0, 1)]
            g_x = g_u.to(g_BTD.dtype) if g_x is None else g_x.add_(g_u)
        kind, kinds = ctx.dtypes
        gradients = (g.to(dtype) for g, dtype in zip(reversed(by_theta), kinds, strict=True))
        assert g_x is not None  # noqa: S101
        return g_x.to(kind), None, None, *gradients


def levels_read(
    x_BTD: Tensor, y_BTD: Tensor, levels: Sequence[LevelRun], theta: Sequence[LevelWeights]
) -> Tensor:
    """Return `y_BTD`, what the levels have read for x, with its gradients by x and theta."""
    y: Tensor = _LEVELS(x_BTD, y_BTD, levels, *(W for level in theta for W in level))
    return y


_LEVELS: Callable[..., Any] = _Levels.apply
