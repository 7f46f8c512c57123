"""Activations with their slopes, and the three normalisations that keep fast weights bounded."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# Slope below zero of the activations that are straight on both sides: these have written-out backwards and kernels.
NEGATIVE_SLOPES = {"leaky_relu": 0.3, "relu": 0.0}


def _relu(z: Tensor) -> tuple[Tensor, Tensor]:
    phi = z.relu()
    return phi, phi.detach().sign()  # a Boolean mask costs several times as much


def _leaky_relu(z: Tensor) -> tuple[Tensor, Tensor]:
    c = NEGATIVE_SLOPES["leaky_relu"]
    return F.leaky_relu(z, c), torch.full_like(z, c).masked_fill_(z.detach() > 0, 1)


def _silu(z: Tensor) -> tuple[Tensor, Tensor]:
    gate = z.sigmoid()
    return z * gate, gate * (1 + z * (1 - gate))


def _gelu(z: Tensor) -> tuple[Tensor, Tensor]:
    cdf = 0.5 * (1 + torch.erf(z * math.sqrt(0.5)))
    return z * cdf, cdf + z * torch.exp(-0.5 * z * z) * (1 / math.sqrt(2 * math.pi))


def _gelu_tanh(z: Tensor) -> tuple[Tensor, Tensor]:
    """The approximation of GPT-2 and Gemma."""
    c = math.sqrt(2 / math.pi)
    t = torch.tanh(c * (z + 0.044715 * z**3))
    return 0.5 * z * (1 + t), 0.5 * (1 + t) + 0.5 * z * (1 - t * t) * c * (1 + 3 * 0.044715 * z * z)


ACTIVATIONS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "leaky_relu": _leaky_relu,
    "relu": _relu,
    "silu": _silu,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
}


def l2norm(x: Tensor, dim: int) -> Tensor:
    """x / ||x|| along `dim`; a zero vector stays zero."""
    return x * torch.rsqrt(x.square().sum(dim, keepdim=True) + 1e-6)


# Small, so that a key's norm is almost 1 and a strength of 2 reflects what is stored there: with 1 in its place, flips
# fade by a tenth each (parity at 256 without a boundary: 0.68 instead of 0.98). It also bounds the slope, by 10.
SOFTENING = 0.01


def shrink_factor(phi: Tensor, dim: int) -> Tensor:
    """1 / sqrt(SOFTENING + ||phi||^2): times phi it has norm below 1."""
    return torch.rsqrt(SOFTENING + phi.square().sum(dim, keepdim=True))


def soft_clip(x: Tensor, dim: int, bound: float = 1.0) -> Tensor:
    """x / sqrt(1 + ||x||^2) at bound 1: a small x stays as it is, a large one gets the bound's norm."""
    scaled = x if bound == 1 else x / bound
    return x * torch.rsqrt(1 + scaled.square().sum(dim, keepdim=True))
