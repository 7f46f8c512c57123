"""Titans with attention (arXiv 2501.00663, section 4): the long-term memory beside it (MAG) or as its context (MAC).

Letters: B sequences, T tokens, n tokens of one piece, S cached tokens, D width, H heads, d head width.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from hope_model.config import ModelConfig
from hope_model.layers.attention import Attention, AttentionState
from hope_model.layers.basic import to_width
from hope_model.layers.titans import Titans, TitansState
from hope_model.ops.deep_memory import MemoryState


class MAGState(NamedTuple):
    """Both branches."""

    attention: AttentionState
    memory: TitansState


class TitansMAG(nn.Module):
    """Memory as gate (4.2): o = W_o (norm(attention(x)) * sigmoid(norm(M(x)))), attention over a sliding window."""

    def __init__(self, config: ModelConfig, std: float, out_std: float) -> None:
        super().__init__()
        self.attention = Attention(config, std, out_std, config.memory.persistent)
        self.memory = Titans(config, std, std)
        self.attention_norm = nn.RMSNorm(config.dim, eps=1e-6)
        self.memory_norm = nn.RMSNorm(config.dim, eps=1e-6)

    def initial(self, batch: int) -> MAGState:
        """An empty cache and the meta-learned memory."""
        return MAGState(self.attention.initial(batch), self.memory.initial(batch))

    def forward(
        self, x_BTD: Tensor, state: MAGState, *, write: bool = True, chunk: int = 0
    ) -> tuple[Tensor, MAGState]:
        """Both branches read the same input."""
        y, attention = self.attention.attend(x_BTD, state.attention)
        m, memory = self.memory(x_BTD, state.memory, write=write, chunk=chunk)
        gated: Tensor = self.attention.out(
            self.attention_norm(y.to(x_BTD.dtype)) * self.memory_norm(m.to(x_BTD.dtype)).sigmoid()
        )
        return gated, MAGState(attention, memory)


class MACState(NamedTuple):
    """The memory; and of the segment at hand: the memory at its start, and what was attended to so far."""

    memory: TitansState
    start: MemoryState
    tail: Tensor  # of the retrieving stream's convolution
    k_BHSd: Tensor
    v_BHSd: Tensor
    position: int


class TitansMAC(nn.Module):
    """Memory as context (4.1), segments of `attention.window` tokens.

    h = M_start(x), the memory as it was at the segment's start; y = attention over persistent tokens, h and x of the
    segment, each token seeing its own and earlier ones; the memory is written with y; o = y * sigmoid(norm(M(y))).
    The paper lets every token of a segment see all of h, and reads M after the whole segment is written: both would
    show a token its successors.
    """

    def __init__(self, config: ModelConfig, std: float, out_std: float) -> None:
        super().__init__()
        self.segment = config.attention.window
        self.attention = Attention(config, std, out_std, config.memory.persistent)
        self.memory = Titans(config, std, std)
        self.input_norm = nn.RMSNorm(config.dim, eps=1e-6)
        self.gate_norm = nn.RMSNorm(config.dim, eps=1e-6)

    def initial(self, batch: int) -> MACState:
        """The meta-learned memory and an empty segment."""
        memory, empty = self.memory.initial(batch), self.attention.initial(batch)
        return MACState(memory, memory.memory, memory.tail, empty.k_BHSd, empty.v_BHSd, 0)

    def forward(
        self, x_BTD: Tensor, state: MACState, *, write: bool = True, chunk: int = 0
    ) -> tuple[Tensor, MACState]:
        """A piece of a segment at a time."""
        outputs, t, T = [], 0, x_BTD.shape[1]
        while t < T:
            end = min(T, t + self.segment - state.position % self.segment)
            o, state = self._piece(x_BTD[:, t:end], state, write, chunk)
            outputs.append(o)
            t = end
        return torch.cat(outputs, 1), state

    def _piece(self, x_BnD: Tensor, state: MACState, write: bool, chunk: int) -> tuple[Tensor, MACState]:
        if state.position % self.segment == 0:
            state = state._replace(
                start=state.memory.memory, k_BHSd=state.k_BHSd[..., :0, :], v_BHSd=state.v_BHSd[..., :0, :]
            )
        h, retrieving = self.memory(x_BnD, TitansState(state.start, state.tail), write=False)
        position = state.position % self.segment
        q, k, v = self.attention.heads_of(x_BnD, position)
        _, k_h, v_h = self.attention.heads_of(h, position)
        # Cached keys of x and h lie in turn, so that a cache grows at its end.
        k_BHSd = torch.cat((state.k_BHSd.to(k.dtype), _in_turn(k, k_h)), -2)
        v_BHSd = torch.cat((state.v_BHSd.to(v.dtype), _in_turn(v, v_h)), -2)
        query = torch.arange(position, position + x_BnD.shape[1], device=x_BnD.device)[:, None]
        mask = torch.arange(k_BHSd.shape[-2], device=x_BnD.device) // 2 <= query
        o = self.attention.read(q, *self.attention.with_persistent(k_BHSd, v_BHSd, mask))
        y: Tensor = self.attention.out(to_width(o)).to(x_BnD.dtype)
        m, memory = self.memory(self.input_norm(y), state.memory, write=write, chunk=chunk)
        gated = y * self.gate_norm(m.to(y.dtype)).sigmoid()
        after = state.position + x_BnD.shape[1]
        return gated, MACState(memory, state.start, retrieving.tail, k_BHSd, v_BHSd, after)


def _in_turn(x_BHnd: Tensor, h_BHnd: Tensor) -> Tensor:
    return torch.stack((x_BHnd, h_BHnd), -2).flatten(-3, -2)
