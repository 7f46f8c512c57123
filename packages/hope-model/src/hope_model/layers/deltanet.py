"""Gated DeltaNet (arXiv 2412.06464) with erase strength up to 2 (arXiv 2411.12537).

Letters: B sequences, T tokens, D width, H heads, d head width.
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hope_model.config import ModelConfig
from hope_model.layers.basic import CausalConv, GatedOutput, linear, split_heads
from hope_model.layers.gates import RetentionGate
from hope_model.layers.recording import is_recording, remembered
from hope_model.ops import one_token
from hope_model.ops.gated_delta import gated_delta
from hope_model.precision import full_precision, half_products


class DeltaState(NamedTuple):
    """Matrix memory of every head and the convolution's last inputs."""

    S_BHdd: Tensor
    tail: Tensor


class GatedDeltaNet(nn.Module):
    """A linear memory per head, written by the gated delta rule."""

    def __init__(self, config: ModelConfig, std: float, out_std: float) -> None:
        super().__init__()
        self.heads, self.head_dim, self.chunk = config.heads, config.head_dim, config.memory.chunk
        self.twice = config.cms.differentiable_twice
        self.qkv = linear(config.dim, 3 * config.dim, std)
        self.conv = CausalConv(3 * config.dim, config.conv, twice=config.cms.differentiable_twice)
        self.retention = RetentionGate(config, std)
        self.beta = linear(config.dim, config.heads, std)
        self.output = GatedOutput(config.dim, config.head_dim, std, out_std, twice=self.twice)

    def initial(self, batch: int) -> DeltaState:
        S = self.qkv.weight.new_zeros(batch, self.heads, self.head_dim, self.head_dim, dtype=torch.float32)
        return DeltaState(S.to(torch.promote_types(S.dtype, self.qkv.weight.dtype)), self.conv.initial(batch))

    def forward(
        self, x_BTD: Tensor, state: DeltaState, *, write: bool = True, chunk: int = 0
    ) -> tuple[Tensor, DeltaState]:
        """Read and write; with `write=False` only read. The rule is the same at any `chunk`."""
        del chunk
        qkv, tail = self.conv(self.qkv(x_BTD), state.tail)
        if write and self._by_token(x_BTD, state.S_BHdd):
            y, S = self.output.by(partial(self._token, x_BTD, qkv, state.S_BHdd), x_BTD)
            return y, DeltaState(S, tail)
        log_a, beta, half = self.retention(x_BTD), self.beta(x_BTD), half_products(x_BTD)
        with full_precision(x_BTD) as cast:
            q, k, v = split_heads(qkv, self.heads, parts=3, unit=2, silu=True, twice=self.twice)
            if not write:
                o = (state.S_BHdd @ q.transpose(-1, -2)).transpose(-1, -2)
                return self.output(o, x_BTD), DeltaState(state.S_BHdd, tail)
            strength = 2 * cast(beta).transpose(1, 2).sigmoid()
            rule = partial(self._rule, half)
            o, S = remembered(self, rule, (q, k, v, log_a, strength), tuple, state.S_BHdd)
        return self.output(o, x_BTD), DeltaState(S, tail)

    def _by_token(self, x_BTD: Tensor, S_BHdd: Tensor) -> bool:
        """Whether the kernel of one token applies."""
        known = self.head_dim in one_token.WIDTHS and S_BHdd.dtype in one_token.STATES and not is_recording()
        return known and one_token.applies(x_BTD, S_BHdd)

    def _token(
        self, x: Tensor, qkv: Tensor, S_BHdd: Tensor, gate: Tensor, norm: Tensor
    ) -> tuple[Tensor, Tensor]:
        retention = self.retention
        return one_token.deltanet(qkv, retention.project(x), retention.bias, self.beta(x), gate, norm, S_BHdd)

    def _rule(
        self, half: bool, tokens: tuple[Tensor, ...], shared: tuple[()], S_BHdd: Tensor
    ) -> tuple[Tensor, Tensor]:
        del shared
        q, k, v, log_a, strength = tokens
        choices = {"twice": self.twice, "half": half}
        return gated_delta(q, k, v, log_a, strength, S_BHdd, self.chunk, **choices)
