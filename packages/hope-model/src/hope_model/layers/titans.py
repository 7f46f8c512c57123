"""Titans' long-term memory (arXiv 2501.00663): linear q, k, v; one deep memory per head, written with momentum.

Letters: B sequences, T tokens, D width, H heads, d head width, m hidden width.
"""

import dataclasses
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hope_model.config import ModelConfig
from hope_model.layers.basic import CausalConv, GatedOutput, linear, split_heads
from hope_model.layers.gates import RetentionGate
from hope_model.layers.recording import is_recording
from hope_model.observe import note
from hope_model.ops import one_token
from hope_model.ops.deep_memory import FastWeights, Gates, MemoryState, Rules, read_memory, titans_memory
from hope_model.precision import full_precision, half_products
from hope_model.tree import tree_map


class TitansState(NamedTuple):
    """Fast weights and the convolution's last inputs."""

    memory: MemoryState
    tail: Tensor


def memory_rules(config: ModelConfig) -> Rules:
    """The op's choices, from the configuration."""
    memory = config.memory
    stable = memory.output_rule == "delta"
    return Rules(
        memory.chunk,
        memory.bank_chunk,
        memory.activation,
        memory.eta_max,
        stable,
        memory.tied_gates,
        memory.erase_layers,
        memory.read,
        memory.momentum_sum,
        memory.normalise == "all",
        memory.inner_clip,
        memory.through_writes,
        config.cms.differentiable_twice,
    )


def rules_of_call(rules: Rules, chunk: int, x_BTD: Tensor) -> Rules:
    """The same rules with chunks of another length (0 leaves it) and products in autocast's precision."""
    chunk, half = chunk or rules.chunk, half_products(x_BTD)
    same = (chunk, half) == (rules.chunk, rules.half)
    return rules if same else dataclasses.replace(rules, chunk=chunk, half=half)


class MemoryWeights(nn.Module):
    """Meta-learned initial weights of R memories per head, ordinary parameters."""

    def __init__(self, config: ModelConfig, memories: int) -> None:
        super().__init__()
        H, d, m = config.heads, config.head_dim, config.memory_hidden
        # Inputs have norm 1 and hidden activations norm below 1: these scales give z of order 1 and |W1 a| near 1.
        self.W2_HRmd = nn.Parameter(torch.randn(H, memories, m, d))
        self.W1_HRdm = nn.Parameter(torch.randn(H, memories, d, m).mul_(d**-0.5))
        if config.memory.normalise == "qk" and memories > 1:  # the x that projects has norm d^0.5
            self.W2_HRmd.data.mul_(d**-0.5)

    def fast(self, batch: int) -> FastWeights:
        """One copy per sequence, in the precision of states; gradients flow back to the parameters."""
        return FastWeights(*(W.expand(batch, *W.shape) for W in self.first()))

    def first(self) -> FastWeights:
        """[H, R, m, d] and [H, R, d, m], in the precision of states."""
        return FastWeights(*(W.to(_state_dtype(W)) for W in (self.W2_HRmd, self.W1_HRdm)))


def _state_dtype(weight: Tensor) -> torch.dtype:
    return torch.promote_types(weight.dtype, torch.float32)


def unwritten(fast: FastWeights, *, momentum: bool) -> MemoryState:
    """The state before the first token."""
    zero = FastWeights(*(torch.zeros_like(W, requires_grad=False) for W in fast)) if momentum else None
    return MemoryState(fast, fast, zero, 0)


class Titans(nn.Module):
    """LMM: the memory as the mixer."""

    def __init__(self, config: ModelConfig, std: float, out_std: float) -> None:
        super().__init__()
        self.heads, self.rules, self.momentum = config.heads, memory_rules(config), config.memory.momentum
        self.qkv = linear(config.dim, 3 * config.dim, std)
        self.conv = CausalConv(3 * config.dim, config.conv, twice=config.cms.differentiable_twice)
        self.memory = MemoryWeights(config, 1)
        self.retention = RetentionGate(config, std)
        self.erase = config.memory.erase_hidden and self.rules.erase != "none"
        self.decay_to = config.memory.decay_to
        self.gates = linear(config.dim, (4 if self.erase else 3) * config.heads, std)
        self.output = GatedOutput(config.dim, config.head_dim, std, out_std, twice=self.rules.twice)
        prefix = config.memory.prefix
        self.prefix_PD = nn.Parameter(torch.randn(prefix, config.dim)) if prefix else None

    def initial(self, batch: int) -> TitansState:
        """The meta-learned memory without momentum; or after the persistent tokens (3.3), one chunk of their own."""
        prefix = self.prefix_PD
        rows = batch if prefix is None else 1
        fast = self.memory.fast(rows)
        state = TitansState(unwritten(fast, momentum=self.momentum), self.conv.initial(rows))
        if prefix is None:
            return state
        _, (after, tail) = self(prefix[None], state)
        state = TitansState(MemoryState(after.now, after.now, after.momentum, 0), tail)
        return tree_map(lambda x: x.expand(batch, *x.shape[1:]), state)

    def forward(
        self, x_BTD: Tensor, state: TitansState, *, write: bool = True, chunk: int = 0
    ) -> tuple[Tensor, TitansState]:
        """Read and write; with `write=False` only read. `chunk`: another length than the configuration's."""
        qkv, tail = self.conv(self.qkv(x_BTD), state.tail)
        rules = rules_of_call(self.rules, chunk, x_BTD)
        if write and self._by_token(x_BTD, rules, state.memory):
            y, memory = self.output.by(partial(self._token, x_BTD, qkv, rules, state.memory), x_BTD)
            return y, TitansState(memory, tail)
        log_a, raw = self.retention(x_BTD), self.gates(x_BTD)
        with full_precision(x_BTD) as cast:
            unit = 3 if rules.unit_values else 2
            q, k, v = split_heads(qkv, self.heads, parts=3, unit=unit, silu=True, twice=self.rules.twice)
            if not write:
                return self.output(read_memory(state.memory, q, self.rules), x_BTD), state._replace(tail=tail)
            gates = self._gates(log_a, cast(raw))
            origin = self.memory.first() if self.decay_to == "initial" else None
            o, memory = titans_memory(q, k, v, gates, state.memory, rules, origin)
        return self.output(o, x_BTD), TitansState(memory, tail)

    def _by_token(self, x_BTD: Tensor, rules: Rules, memory: MemoryState) -> bool:
        """Whether the kernel of one token applies."""
        if not self.momentum or self.erase or is_recording():
            return False
        return one_token.memory_applies(x_BTD, rules, memory, origin=self.decay_to == "initial")

    def _token(
        self, x: Tensor, qkv: Tensor, rules: Rules, memory: MemoryState, gate: Tensor, norm: Tensor
    ) -> tuple[Tensor, MemoryState]:
        retention, first = self.retention, FastWeights(self.memory.W2_HRmd, self.memory.W1_HRdm)
        return one_token.titans(
            qkv, retention.project(x), retention.bias, self.gates(x), gate, norm, memory, first, rules
        )

    def _gates(self, log_a: Tensor, raw: Tensor) -> Gates:
        eta, output, theta, *erasing = torch.split(raw.transpose(1, 2), self.heads, 1)
        eta = self.rules.eta_max * eta.sigmoid()
        note("eta", eta)
        erase = 2 * erasing[0].sigmoid() if erasing else None
        if self.rules.tied_gates:
            erase = eta
        output = 2 * output.sigmoid()
        return Gates(
            log_a, erase, output[:, :, None], eta[:, :, None], F.logsigmoid(theta) if self.momentum else None
        )
