"""A level over a whole segment of every sequence, and its write in closed form.

Letters: B sequences, T tokens, D width, h hidden width, I and O inputs and outputs of one matrix.
"""

from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from hope_model.ops.activations import ACTIVATIONS
from hope_model.ops.cms.types import LevelWeights
from hope_model.ops.gated_delta import gated_delta


class _FastLinear(torch.autograd.Function):
    """x (theta + delta)^T with a delta per sequence that is a constant: first order.

    theta's gradient needs no per-sequence copy: it is one product over all tokens.
    """

    @staticmethod
    def forward(ctx: Any, x_BTI: Tensor, theta_OI: Tensor, delta_BOI: Tensor) -> Tensor:
        ctx.save_for_backward(x_BTI, theta_OI, delta_BOI)
        return x_BTI @ _fast(theta_OI, delta_BOI, x_BTI).transpose(-1, -2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (g_BTO,) = grads
        x_BTI, theta_OI, delta_BOI = ctx.saved_tensors
        g_x = g_BTO @ _fast(theta_OI, delta_BOI, g_BTO) if ctx.needs_input_grad[0] else None
        g_theta = g_BTO.flatten(0, 1).T @ x_BTI.flatten(0, 1) if ctx.needs_input_grad[1] else None
        return g_x, g_theta, None


def _fast(theta_OI: Tensor, delta_BOI: Tensor, like: Tensor) -> Tensor:
    """theta + delta; of a half-precision model it is added in delta's float32, then rounded once."""
    return (theta_OI + delta_BOI).to(like.dtype)


def fast_linear(x_BTI: Tensor, theta_OI: Tensor, delta_BOI: Tensor | None) -> Tensor:
    """x (theta + delta)^T, each sequence with its own delta; None is the plain product."""
    if delta_BOI is None:
        return F.linear(x_BTI, theta_OI)
    kind = x_BTI.device.type
    if torch.is_autocast_enabled(kind):
        half = torch.get_autocast_dtype(kind)
        x_BTI, theta_OI, delta_BOI = x_BTI.to(half), theta_OI.to(half), delta_BOI.to(half)
    if delta_BOI.requires_grad:  # second order
        return x_BTI @ _fast(theta_OI, delta_BOI, x_BTI).transpose(-1, -2)
    y: Tensor = _FastLinear.apply(x_BTI, theta_OI, delta_BOI)  # type: ignore[no-untyped-call]
    return y


def cms_level(u_BTD: Tensor, theta: LevelWeights, delta: LevelWeights | None, activation: str) -> Tensor:
    """MLP(u) with theta + delta; `delta=None` is the plain MLP, with no trace of fast weights."""
    z = fast_linear(u_BTD, theta.up, None if delta is None else delta.up)
    phi = getattr(F, activation)(z)
    return fast_linear(phi, theta.down, None if delta is None else delta.down)


def cms_gradient(u_BTD: Tensor, teach_BTD: Tensor, weights: LevelWeights, activation: str) -> LevelWeights:
    """Sum over t of the gradient of <MLP(u_t), teach_t>, per sequence, in closed form (eq. 71).

    Args:
        u_BTD: The level's inputs.
        teach_BTD: Teach signals, gated and scaled as they shall count.
        weights: theta + delta, per sequence [B, h, D], [B, D, h].
        activation: The level's activation.
    """
    phi, back = _backward(u_BTD, teach_BTD, weights, activation)
    return LevelWeights(back.transpose(-1, -2) @ u_BTD, teach_BTD.transpose(-1, -2) @ phi)


def _backward(
    u_BTD: Tensor, teach_BTD: Tensor, weights: LevelWeights, activation: str
) -> tuple[Tensor, Tensor]:
    """Hidden activation, and the gradient at its pre-activation."""
    phi, back, _ = mlp_backward(teach_BTD, u_BTD @ weights.up.transpose(-1, -2), weights.down, activation)
    return phi, back


def mlp_backward(
    teach_BTD: Tensor, z_BTh: Tensor, down_Dh: Tensor, activation: str, value_BTh: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Take teach signals back through `down` and the activation: of <down (phi(z) value), teach>.

    Args:
        teach_BTD: Signals at the MLP's output.
        z_BTh: Pre-activation, of a gated MLP its gate.
        down_Dh: Output matrix, per sequence or not.
        activation: A key of `ACTIVATIONS`.
        value_BTh: What a gated MLP multiplies the activation with; None: nothing.

    Returns:
        The input of `down`, the gradient at z, and the gradient at `value`.
    """
    phi, slope = ACTIVATIONS[activation](z_BTh)
    back = teach_BTD @ down_Dh
    if value_BTh is None:
        return phi, back * slope, None
    return phi * value_BTh, back * value_BTh * slope, back * phi


def cms_delta_rule(
    u_BTD: Tensor,
    teach_BTD: Tensor,
    rate_BT: Tensor,
    weights: LevelWeights,
    delta: LevelWeights,
    activation: str,
    *,
    twice: bool = False,
) -> LevelWeights:
    """Delta gradient descent (eq. 57) with implicit steps: `delta` after the writes of T tokens.

    delta_t = delta_{t-1} (I - b_t k_t k_t^T) - b_t g_t k_t^T with b_t = rate_t / (1 + rate_t |k_t|^2), for both
    matrices: k the matrix's input, g the gradient at its output, taken at `weights` (the chunk's start, eq. 90).

    Args:
        u_BTD: The level's inputs.
        teach_BTD: Teach signals, gated.
        rate_BT: Step size of each token; 0 leaves delta as it is.
        weights: theta + delta at the chunk's start, per sequence [B, h, D], [B, D, h].
        delta: Before the first token; further calls go on from the result.
        activation: The level's activation.
        twice: Must be differentiable more than once.
    """
    phi, back = _backward(u_BTD, teach_BTD, weights, activation)
    keep_BT = torch.zeros_like(rate_BT)
    written = []
    for k, g, before in ((u_BTD, back, delta.up), (phi, teach_BTD, delta.down)):
        b_BT = rate_BT / (1 + rate_BT * k.square().sum(-1))
        written.append(gated_delta(k, k, -g, keep_BT, b_BT, before, twice=twice)[1])
    return LevelWeights(*written)


Matrices = TypeVar("Matrices", bound=tuple[Tensor, ...])


def cms_written(
    delta: Matrices | None,
    gradient: Matrices,
    theta: tuple[Tensor, ...],
    *,
    step: float,
    retention: float,
    bound: float,
) -> Matrices:
    """Return `delta` after a write: retention times delta, minus step times gradient, then bounded (eq. 71).

    Args:
        delta: Per matrix [B, O, I]; None is zero.
        gradient: The same matrices, summed over the chunk's tokens.
        theta: Slow matrices [O, I], in the same order.
        step: Inner learning rate.
        retention: What a write keeps of the former delta.
        bound: See `cms_bounded`; 0: none.
    """
    parts = [-step * g for g in gradient]
    if delta is not None:
        parts = [retention * d + new for d, new in zip(delta, parts, strict=True)]
    written = _like(gradient, parts)
    return cms_bounded(written, theta, bound) if bound else written


def cms_bounded(delta: Matrices, theta: tuple[Tensor, ...], bound: float) -> Matrices:
    """Each matrix of `delta` shrunk, where it must be, to a Frobenius norm of `bound` times theta's."""

    def shrink(d: Tensor, W: Tensor) -> Tensor:
        largest = bound * torch.linalg.matrix_norm(W, dtype=d.dtype)  # a norm in half precision is rounded
        share: Tensor = largest / torch.linalg.matrix_norm(d, keepdim=True).clamp(min=1e-30)
        return d * share.clamp(max=1)

    return _like(delta, [shrink(d, W) for d, W in zip(delta, theta, strict=True)])


def _like(matrices: Matrices, parts: list[Tensor]) -> Matrices:
    kind: Any = type(matrices)
    result: Matrices = kind(*parts) if hasattr(kind, "_fields") else kind(parts)
    return result
