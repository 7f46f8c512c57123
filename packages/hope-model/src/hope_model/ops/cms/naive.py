"""A level and its gradient as the equations stand, one sequence and token at a time.

Letters: B sequences, T tokens, D width, h hidden width.
"""

import torch
from torch import Tensor

from hope_model.ops.activations import ACTIVATIONS
from hope_model.ops.cms.types import LevelWeights


def _mlp(u_D: Tensor, up_hD: Tensor, down_Dh: Tensor, activation: str) -> Tensor:
    return down_Dh @ ACTIVATIONS[activation](up_hD @ u_D)[0]


def cms_level_naive(
    u_BTD: Tensor, theta: LevelWeights, delta: LevelWeights | None, activation: str
) -> Tensor:
    """MLP(u_t) with theta + delta, each sequence with its own delta (eq. 70)."""
    rows = []
    for n, u_TD in enumerate(u_BTD):
        up, down = theta if delta is None else (theta.up + delta.up[n], theta.down + delta.down[n])
        rows.append(torch.stack([_mlp(u_D, up, down, activation) for u_D in u_TD]))
    return torch.stack(rows)


def cms_gradient_naive(
    u_BTD: Tensor, teach_BTD: Tensor, weights: LevelWeights, activation: str
) -> LevelWeights:
    """Sum over t of the gradient of <MLP(u_t), teach_t> by autograd; weights are per sequence [B, h, D], [B, D, h]."""
    ups, downs = [], []
    for n in range(len(u_BTD)):
        up, down = (W[n].detach().requires_grad_() for W in weights)
        inner = sum(
            (_mlp(u, up, down, activation) * d).sum() for u, d in zip(u_BTD[n], teach_BTD[n], strict=True)
        )
        grad_up, grad_down = torch.autograd.grad(torch.as_tensor(inner), (up, down))
        ups.append(grad_up)
        downs.append(grad_down)
    return LevelWeights(torch.stack(ups), torch.stack(downs))
