"""Softmax attention with rotary positions; full or sliding-window, with a bounded cache for the latter.

Letters: B sequences, T new tokens, S cached and new tokens, D width, H heads, d head width.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hope_model.config import ModelConfig
from hope_model.layers.basic import linear, to_heads, to_width


class AttentionState(NamedTuple):
    """Keys (rotated) and values of the tokens that later queries may still see."""

    k_BHSd: Tensor
    v_BHSd: Tensor
    position: int


def rotate(x_BHTd: Tensor, position: int, base: float) -> Tensor:
    """Rotary embedding (arXiv 2104.09864) of tokens position, position + 1, ..."""
    T, d = x_BHTd.shape[-2:]
    # Angles in float64: float32 loses whole radians near position one million.
    rate = base ** (-torch.arange(0, d, 2, dtype=torch.float64, device=x_BHTd.device) / d)
    angle = torch.arange(position, position + T, dtype=torch.float64, device=x_BHTd.device)[:, None] * rate
    cos, sin = angle.cos().to(x_BHTd.dtype), angle.sin().to(x_BHTd.dtype)
    x, y = x_BHTd.chunk(2, -1)
    return torch.cat((x * cos - y * sin, x * sin + y * cos), -1)


class Attention(nn.Module):
    """Multi-head causal attention through SDPA."""

    def __init__(self, config: ModelConfig, std: float, out_std: float) -> None:
        super().__init__()
        self.heads, self.head_dim = config.heads, config.head_dim
        self.window, self.base = config.attention.window, config.attention.rope_base
        self.qkv = linear(config.dim, 3 * config.dim, std)
        self.out = linear(config.dim, config.dim, out_std)

    def initial(self, batch: int) -> AttentionState:
        """An empty cache."""
        empty = self.qkv.weight.new_zeros(batch, self.heads, 0, self.head_dim)
        return AttentionState(empty, empty, 0)

    def forward(
        self, x_BTD: Tensor, state: AttentionState, *, write: bool = True
    ) -> tuple[Tensor, AttentionState]:
        """Attend to the cache and the new tokens. `write` is for memories; a cache is always extended."""
        del write
        q, k, v = (to_heads(part, self.heads) for part in self.qkv(x_BTD).chunk(3, -1))
        q, k = rotate(q, state.position, self.base), rotate(k, state.position, self.base)
        cached, T = state.k_BHSd.shape[-2], x_BTD.shape[1]
        if cached:
            k, v = torch.cat((state.k_BHSd.to(k.dtype), k), -2), torch.cat((state.v_BHSd.to(v.dtype), v), -2)
        if (cached == 0 or T == 1) and (not self.window or self.window >= cached + T):
            o = F.scaled_dot_product_attention(q, k, v, is_causal=cached == 0)
        else:
            o = F.scaled_dot_product_attention(q, k, v, attn_mask=self._mask(T, cached, x_BTD.device))
        kept = slice(max(0, k.shape[-2] - self.window + 1), None) if self.window else slice(None)
        state = AttentionState(k[..., kept, :], v[..., kept, :], state.position + T)
        y: Tensor = self.out(to_width(o))
        return y, state

    def _mask(self, T: int, cached: int, device: torch.device) -> Tensor:
        query = torch.arange(cached, cached + T, device=device)[:, None]
        key = torch.arange(cached + T, device=device)
        mask = key <= query
        return mask & (key > query - self.window) if self.window else mask
