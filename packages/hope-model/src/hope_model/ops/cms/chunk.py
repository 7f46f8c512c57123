"""A level over a whole segment of every sequence, and its write in closed form.

Letters: B sequences, T tokens, D width, h hidden width, I and O inputs and outputs of one matrix.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hope_model.ops.activations import ACTIVATIONS
from hope_model.ops.cms.types import LevelWeights


class _FastLinear(torch.autograd.Function):
    """x (theta + delta)^T with a delta per sequence that is a constant: first order (model.md 5).

    theta's gradient needs no per-sequence copy: it is one product over all tokens.
    """

    @staticmethod
    def forward(ctx: Any, x_BTI: Tensor, theta_OI: Tensor, delta_BOI: Tensor) -> Tensor:
        ctx.save_for_backward(x_BTI, theta_OI, delta_BOI)
        return x_BTI @ (theta_OI + delta_BOI).transpose(-1, -2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (g_BTO,) = grads
        x_BTI, theta_OI, delta_BOI = ctx.saved_tensors
        g_x = g_BTO @ (theta_OI + delta_BOI) if ctx.needs_input_grad[0] else None
        g_theta = g_BTO.flatten(0, 1).T @ x_BTI.flatten(0, 1) if ctx.needs_input_grad[1] else None
        return g_x, g_theta, None


def _fast_linear(x_BTI: Tensor, theta_OI: Tensor, delta_BOI: Tensor | None) -> Tensor:
    if delta_BOI is None:
        return F.linear(x_BTI, theta_OI)
    kind = x_BTI.device.type
    if torch.is_autocast_enabled(kind):
        half = torch.get_autocast_dtype(kind)
        x_BTI, theta_OI, delta_BOI = x_BTI.to(half), theta_OI.to(half), delta_BOI.to(half)
    if delta_BOI.requires_grad:  # second order
        return x_BTI @ (theta_OI + delta_BOI).transpose(-1, -2)
    y: Tensor = _FastLinear.apply(x_BTI, theta_OI, delta_BOI)  # type: ignore[no-untyped-call]
    return y


def cms_level(u_BTD: Tensor, theta: LevelWeights, delta: LevelWeights | None, activation: str) -> Tensor:
    """MLP(u) with theta + delta; `delta=None` is the plain MLP, with no trace of fast weights."""
    z = _fast_linear(u_BTD, theta.up, None if delta is None else delta.up)
    phi = getattr(F, activation)(z)
    return _fast_linear(phi, theta.down, None if delta is None else delta.down)


def cms_gradient(u_BTD: Tensor, teach_BTD: Tensor, weights: LevelWeights, activation: str) -> LevelWeights:
    """Sum over t of the gradient of <MLP(u_t), teach_t>, per sequence, in closed form (eq. 71).

    Args:
        u_BTD: The level's inputs.
        teach_BTD: Teach signals, gated and scaled as they shall count.
        weights: theta + delta, per sequence [B, h, D], [B, D, h].
        activation: The level's activation.
    """
    phi, slope = ACTIVATIONS[activation](u_BTD @ weights.up.transpose(-1, -2))
    back = (teach_BTD @ weights.down) * slope
    return LevelWeights(back.transpose(-1, -2) @ u_BTD, teach_BTD.transpose(-1, -2) @ phi)
