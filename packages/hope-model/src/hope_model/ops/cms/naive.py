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


def _inner_gradient(u_D: Tensor, teach_D: Tensor, weights: LevelWeights, activation: str) -> LevelWeights:
    """Gradient of <MLP(u), teach> by differentiating it, itself differentiable."""
    with torch.enable_grad():
        up, down = (W if W.requires_grad else W.detach().requires_grad_() for W in weights)
        inner = (_mlp(u_D, up, down, activation) * teach_D).sum()
        return LevelWeights(*torch.autograd.grad(inner, (up, down), create_graph=True))


def _per_sequence(weights: LevelWeights) -> list[LevelWeights]:
    return [LevelWeights(up, down) for up, down in zip(*weights, strict=True)]


def _stacked(weights: list[LevelWeights]) -> LevelWeights:
    return LevelWeights(*(torch.stack(parts) for parts in zip(*weights, strict=True)))


def cms_gradient_naive(
    u_BTD: Tensor, teach_BTD: Tensor, weights: LevelWeights, activation: str
) -> LevelWeights:
    """Sum over t of the gradient of <MLP(u_t), teach_t>; weights are per sequence [B, h, D], [B, D, h]."""
    sums = []
    for u_TD, teach_TD, own in zip(u_BTD, teach_BTD, _per_sequence(weights), strict=True):
        each = [_inner_gradient(u, d, own, activation) for u, d in zip(u_TD, teach_TD, strict=True)]
        sums.append(LevelWeights(*(torch.stack(parts).sum(0) for parts in zip(*each, strict=True))))
    return _stacked(sums)


def cms_delta_rule_naive(
    u_BTD: Tensor,
    teach_BTD: Tensor,
    rate_BT: Tensor,
    weights: LevelWeights,
    delta: LevelWeights,
    activation: str,
) -> LevelWeights:
    """delta_t = (delta_{t-1} - rate_t G_t) (I + rate_t k_t k_t^T)^-1, the implicit form of eq. 57, token by token.

    It minimises 1/2 |delta - delta_{t-1}|^2 + rate_t (<G_t, delta> + 1/2 |delta k_t|^2); G_t by autograd.
    """
    after = []
    own = (_per_sequence(weights), _per_sequence(delta))
    for n, (weights_n, (up, down)) in enumerate(zip(*own, strict=True)):
        for u, teach, rate in zip(u_BTD[n], teach_BTD[n], rate_BT[n], strict=True):
            gradient = _inner_gradient(u, teach, weights_n, activation)
            phi = ACTIVATIONS[activation](weights_n.up @ u)[0]
            up = (up - rate * gradient.up) @ _ridge(u, rate)
            down = (down - rate * gradient.down) @ _ridge(phi, rate)
        after.append(LevelWeights(up, down))
    return _stacked(after)


def _ridge(k: Tensor, rate: Tensor) -> Tensor:
    eye = torch.eye(len(k), dtype=k.dtype, device=k.device)
    inverse: Tensor = torch.linalg.inv(eye + rate * torch.outer(k, k))
    return inverse
