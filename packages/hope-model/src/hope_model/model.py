"""The language model: one code path for training, evaluation and generation.

Letters: B sequences, T tokens, D width, V vocabulary, n tokens of one segment.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from hope_model.blocks import Block
from hope_model.config import ModelConfig
from hope_model.errors import InputError
from hope_model.layers.basic import linear
from hope_model.layers.cms import CMS, CMSRun, CMSState
from hope_model.layers.recording import Tape, recording
from hope_model.layers.rotary import same_angles
from hope_model.ranges import shown
from hope_model.state import BlockState, MemorySettings, Pending, State, Teach, detach
from hope_model.state_check import check_batch, check_range, check_settings, check_state
from hope_model.teach import Trace, gated, layer_signals, output_signal
from hope_model.tree import tree_map


class LanguageModel(nn.Module):
    """Embedding, blocks, norm, head: `model(tokens, state) -> (logits, state)`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.dim)
        nn.init.normal_(self.embed.weight, std=config.init_std)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.head = linear(config.dim, config.vocab_size, config.init_std)
        if config.tied_embedding:
            self.head.weight = self.embed.weight
        cms = [block.channel for block in self._blocks() if isinstance(block.channel, CMS)]
        self.segment = cms[0].segment if cms else 0
        self.levels = len(cms[0].levels) if cms else 0
        self.level_width = cms[0].width if cms else 0
        self.fused = bool(cms) and config.cms.fused
        # Blocks are called once with history, and touch their weights in their own forward alone.
        self.by_block = self.fused or not cms
        self.keeps_products = True  # not where blocks are computed again in the backward

    def _blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def settings(self) -> MemorySettings:
        """How the configuration writes memories; the teach signal concerns models with CMS levels only."""
        cms = self.config.cms
        scale = cms.teach_scale if self.segment else 0.0
        return MemorySettings(scale, cms.teach_clip, cms.surprise_threshold)

    def initial(self, batch: int, settings: MemorySettings | None = None) -> State:
        """State before the first token of `batch` sequences."""
        settings = self.settings() if settings is None else settings
        check_batch(batch)
        check_settings(settings, self.levels)
        blocks = tuple(block.initial(batch) for block in self._blocks())
        return State(0, blocks, None, None, settings)

    def _begin(self, batch: int, settings: MemorySettings | None) -> State:
        """`initial`, but where blocks stand alone they make their memories in their forward."""
        if not self.by_block:
            return self.initial(batch, settings)
        settings = self.settings() if settings is None else settings
        check_settings(settings, self.levels)
        return State(0, tuple(block.begin(batch) for block in self._blocks()), None, None, settings)

    def forward(
        self,
        tokens_BT: Tensor,
        state: State | None = None,
        hidden: list[tuple[Tensor, ...]] | None = None,
        settings: MemorySettings | None = None,
    ) -> tuple[Tensor, State]:
        """Logits of every next token, and the state after the last token.

        Args:
            tokens_BT: int64 tokens; any split of a sequence into calls gives the same logits.
            state: From an earlier call; None begins a sequence.
            hidden: takes every block's output [B, n, D], one tuple for each segment.
            settings: How memories are written, where a sequence begins; a state has its own.

        Raises:
            InputError: The state is of another model, batch, precision or device; the message names the tensor. Or
                there is no token.
        """
        self.check_tokens(tokens_BT)
        if state is None:
            state = self._begin(len(tokens_BT), settings)
        elif not torch.compiler.is_compiling():
            self.check(state, len(tokens_BT))
        if not self._teaches(state):
            state = self._forget(state)
            logits, state, whole = self._run(tokens_BT, state)
            if hidden is not None:
                hidden.append(whole.outputs)
            return logits, state
        scales = state.settings.scales(self.levels)
        if self.fused and tokens_BT.shape[1] > self.segment - state.position % self.segment:
            return self._fused(tokens_BT, state, hidden)
        state = self._each_cms(state, lambda _, cms, old: cms.settle(old, scales))
        outputs, t, T, trace = [], 0, tokens_BT.shape[1], None
        while t < T:
            state = self._teach(state, tokens_BT[:, t], trace)
            end = min(T, t + self.segment - state.position % self.segment)
            logits, after, trace = self._run(tokens_BT[:, t:end], state)
            if hidden is not None:
                hidden.append(trace.outputs)
            if end - t < self.segment:
                trace = None
            state = after._replace(pending=self._pend(state, tokens_BT[:, t:end], logits))
            outputs.append(logits)
            t = end
        return torch.cat(outputs, 1), state

    def _fused(
        self, tokens_BT: Tensor, state: State, hidden: list[tuple[Tensor, ...]] | None
    ) -> tuple[Tensor, State]:
        """`forward` of several segments, first order: segments without history, then all tokens at once with it.

        The first pass makes every write. In the second the deltas are constants, so that projections, reads and
        their backward take all tokens in one product.
        """
        (B, T), weight = tokens_BT.shape, self.head.weight
        before = self._teach(state, tokens_BT[:, 0], None)
        kind, dtype = weight.device.type, weight.dtype
        if torch.is_autocast_enabled(kind) and dtype != torch.float64:
            dtype = torch.get_autocast_dtype(kind)
        scales, writes = state.settings.scales(self.levels), self._writes(state)
        history, outputs, t = torch.is_grad_enabled(), [], 0
        tape = Tape() if history and self.keeps_products else None
        with torch.no_grad(), recording(tape):
            teach_BTD = weight.new_empty(B, T, self.config.dim, dtype=dtype)
            after = self._each_cms(
                detach(before), lambda _, cms, old: CMSRun(cms, old, teach_BTD, scales, writes)
            )
            start = after.blocks
            while True:
                end = min(T, t + self.segment - after.position % self.segment)
                logits, after, trace = self._run(tokens_BT[:, t:end], after)
                if not history:
                    outputs.append((logits, trace.outputs))
                if end == T:
                    break
                raw = output_signal(logits, tokens_BT[:, t + 1 : end + 1], weight)
                (teach_BTD[:, t:end],), after = self._gated(after, (raw,))
                for block in after.blocks:
                    block.channel.teach(teach_BTD, end, after.position)
                t = end
            pending = Pending(tokens_BT[:, t:], logits, None)
            channels = [block.channel.state(teach_BTD, t) for block in after.blocks]
        if history:
            torch.clear_autocast_cache()  # else the weights that were cast without history would get no gradient
            runs = zip(before.blocks, start, strict=True)
            with_runs = tuple(BlockState(old.mixer, run.channel) for old, run in runs)
            with recording(tape):
                logits, whole, trace = self._run(tokens_BT, before._replace(blocks=with_runs))
            after = after._replace(blocks=whole.blocks)
            outputs.append((logits, trace.outputs))
        if hidden is not None:
            hidden += [layers for _, layers in outputs]
        blocks = zip(after.blocks, channels, strict=True)
        state = after._replace(
            blocks=tuple(BlockState(block.mixer, channel) for block, channel in blocks), pending=pending
        )
        return torch.cat([logits for logits, _ in outputs], 1), state

    @staticmethod
    def check_tokens(tokens_BT: Tensor) -> None:
        """Raise `InputError` unless these are whole numbers [B, T], one at least."""
        if not isinstance(tokens_BT, Tensor):
            raise InputError(f"tokens are {shown(tokens_BT)}; give a tensor [sequences, tokens] of int64")
        if tokens_BT.dim() != 2 or not tokens_BT.numel() or tokens_BT.dtype not in (torch.int64, torch.int32):
            raise InputError(
                f"tokens are {tokens_BT.dtype} of shape {list(tokens_BT.shape)}; "
                "give int64 of shape [sequences, tokens], one of each at least"
            )

    def check(self, state: State, batch: int | None = None) -> None:
        """Raise `InputError`, which names the tensor and both shapes, unless a state fits this model and batch."""
        check_state(state, self.config, self.level_width, self.embed.weight, batch)

    def _teaches(self, state: State) -> bool:
        return self.segment > 0 and state.settings.teach_scale > 0

    def _forget(self, state: State) -> State:
        """Drop the tokens that wait for their successor: the next one will not teach, and a later one must not."""
        if state.pending is None:
            return state
        state = self._each_cms(state, lambda _, __, old: tuple(x._replace(waiting=None) for x in old))
        return state._replace(pending=None)

    def _run(self, tokens_BT: Tensor, state: State) -> tuple[Tensor, State, Trace]:
        try:
            x_BTD = self.embed(tokens_BT)
        except IndexError:
            check_range("tokens", tokens_BT, len(self.embed.weight))
            raise
        if torch.is_grad_enabled() and not x_BTD.requires_grad and self.config.cms.signal == "layer":
            x_BTD.requires_grad_()  # frozen weights: the signal still needs gradients of activations
        blocks, outputs = [], []
        with same_angles():
            for block, old in zip(self._blocks(), state.blocks, strict=True):
                x_BTD, new = block(x_BTD, old, state.settings)
                blocks.append(new)
                outputs.append(x_BTD)
        logits: Tensor = self.head(self.norm(x_BTD))
        state = state._replace(position=state.position + tokens_BT.shape[1], blocks=tuple(blocks))
        return logits, state, Trace(tuple(outputs), logits)

    def _pend(self, before: State, tokens_Bn: Tensor, logits_BnV: Tensor) -> Pending:
        """These tokens too wait for their successor: one segment's at most."""
        by_layer = self.config.cms.signal == "layer"
        old = before.pending
        if old is None:
            return Pending(tokens_Bn, None if by_layer else logits_BnV, before.blocks if by_layer else None)
        if old.logits_BnV is not None:
            logits_BnV = torch.cat((old.logits_BnV, logits_BnV), 1)
        return Pending(torch.cat((old.tokens_Bn, tokens_Bn), 1), None if by_layer else logits_BnV, old.start)

    def _each_cms(self, state: State, function: Callable[[int, CMS, CMSState], CMSState | CMSRun]) -> State:
        blocks = tuple(
            BlockState(
                old.mixer, function(n, block.channel, old.channel) if isinstance(block.channel, CMS) else None
            )
            for n, (block, old) in enumerate(zip(self._blocks(), state.blocks, strict=True))
        )
        return state._replace(blocks=blocks)

    def _teach(self, state: State, next_B: Tensor, trace: Trace | None) -> State:
        """The next token is known: give the pending tokens their teach signal, and write where a chunk ends."""
        pending, settings, position = state.pending, state.settings, state.position
        if pending is None or (pending.logits_BnV is None and position % self.segment):
            return state
        second = self.config.cms.second_order and torch.is_grad_enabled()
        with torch.set_grad_enabled(second):
            targets_Bn = torch.cat((pending.tokens_Bn[:, 1:], next_B[:, None]), 1)
            if pending.logits_BnV is not None:
                raw: tuple[Tensor, ...] = (output_signal(pending.logits_BnV, targets_Bn, self.head.weight),)
            else:
                raw = self._layer_signals(state, pending, targets_Bn, trace, second)
            signals, state = self._gated(state, raw)
        writes, scales = self._writes(state), settings.scales(self.levels)
        state = self._each_cms(
            state, lambda n, cms, old: cms.teach(old, signals[n % len(signals)], position, scales, writes)
        )
        return state._replace(pending=None)

    def _writes(self, state: State) -> tuple[bool, ...]:
        writes = state.settings.writes
        return tuple(writes is None or f"cms.{n}" in writes for n in range(self.levels))

    def _gated(self, state: State, raw: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], State]:
        """Signals as they are written, and the state that has counted them."""
        signals, norm, hits = gated(raw, state.settings)
        before = state.teach or Teach(norm.new_zeros(()), (norm.new_zeros(()),) * self.levels, 0)
        teach = Teach(
            before.norm + norm,
            tuple(old + hits * write for old, write in zip(before.hits, self._writes(state), strict=True)),
            before.signals + sum(signal.shape[:-1].numel() for signal in signals),
        )
        return signals, state._replace(teach=teach)

    def _layer_signals(
        self, state: State, pending: Pending, targets_Bn: Tensor, trace: Trace | None, second: bool
    ) -> tuple[Tensor, ...]:
        live = trace is not None and trace.logits_BnV.requires_grad
        if trace is None or not live:
            trace = self._replay(state, pending, second)
        return layer_signals(trace, targets_Bn, differentiable=second, keep_graph=live)

    def _replay(self, state: State, pending: Pending, second: bool) -> Trace:
        """The pending segment once more, with history: it came in several calls, or without gradients."""
        assert pending.start is not None  # noqa: S101
        before = state._replace(blocks=pending.start, pending=None, teach=None)
        with torch.inference_mode(False), torch.enable_grad():
            # Inference mode's tensors cannot be kept for a backward; their copies can.
            tokens, before = tree_map(
                lambda x: x.clone() if x.is_inference() else x, (pending.tokens_Bn, before)
            )
            return self._run(tokens, before if second else detach(before))[2]
