"""Scalar gates per head."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hope_model.config import ModelConfig
from hope_model.layers.basic import linear
from hope_model.observe import note
from hope_model.precision import full_precision


def retention_bias(heads: int) -> Tensor:
    """Heads begin with horizons spread from 20 to 1,000 tokens: sigmoid(bias) = 1 - 1/horizon."""
    # Drawn up on the CPU: on the meta device torch would import its compiler for a logarithm.
    horizon = (
        torch.logspace(1.3, 3, heads, device="cpu") if heads > 1 else torch.tensor([100.0], device="cpu")
    )
    return torch.log(horizon - 1).to(torch.get_default_device())


class RetentionGate(nn.Module):
    """log a_t = log sigmoid(x W + bias), [B, T, D] to [B, H, T]."""

    def __init__(self, config: ModelConfig, std: float) -> None:
        super().__init__()
        self.project = linear(config.dim, config.heads, std)
        self.bias = nn.Parameter(retention_bias(config.heads))

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Logarithms in the precision of the state."""
        raw = self.project(x_BTD)
        with full_precision(x_BTD) as cast:
            raw = cast(raw) + self.bias
            note("alpha", raw.sigmoid())
            return F.logsigmoid(raw).transpose(1, 2)
