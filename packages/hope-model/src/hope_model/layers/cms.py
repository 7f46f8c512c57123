"""Continuum memory system (Nested Learning, eq. 70-73): a chain of MLP levels, each rewritten at its own pace.

Letters: B sequences, T tokens, D width, h hidden width of a level.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from hope_model.config import CMSConfig, ModelConfig
from hope_model.layers.recording import is_recording
from hope_model.ops import one_token
from hope_model.ops.cms import LevelWeights, cms_bounded, cms_delta_rule, cms_gradient, cms_level, cms_written
from hope_model.ops.cms.fused import LevelRun, levels_read
from hope_model.precision import full_precision

ACTIVATION = "silu"


class LevelState(NamedTuple):
    """Fast delta of a level (None: still zero) and what has been seen since its last write."""

    delta: LevelWeights | None
    total: (
        LevelWeights | None
    )  # of the tokens already summed: their gradient, or the delta so far (delta rule)
    seen: tuple[tuple[Tensor, Tensor], ...]  # (inputs, teach signals) not yet summed
    waiting: Tensor | None  # inputs whose teach signal is not known yet
    origin: LevelWeights | None  # nested: where delta begins again with the next slower level's chunk


CMSState = tuple[LevelState, ...]


class Level(nn.Module):
    """Slow weights theta of one level."""

    def __init__(self, dim: int, hidden: int, std: float, out_std: float) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(hidden, dim) * std)
        self.down = nn.Parameter(torch.randn(dim, hidden) * out_std)

    def theta(self) -> LevelWeights:
        """The parameters as a value."""
        return LevelWeights(self.up, self.down)


class CMS(nn.Module):
    """All levels; level n is written every `chunks[n]` tokens.

    Wirings: `sequential` chains residual levels; `nested` is the same chain, but a level begins each chunk of the next
    slower one anew, from a start that moves by the mean write of every such chunk (Reptile, arXiv 1803.02999);
    `independent` gives every level the block's input and adds their outputs, weighted by head.
    """

    def __init__(self, config: ModelConfig, hidden: int, std: float, out_std: float) -> None:
        super().__init__()
        self.config: CMSConfig = config.cms
        self.chunks = config.cms.chunks()
        self.segment, self.width = min(self.chunks), hidden
        self.levels = nn.ModuleList(Level(config.dim, hidden, std, out_std) for _ in self.chunks)
        independent = config.cms.wiring == "independent"
        self.mix_LH = nn.Parameter(torch.ones(len(self.chunks), config.heads)) if independent else None

    def initial(self, batch: int) -> CMSState:
        """No fast delta."""
        del batch
        return tuple(LevelState(None, None, (), None, None) for _ in self.chunks)

    def forward(
        self, x_BTD: Tensor, state: "CMSState | CMSRun", *, teach: bool = False
    ) -> "tuple[Tensor, CMSState | CMSRun]":
        """The levels' output, without the residual; with `teach` the inputs are kept until their signal is known."""
        if isinstance(state, CMSRun):
            return (state.whole if torch.is_grad_enabled() else state.read)(x_BTD), state
        if self.mix_LH is None and not is_recording() and one_token.applies(x_BTD):
            chain = [(self._theta(n), old.delta) for n, old in enumerate(state)]
            y, given = one_token.cms_chain(x_BTD, chain)
            return y, tuple(map(self._kept, state, given)) if teach else state
        u = x_BTD
        states = []
        for n, old in enumerate(state):
            inputs = u if self.mix_LH is None else x_BTD
            states.append(self._kept(old, inputs) if teach else old)
            u = u + self._mixed(n, cms_level(inputs, self._theta(n), old.delta, ACTIVATION))
        return u - x_BTD, tuple(states)

    def _kept(self, level: LevelState, inputs: Tensor) -> LevelState:
        """These inputs wait for their signal too."""
        kept = inputs if self.config.second_order else inputs.detach()
        if level.waiting is not None:
            kept = torch.cat((level.waiting, kept), 1)
        return level._replace(waiting=kept)

    def _mixed(self, n: int, y_BTD: Tensor) -> Tensor:
        if self.mix_LH is None:
            return y_BTD
        by_head = y_BTD.view(*y_BTD.shape[:-1], self.mix_LH.shape[1], -1) * self.mix_LH[n, :, None]
        return by_head.flatten(-2).to(y_BTD.dtype)

    def _theta(self, n: int) -> LevelWeights:
        level = self.levels[n]
        assert isinstance(level, Level)  # noqa: S101
        return level.theta()

    def teach(
        self,
        state: CMSState,
        teach_BTD: Tensor,
        position: int,
        scales: tuple[float, ...],
        writes: tuple[bool, ...],
    ) -> CMSState:
        """Hand the waiting inputs their teach signals; levels whose chunk ends at `position` are written.

        Args:
            state: With as many waiting inputs as there are signals.
            teach_BTD: Clipped and gated teach signals.
            position: Tokens of the sequence whose signal is now known.
            scales: Strength of each level's writes.
            writes: Which levels may write.
        """
        with torch.set_grad_enabled(self.config.second_order and torch.is_grad_enabled()):
            return tuple(
                self._teach_level(n, old, self._mixed(n, teach_BTD), position, scales[n])
                if writes[n]
                else old._replace(waiting=None)
                for n, old in enumerate(state)
            )

    def _teach_level(
        self, n: int, old: LevelState, teach_BTD: Tensor, position: int, scale: float
    ) -> LevelState:
        assert old.waiting is not None  # noqa: S101
        level = old._replace(seen=(*old.seen, (old.waiting, teach_BTD)), waiting=None)
        return level if position % self.chunks[n] else self._write(n, level, position, scale)

    def _write(self, n: int, level: LevelState, position: int, scale: float) -> LevelState:
        delta, config, theta = self._sum(n, level, scale), self.config, self._theta(n)
        if not config.delta_rule:
            step, bound = scale * config.lr, config.delta_bound
            delta = cms_written(level.delta, delta, theta, step=step, retention=config.retention, bound=bound)
        elif config.delta_bound:
            delta = cms_bounded(delta, theta, config.delta_bound)
        origin = level.origin
        if self.config.wiring == "nested" and n + 1 < len(self.chunks) and not position % self.chunks[n + 1]:
            share = self.chunks[n] / self.chunks[n + 1]  # one over the writes since the last beginning
            if origin is None:
                delta = origin = LevelWeights(*(share * d for d in delta))
            else:
                delta = origin = LevelWeights(*(o.lerp(d, share) for o, d in zip(origin, delta, strict=True)))
        return LevelState(delta, None, (), None, origin)

    def settle(self, state: CMSState, scales: tuple[float, ...], least: int | None = None) -> CMSState:
        """Sum what former calls left behind, so that a stream's state stays bounded; exact at any time.

        Args:
            state: Of the last call.
            scales: Strength of each level's writes.
            least: Fewer tokens are left as they are; None: a segment.
        """
        settled, least = [], self.segment if least is None else least
        for n, level in enumerate(state):
            if sum(u.shape[1] for u, _ in level.seen) >= least:
                level = level._replace(total=self._sum(n, level, scales[n]), seen=())
            settled.append(level)
        return tuple(settled)

    def _sum(self, n: int, level: LevelState, scale: float) -> LevelWeights:
        """`total` with the tokens that were seen since: a mean within a segment, a sum over segments."""
        u = torch.cat([u for u, _ in level.seen], 1)
        signal = torch.cat([signal for _, signal in level.seen], 1)
        with full_precision(u) as cast:
            u, signal = cast(u), cast(signal)
            theta = LevelWeights(*(cast(W).expand(len(u), *W.shape) for W in self._theta(n)))
            weights = theta if level.delta is None else _add(theta, level.delta)
            if not self.config.second_order:
                weights = LevelWeights(*(W.detach() for W in weights))
            if self.config.delta_rule:
                start = level.total
                if start is None:
                    rho = self.config.retention
                    start = LevelWeights(*(rho * d for d in level.delta or map(torch.zeros_like, weights)))
                # A token behind a closed gate neither writes nor erases.
                rate_BT = signal.detach().any(-1) * (scale * self.config.lr / self.segment)
                twice = self.config.differentiable_twice
                return cms_delta_rule(u, signal, rate_BT.to(u.dtype), weights, start, ACTIVATION, twice=twice)
            gradient = cms_gradient(u, signal / self.segment, weights, ACTIVATION)
        return gradient if level.total is None else _add(level.total, gradient)


def _add(x: LevelWeights, y: LevelWeights) -> LevelWeights:
    return LevelWeights(*(a + b for a, b in zip(x, y, strict=True)))


class CMSRun:
    """All levels through the segments of one call, first order, in place of a `CMSState`.

    Reads come segment by segment, without history; `whole` then is the same for all tokens at once, with history.

    Args:
        cms: The layer.
        state: After earlier calls; no input waits for its signal.
        like_BTD: As all tokens' inputs will be, in the precision of products.
        scales: Strength of each level's writes.
        writes: Which levels may write.
    """

    def __init__(
        self, cms: CMS, state: CMSState, like_BTD: Tensor, scales: tuple[float, ...], writes: tuple[bool, ...]
    ) -> None:
        self.cms, self.scales, self.writes = cms, scales, writes
        self.before, self.like_BTD = cms.settle(state, scales, 1), like_BTD
        self.levels: list[LevelRun] = []
        self.outputs: list[Tensor] = []
        self.read_tokens = 0

    def read(self, x_BnD: Tensor) -> Tensor:
        """The next segment."""
        if not self.levels:  # not before: under FSDP2 weights are whole in the block's forward
            self.levels = [self._run(*both) for both in zip(self._thetas(), self.before, strict=True)]
        u = x_BnD
        for level in self.levels:
            u = u + level.read(u, self.read_tokens)
        self.read_tokens += x_BnD.shape[1]
        self.outputs.append(u - x_BnD)
        return self.outputs[-1]

    def whole(self, x_BTD: Tensor) -> Tensor:
        """All segments once more, to be differentiated."""
        return levels_read(x_BTD, torch.cat(self.outputs, 1), self.levels, self._thetas())

    def _thetas(self) -> list[LevelWeights]:
        return [self.cms._theta(n) for n in range(len(self.before))]

    def _run(self, theta: LevelWeights, level: LevelState) -> LevelRun:
        total = _times(self.cms.segment, level.total)
        return LevelRun(theta, level.delta, total, torch.empty_like(self.like_BTD))

    def teach(self, teach_BTD: Tensor, tokens: int, position: int) -> None:
        """Write the levels whose chunk ends at `position`: signals of the first `tokens` tokens are known."""
        config, segment = self.cms.config, self.cms.segment
        for n, (level, chunk) in enumerate(zip(self.levels, self.cms.chunks, strict=True)):
            if self.writes[n] and position % chunk == 0:
                rate = self.scales[n] * config.lr / segment
                level.write(teach_BTD, tokens, rate, config.retention, config.delta_bound)

    def state(self, teach_BTD: Tensor, tokens: int) -> CMSState:
        """What later calls go on from: inputs behind the first `tokens` wait for their signals."""
        after = []
        for level, old, writes in zip(self.levels, self.before, self.writes, strict=True):
            open_chunk = slice(level.unwritten, tokens)
            pieces = ((level.u_BTD[:, open_chunk], teach_BTD[:, open_chunk]),)
            seen = pieces if writes and level.unwritten < tokens else ()
            total = None if level.unwritten else old.total
            after.append(LevelState(level.delta, total, seen, level.u_BTD[:, tokens:], old.origin))
        return tuple(after)


def _times(factor: float, matrices: LevelWeights | None) -> LevelWeights | None:
    return None if matrices is None else LevelWeights(*(factor * W for W in matrices))
