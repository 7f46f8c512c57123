"""Continuum memory system (Nested Learning, eq. 70-73): a chain of MLP levels, each rewritten at its own pace.

Letters: B sequences, T tokens, D width, h hidden width of a level.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from hope_model.config import CMSConfig, ModelConfig
from hope_model.ops.cms import LevelWeights, cms_gradient, cms_level
from hope_model.precision import full_precision

ACTIVATION = "silu"


class LevelState(NamedTuple):
    """Fast delta of a level (None: still zero) and what has been seen since its last write."""

    delta: LevelWeights | None
    total: LevelWeights | None  # gradient of tokens already summed
    seen: tuple[tuple[Tensor, Tensor], ...]  # (inputs, teach signals) not yet summed
    waiting: Tensor | None  # inputs whose teach signal is not known yet


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
    """All levels; level n is written every `chunks[n]` tokens."""

    def __init__(self, config: ModelConfig, hidden: int, std: float, out_std: float) -> None:
        super().__init__()
        self.config: CMSConfig = config.cms
        self.chunks = config.cms.chunks()
        self.segment = min(self.chunks)
        self.levels = nn.ModuleList(Level(config.dim, hidden, std, out_std) for _ in self.chunks)

    def initial(self, batch: int) -> CMSState:
        """No fast delta."""
        del batch
        return tuple(LevelState(None, None, (), None) for _ in self.chunks)

    def forward(self, x_BTD: Tensor, state: CMSState, *, teach: bool = False) -> tuple[Tensor, CMSState]:
        """The chain's output minus its input; with `teach` the inputs are kept until their signal is known."""
        u = x_BTD
        states = []
        for level, old in zip(self.levels, state, strict=True):
            inputs = x_BTD if self.config.wiring == "independent" else u
            if teach:
                kept = inputs if self.config.second_order else inputs.detach()
                old = old._replace(waiting=kept if old.waiting is None else torch.cat((old.waiting, kept), 1))
            states.append(old)
            u = u + cms_level(inputs, self._theta(level), old.delta, ACTIVATION)
        return u - x_BTD, tuple(states)

    @staticmethod
    def _theta(level: nn.Module) -> LevelWeights:
        assert isinstance(level, Level)  # noqa: S101
        return level.theta()

    def teach(
        self, state: CMSState, teach_BTD: Tensor, position: int, teach_scale: float, writes: tuple[bool, ...]
    ) -> CMSState:
        """Hand the waiting inputs their teach signals; levels whose chunk ends at `position` are written.

        Args:
            state: With as many waiting inputs as there are signals.
            teach_BTD: Clipped and gated teach signals.
            position: Tokens of the sequence whose signal is now known.
            teach_scale: Global strength of the writes.
            writes: Which levels may write.
        """
        with torch.set_grad_enabled(self.config.second_order and torch.is_grad_enabled()):
            return tuple(
                self._teach_level(n, old, teach_BTD, position, teach_scale)
                if writes[n]
                else old._replace(waiting=None)
                for n, old in enumerate(state)
            )

    def _teach_level(
        self, n: int, old: LevelState, teach_BTD: Tensor, position: int, teach_scale: float
    ) -> LevelState:
        assert old.waiting is not None  # noqa: S101
        seen = (*old.seen, (old.waiting, teach_BTD / self.segment))
        if position % self.chunks[n] == 0:
            total = self._sum(n, old._replace(seen=seen))
            step = teach_scale * self.config.lr
            delta = LevelWeights(*(-step * g for g in total))
            if old.delta is not None:
                rho = self.config.retention
                delta = LevelWeights(
                    *(rho * before + new for before, new in zip(old.delta, delta, strict=True))
                )
            return LevelState(delta, None, (), None)
        return LevelState(old.delta, old.total, seen, None)

    def settle(self, state: CMSState) -> CMSState:
        """Sum what former calls left behind, so that a stream's state stays bounded; exact at any time."""
        settled = []
        for n, level in enumerate(state):
            if sum(u.shape[1] for u, _ in level.seen) >= self.segment:
                level = level._replace(total=self._sum(n, level), seen=())
            settled.append(level)
        return tuple(settled)

    def _sum(self, n: int, level: LevelState) -> LevelWeights:
        u = torch.cat([u for u, _ in level.seen], 1)
        signal = torch.cat([signal for _, signal in level.seen], 1)
        theta = self._theta(self.levels[n])
        with full_precision(u) as cast:
            batch = (len(u), 1, 1)
            weights = LevelWeights(*(cast(W).expand(*batch[:1], *W.shape) for W in theta))
            if level.delta is not None:
                weights = LevelWeights(*(W + d for W, d in zip(weights, level.delta, strict=True)))
            if not self.config.second_order:
                weights = LevelWeights(*(W.detach() for W in weights))
            gradient = cms_gradient(cast(u), cast(signal), weights, ACTIVATION)
        if level.total is None:
            return gradient
        return LevelWeights(*(a + b for a, b in zip(level.total, gradient, strict=True)))
