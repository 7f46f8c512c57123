"""Softmax attention with rotary positions; full or sliding-window, with a bounded cache for the latter.

Letters: B sequences, T new tokens, S cached and new tokens, D width, H heads of queries, G heads of keys and values,
d head width.
"""

from contextlib import nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hope_model.config import ModelConfig
from hope_model.layers.basic import linear, to_heads, to_width
from hope_model.layers.recording import attended
from hope_model.layers.rotary import angles, rotate


class AttentionState(NamedTuple):
    """Keys (rotated) and values of the tokens that later queries may still see."""

    k_BHSd: Tensor  # G heads
    v_BHSd: Tensor
    position: int


class Attention(nn.Module):
    """Multi-head causal attention through SDPA; `persistent` learned tokens (arXiv 2501.00663, 3.3) are always seen."""

    def __init__(self, config: ModelConfig, std: float, out_std: float, persistent: int = 0) -> None:
        super().__init__()
        self.config, self.head_dim, self.window = config.attention, config.head_dim, config.attention.window
        self.heads, self.kv_heads = config.query_heads, config.kv_heads
        self.twice = config.cms.second_order and config.cms.signal == "layer"
        width, kv_width = self.heads * self.head_dim, self.kv_heads * self.head_dim
        bias = config.attention.bias
        self.qkv = linear(config.dim, width + 2 * kv_width, std, bias=bias != "none")
        self.out = linear(width, config.dim, out_std, bias=bias == "all")
        self.widths = (width + kv_width, kv_width)
        self.q_norm, self.k_norm = (
            nn.RMSNorm(self.head_dim, eps=config.norm_eps) if config.attention.qk_norm else None for _ in "qk"
        )
        self.persistent_PD = nn.Parameter(torch.randn(persistent, config.dim)) if persistent else None

    def initial(self, batch: int) -> AttentionState:
        empty = self.qkv.weight.new_zeros(batch, self.kv_heads, 0, self.head_dim)
        return AttentionState(empty, empty, 0)

    def forward(
        self, x_BTD: Tensor, state: AttentionState, *, write: bool = True, chunk: int = 0
    ) -> tuple[Tensor, AttentionState]:
        """Attend to the cache and the new tokens. `write` and `chunk` are for memories; a cache is always extended."""
        del write, chunk
        o_BTD, state = self.attend(x_BTD, state)
        y: Tensor = self.out(o_BTD)
        return y, state

    def attend(self, x_BTD: Tensor, state: AttentionState) -> tuple[Tensor, AttentionState]:
        """All heads' reads, before the output projection; a window's length at a time, so that cost is linear."""
        outputs = []
        for piece in torch.split(x_BTD, self.window or max(1, x_BTD.shape[1]), 1):
            o, state = self._attend_piece(piece, state)
            outputs.append(o)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1), state

    def _attend_piece(self, x_BTD: Tensor, state: AttentionState) -> tuple[Tensor, AttentionState]:
        q, k, v = self.heads_of(x_BTD, state.position)
        cached, T = state.k_BHSd.shape[-2], x_BTD.shape[1]
        if cached:
            k, v = torch.cat((state.k_BHSd.to(k.dtype), k), -2), torch.cat((state.v_BHSd.to(v.dtype), v), -2)
        kept = slice(max(0, k.shape[-2] - self.window + 1), None) if self.window else slice(None)
        last_k, last_v = k[..., kept, :], v[..., kept, :]
        if not (
            cached or torch.is_grad_enabled()
        ):  # views would keep queries in memory for as long as the state
            last_k, last_v = last_k.contiguous(), last_v.contiguous()
        state = AttentionState(last_k, last_v, state.position + T)
        everything = (cached == 0 or T == 1) and (not self.window or self.window >= cached + T)
        if everything and self.persistent_PD is None:
            return to_width(self.read(q, k, v, None, is_causal=cached == 0)), state
        mask = self._mask(T, cached, x_BTD.device)
        return to_width(self.read(q, *self.with_persistent(k, v, mask))), state

    def heads_of(self, x_BTD: Tensor, position: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys, rotated from `position` on, and values."""
        qk, v = self._split(x_BTD)
        cos, sin = angles(self.config, position, qk.shape[-2], self.head_dim, qk)
        q, k = torch.split(rotate(qk, cos, sin), [self.heads, self.kv_heads], 1)
        return q, k, v

    def _split(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys as heads of one tensor, and values."""
        parts = self.qkv(x_BTD).split(self.widths, -1)
        qk, v = (
            to_heads(x, n) for x, n in zip(parts, (self.heads + self.kv_heads, self.kv_heads), strict=True)
        )
        if self.q_norm is not None and self.k_norm is not None:
            q, k = torch.split(qk, [self.heads, self.kv_heads], 1)
            qk = torch.cat((self.q_norm(q), self.k_norm(k)), 1)
        return qk, v

    def with_persistent(
        self, k_BHSd: Tensor, v_BHSd: Tensor, mask_TS: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same keys, values and mask behind the learned tokens, which have no position."""
        if self.persistent_PD is None:
            return k_BHSd, v_BHSd, mask_TS
        P, batch = len(self.persistent_PD), len(k_BHSd)
        qk, v = (part.expand(batch, -1, -1, -1) for part in self._split(self.persistent_PD[None]))
        k = qk[:, self.heads :]
        return torch.cat((k, k_BHSd), -2), torch.cat((v, v_BHSd), -2), F.pad(mask_TS, (P, 0), value=True)

    def read(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, is_causal: bool = False
    ) -> Tensor:
        """softmax(q k^T / sqrt d) v. The fused kernels have no second derivative."""
        if self.heads != self.kv_heads:
            k, v = (x.repeat_interleave(self.heads // self.kv_heads, 1) for x in (k, v))
        if self.window == 0 and self.persistent_PD is None:
            known = attended(self, q, k, v, mask, is_causal=is_causal)
            if known is not None:
                return known
        with sdpa_kernel(SDPBackend.MATH) if self.twice else nullcontext():
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal)

    def _mask(self, T: int, cached: int, device: torch.device) -> Tensor:
        query = torch.arange(cached, cached + T, device=device)[:, None]
        key = torch.arange(cached + T, device=device)
        mask = key <= query
        return mask & (key > query - self.window) if self.window else mask
