"""Self-modifying Titans (Nested Learning, eq. 83-93): memories that make their own keys, values and gates.

Letters: B sequences, T tokens, D width, H heads, d head width.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hope_model.config import ModelConfig
from hope_model.layers.basic import CausalConv, GatedOutput, linear, split_heads
from hope_model.layers.gates import retention_bias
from hope_model.layers.recording import is_recording, remembered
from hope_model.layers.titans import MemoryWeights, TitansState, memory_rules, rules_of_call, unwritten
from hope_model.ops import one_token
from hope_model.ops.deep_memory import (
    BANK,
    FastWeights,
    Gates,
    MemoryState,
    Readout,
    Rules,
    read_memory,
    self_modifying,
)
from hope_model.precision import for_products, full_precision


class SelfModifyingTitans(nn.Module):
    """Five memories per head; only the query projection is not a memory."""

    def __init__(self, config: ModelConfig, std: float, out_std: float) -> None:
        super().__init__()
        self.heads, self.rules = config.heads, memory_rules(config)
        self.self_modify = config.memory.self_modify
        self.conv = CausalConv(config.dim, config.conv, twice=config.cms.differentiable_twice)
        self.query = linear(config.dim, config.dim, std)
        # Strengths in (0, 2) of the output layer's delta rule and, if asked for, of the hidden layer's erasing;
        # then momentum's decay.
        self.erase = config.memory.erase_hidden and not self.rules.tied_gates and self.rules.erase != "none"
        self.momentum = config.memory.bank_momentum
        strengths = int(self.rules.stable) + int(self.erase) + int(self.momentum)
        self.strengths = linear(config.dim, strengths * config.heads, std) if strengths else None
        self.decay_to = config.memory.decay_to
        self.memory = MemoryWeights(config, len(BANK))
        H, d = config.heads, config.head_dim
        self.eta_Hd = nn.Parameter(torch.randn(H, d).mul_(d**-0.5))
        self.eta_bias_H = nn.Parameter(torch.zeros(H))
        self.eta_scale_HR = None if self.rules.tied_gates else nn.Parameter(torch.zeros(H, len(BANK)))
        # Keys and values that a chunk's writes change at once make gradients grow from chunk to chunk: begin slowly.
        # The memory that is read takes the strength whole: below 2 no eigenvalue reaches -1 (parity).
        shares = self.rules.stable and self.self_modify
        self.output_share_H4 = nn.Parameter(torch.full((H, len(BANK) - 1), -2.0)) if shares else None
        self.alpha_Hd = nn.Parameter(torch.randn(H, d).mul_(d**-0.5))
        self.alpha_bias_H = nn.Parameter(retention_bias(H))
        self.output = GatedOutput(config.dim, config.head_dim, std, out_std, twice=self.rules.twice)

    def initial(self, batch: int) -> TitansState:
        """The meta-learned memories."""
        fast = self.memory.fast(batch)
        if not self.self_modify:
            fast = FastWeights(*(W[:, :, -1:] for W in fast))
        return TitansState(unwritten(fast, momentum=self.momentum), self.conv.initial(batch))

    def forward(
        self, x_BTD: Tensor, state: TitansState, *, write: bool = True, chunk: int = 0
    ) -> tuple[Tensor, TitansState]:
        """Read and write; with `write=False` only read. `chunk`: another length than the configuration's."""
        x_BTD, tail = self.conv(x_BTD, state.tail)
        x_half = for_products(x_BTD)
        q, rules = self.query(x_half), rules_of_call(self.rules, chunk, x_BTD)
        raw = None if self.strengths is None else self.strengths(x_half)
        if write and raw is not None and self._by_token(x_BTD, rules, state.memory):
            by = partial(self._token, x_BTD, q, raw, rules, state.memory)
            y, memory = self.output.by(by, x_half)
            return y, TitansState(memory, tail)
        with full_precision(x_BTD) as cast:
            units = ((x_BTD, int(rules.unit_values)), (q, 1))
            x, q = (split_heads(part, self.heads, unit=n, twice=rules.twice)[0] for part, n in units)
            if not write:
                return self.output(read_memory(state.memory, q, self.rules), x_BTD), state._replace(tail=tail)
            strengths: tuple[Tensor, ...] = ()
            if raw is not None:
                strengths = torch.split(cast(raw).transpose(1, 2), self.heads, 1)
            shared, rule = partial(self._shared, cast, len(x)), partial(self._rule, rules)
            o, memory = remembered(self, rule, (x, q, *strengths), shared, state.memory)
        return self.output(o, x_BTD, x_half), TitansState(memory, tail)

    def _by_token(self, x_BTD: Tensor, rules: Rules, memory: MemoryState) -> bool:
        """Whether the kernel of one token applies."""
        if self.output_share_H4 is None or self.erase or self.momentum or is_recording():
            return False
        origin = self.decay_to == "initial"
        return rules.unit_values and one_token.memory_applies(x_BTD, rules, memory, origin=origin)

    def _token(
        self, x: Tensor, q: Tensor, raw: Tensor, rules: Rules, memory: MemoryState, gate: Tensor, norm: Tensor
    ) -> tuple[Tensor, MemoryState]:
        assert self.eta_scale_HR is not None  # noqa: S101
        assert self.output_share_H4 is not None  # noqa: S101
        eta = (self.eta_Hd, self.eta_bias_H, self.eta_scale_HR)
        alpha = (self.alpha_Hd, self.alpha_bias_H, self.output_share_H4)
        first = FastWeights(self.memory.W2_HRmd, self.memory.W1_HRdm)
        return one_token.self_modifying(x, q, raw, gate, (*eta, *alpha), norm, memory, first, rules)

    def _rule(
        self,
        rules: Rules,
        tokens: tuple[Tensor, ...],
        shared: tuple[Readout, FastWeights | None, FastWeights | None],
        memory: MemoryState,
    ) -> tuple[Tensor, MemoryState]:
        x, q, *raw = tokens
        log_theta = F.logsigmoid(raw.pop()) if self.momentum else None
        erase = 2 * raw.pop().sigmoid() if self.erase else None
        output = 2 * raw.pop().sigmoid()[:, :, None] if self.rules.stable else None
        gates = Gates(None, erase, output, None, log_theta)
        readout, *firsts = shared
        return self_modifying(x, q, gates, readout, memory, rules, *firsts)

    def _shared(
        self, cast: Callable[[Tensor], Tensor], batch: int
    ) -> tuple[Readout, FastWeights | None, FastWeights | None]:
        return self._readout(cast), *self._firsts(batch)

    def _firsts(self, batch: int) -> tuple[FastWeights | None, FastWeights | None]:
        """Meta-learned memories: those that project if only `memory` is written, and those that retention pulls to."""
        first = self.memory.first()
        if not self.self_modify:
            first = FastWeights(*(W[:, -1:] for W in first))
        fixed = None if self.self_modify else self.memory.fast(batch)
        return fixed, first if self.decay_to == "initial" else None

    def _readout(self, cast: Callable[[Tensor], Tensor]) -> Readout:
        share_H4, scale_HR = self.output_share_H4, self.eta_scale_HR
        return Readout(
            cast(self.eta_Hd),
            cast(self.eta_bias_H),
            None if scale_HR is None else 2 * cast(scale_HR).sigmoid(),
            cast(self.alpha_Hd),
            cast(self.alpha_bias_H),
            None if share_H4 is None else F.pad(cast(share_H4).sigmoid(), (0, 1), value=1.0),
        )
