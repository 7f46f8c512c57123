"""The language model: one code path for training, evaluation and generation.

Letters: B sequences, T tokens, D width, V vocabulary, n tokens of one segment.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hope_model.blocks import Block
from hope_model.config import ModelConfig
from hope_model.layers.basic import linear
from hope_model.layers.cms import CMS, CMSState
from hope_model.precision import full_precision
from hope_model.state import BlockState, MemorySettings, Pending, State, Teach


class LanguageModel(nn.Module):
    """Embedding, blocks, norm, head: `model(tokens, state) -> (logits, state)`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.dim)
        nn.init.normal_(self.embed.weight, std=config.init_std)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.dim, eps=1e-6)
        self.head = linear(config.dim, config.vocab_size, config.init_std)
        if config.tied_embedding:
            self.head.weight = self.embed.weight
        cms = [block.channel for block in self._blocks() if isinstance(block.channel, CMS)]
        self.segment = cms[0].segment if cms else 0
        self.levels = len(cms[0].levels) if cms else 0

    def _blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def settings(self) -> MemorySettings:
        """How the configuration writes memories; the teach signal concerns models with CMS levels only."""
        cms = self.config.cms
        scale = cms.teach_scale if self.segment else 0.0
        return MemorySettings(scale, cms.teach_clip, cms.surprise_threshold)

    def initial(self, batch: int, settings: MemorySettings | None = None) -> State:
        """State before the first token of `batch` sequences."""
        blocks = tuple(block.initial(batch) for block in self._blocks())
        return State(0, blocks, None, None, settings or self.settings())

    def forward(self, tokens_BT: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Logits of every next token, and the state after the last token.

        Args:
            tokens_BT: int64 tokens; any split of a sequence into calls gives the same logits.
            state: From an earlier call; None begins a sequence.
        """
        if state is None:
            state = self.initial(len(tokens_BT))
        if not self._teaches(state):
            return self._run(tokens_BT, state)
        state = self._settle(state)
        outputs, t, T = [], 0, tokens_BT.shape[1]
        while t < T:
            state = self._teach(state, tokens_BT[:, t])
            end = min(T, t + self.segment - state.position % self.segment)
            piece = tokens_BT[:, t:end]
            logits, state = self._run(piece, state)
            state = state._replace(pending=_append(state.pending, piece, logits))
            outputs.append(logits)
            t = end
        return torch.cat(outputs, 1), state

    def _teaches(self, state: State) -> bool:
        return self.segment > 0 and state.settings.teach_scale > 0

    def _run(self, tokens_BT: Tensor, state: State) -> tuple[Tensor, State]:
        x_BTD = self.embed(tokens_BT)
        blocks = []
        for block, old in zip(self._blocks(), state.blocks, strict=True):
            x_BTD, new = block(x_BTD, old, state.settings)
            blocks.append(new)
        logits: Tensor = self.head(self.norm(x_BTD))
        position = state.position + tokens_BT.shape[1]
        return logits, state._replace(position=position, blocks=tuple(blocks))

    def _settle(self, state: State) -> State:
        return self._each_cms(state, lambda cms, old: cms.settle(old))

    def _each_cms(self, state: State, function: Callable[[CMS, CMSState], CMSState]) -> State:
        blocks = tuple(
            BlockState(
                old.mixer, function(block.channel, old.channel) if isinstance(block.channel, CMS) else None
            )
            for block, old in zip(self._blocks(), state.blocks, strict=True)
        )
        return state._replace(blocks=blocks)

    def _teach(self, state: State, next_B: Tensor) -> State:
        """The next token is known: give the pending tokens their teach signal, and write where a chunk ends."""
        if state.pending is None:
            return state
        settings, second = state.settings, self.config.cms.second_order
        with torch.set_grad_enabled(second and torch.is_grad_enabled()):
            targets_Bn = torch.cat((state.pending.tokens_Bn[:, 1:], next_B[:, None]), 1)
            signal = teach_signal(state.pending.logits_BnV, targets_Bn, self.head.weight)
            norm = signal.norm(dim=-1, keepdim=True)
            open_gate = (norm > settings.surprise_threshold).to(signal.dtype)
            signal = signal * (open_gate * (settings.teach_clip / norm.clamp(min=settings.teach_clip)))
        writes = tuple(settings.writes is None or f"cms.{n}" in settings.writes for n in range(self.levels))
        state = self._each_cms(
            state, lambda cms, old: cms.teach(old, signal, state.position, settings.teach_scale, writes)
        )
        before = state.teach or Teach(norm.new_zeros(()), norm.new_zeros(()), 0)
        count = before.tokens + norm.numel()
        teach = Teach(before.norm + norm.detach().sum(), before.hits + open_gate.detach().sum(), count)
        return state._replace(pending=None, teach=teach)


def teach_signal(logits_BnV: Tensor, targets_Bn: Tensor, head_VD: Tensor) -> Tensor:
    """Gradient of each token's loss at the last hidden state: (softmax - onehot) W_head (model.md 5)."""
    with full_precision(logits_BnV) as cast:
        p = F.softmax(cast(logits_BnV), -1)
        return p @ cast(head_VD) - cast(F.embedding(targets_Bn, head_VD))


def _append(pending: Pending | None, tokens_Bn: Tensor, logits_BnV: Tensor) -> Pending:
    if pending is None:
        return Pending(tokens_Bn, logits_BnV)
    return Pending(
        torch.cat((pending.tokens_Bn, tokens_Bn), 1), torch.cat((pending.logits_BnV, logits_BnV), 1)
    )
