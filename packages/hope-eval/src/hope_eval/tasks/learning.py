"""How a model learns a stream, part after part; whatever is learned, the scorer's own model stays as it is.

memorize  its state reads the stream and is carried on; no weight changes
cms       as memorize, but only the CMS's fast weights are carried on: mixers begin each text anew
train     AdamW on a copy of the weights
replay    train, and beside every window one of the parts before (a reservoir, Vitter 1985, as large as the state)
ewc       train, and held to the weights before by their importance (elastic weight consolidation, Kirkpatrick
          et al. 2017, eq. 3, with one sum of Fisher diagonals for all parts, Schwarz et al. 2018)
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hope_data.errors import InputError
from hope_eval.results import TaskResult
from hope_eval.scoring.load import HFModel, HopeModel
from hope_eval.scoring.memorize import Memorize
from hope_eval.scoring.paired import both
from hope_eval.scoring.scorer import Scorer, Tokens
from hope_model import counting
from hope_model.state import State

STATES, WEIGHTS = ("memorize", "cms"), ("train", "replay", "ewc")
TOKEN_BYTES = 2  # of a replayed token, as shards store it


@dataclass(frozen=True)
class Learning:
    """How a stream is learned.

    Attributes:
        how: one of `STATES` or `WEIGHTS`.
        lr: of AdamW.
        window: tokens of a training window.
        penalty: strength of `ewc`, lambda of eq. 3.
    """

    how: str = "memorize"
    lr: float = 1e-4
    window: int = 512
    penalty: float = 1e6

    def __post_init__(self) -> None:
        """Refuse a way that does not exist."""
        if self.how not in (*STATES, *WEIGHTS):
            raise InputError(f"--learn {self.how}: choose {', '.join((*STATES, *WEIGHTS))} or each")


class Learner:
    """A model that learns a stream in one way.

    Attributes:
        memory_bytes: kept from one part to the next beside the weights.
    """

    def __init__(self, scorer: Scorer, learning: Learning, seed: int = 0) -> None:
        model = scorer.model
        if isinstance(model, HFModel):
            raise InputError("continual: only our own models learn streams here")
        if learning.how in WEIGHTS and not isinstance(model, HopeModel):
            raise InputError(
                f"continual --learn {learning.how}: --adapt learns from the state; use --learn memorize"
            )
        if learning.how in STATES and model.max_length is not None:
            raise InputError(
                f"continual --learn {learning.how}: full attention has no bounded state; use --learn train"
            )
        if learning.how == "cms" and not (isinstance(model, HopeModel) and can_carry_cms(model)):
            raise InputError("continual --learn cms: this model has no CMS whose signal is the output's")
        self.steps = scorer.memorize.steps if scorer.memorize else 1
        self.learning = learning
        self.state: Any = None
        self.scorer = Scorer(copy.copy(model), scorer.device, scorer.batch_tokens, scorer.advance)
        self.memory_bytes = 0
        if isinstance(model, HopeModel) and learning.how in (*STATES, "replay"):
            self.memory_bytes = counting.state_bytes(model.model.config, learning.window)
        if learning.how in WEIGHTS and isinstance(self.scorer.model, HopeModel):
            inner = copy.deepcopy(self.scorer.model.model)
            self.scorer.model.model = inner
            self.optimizer = torch.optim.AdamW(inner.parameters(), lr=learning.lr, weight_decay=0.0)
            self._rng = np.random.default_rng(seed)
            self._replayed: list[Tensor] = []
            self._seen = 0
            self._importance: list[tuple[Tensor, Tensor]] = []  # of each parameter, and where it was

    def learn(self, tokens_T: Tokens) -> None:
        """Read a part of the stream: once, or as often as memorisation wants."""
        if self.learning.how in STATES:
            self._read(tokens_T)
            return
        rows = [
            torch.as_tensor(tokens_T[start : start + self.learning.window + 1], device=self.scorer.device)[
                None
            ]
            for start in range(0, len(tokens_T) - 1, self.learning.window)
        ]
        before = list(self._replayed)
        for row in rows:
            self._step(row, before)
            if self.learning.how == "replay":
                self._keep(row)
        if self.learning.how == "ewc":
            self._weigh(rows)

    def _read(self, tokens_T: Tokens) -> None:
        for _ in range(self.steps):
            for _, state in self.scorer.stream_logp(tokens_T, self.state):
                self.state = state
        if self.learning.how == "cms" and self.state is not None:
            assert isinstance(self.scorer.model, HopeModel)  # noqa: S101
            self.state = only_cms(self.scorer.model, self.state)

    def _step(self, row: Tensor, before: list[Tensor]) -> None:
        model = self._model.train()
        loss = self._loss(row)
        if before:
            loss = (loss + self._loss(before[self._rng.integers(len(before))])) / 2
        loss.backward()  # type: ignore[no-untyped-call]
        for parameter, (fisher, anchor) in zip(model.parameters(), self._importance, strict=False):
            if parameter.grad is not None:
                parameter.grad += self.learning.penalty * fisher * (parameter.detach() - anchor)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        model.eval()

    def _loss(self, row: Tensor) -> Tensor:
        logits, _ = self._model(row[:, :-1])
        self.scorer.advance(row.shape[1] - 1)
        return F.cross_entropy(logits[0].float(), row[0, 1:])

    def _keep(self, row: Tensor) -> None:
        """Keep every window seen with equal probability, as many as fit."""
        room = max(1, self.memory_bytes // (TOKEN_BYTES * self.learning.window))
        self._seen += 1
        if len(self._replayed) < room:
            self._replayed.append(row)
        elif (place := self._rng.integers(self._seen)) < room:
            self._replayed[place] = row

    def _weigh(self, rows: list[Tensor]) -> None:
        """Add the part's Fisher diagonal, of one draw a window: the text itself; the weights now are the anchor."""
        parameters = list(self._model.parameters())
        fishers = [fisher for fisher, _ in self._importance] or [torch.zeros_like(p) for p in parameters]
        for row in rows:
            self._loss(row).backward()  # type: ignore[no-untyped-call]
            for fisher, parameter in zip(fishers, parameters, strict=True):
                if parameter.grad is not None:
                    fisher += parameter.grad**2 / len(rows)
            self.optimizer.zero_grad(set_to_none=True)
        self._importance = [(f, p.detach().clone()) for f, p in zip(fishers, parameters, strict=True)]
        self.memory_bytes = sum(2 * p.numel() * p.element_size() for p in parameters)

    @property
    def _model(self) -> torch.nn.Module:
        assert isinstance(self.scorer.model, HopeModel)  # noqa: S101
        return self.scorer.model.model

    def nats(self, tokens_T: Tokens) -> float:
        """Of a held-out document, read from what has been learned; nothing of it is kept."""
        return -float(sum(logp.sum() for logp, _ in self.scorer.stream_logp(tokens_T, self.state)))


def can_carry_cms(model: HopeModel) -> bool:
    """Whether it has a CMS, and its writes do not need the blocks' states of before."""
    return model.model.levels > 0 and model.model.config.cms.signal == "output"


def only_cms(model: HopeModel, state: State) -> State:
    """Return a state whose mixers have seen nothing, with the fast weights of another's CMS."""
    fresh = model.model.initial(1, model.settings)
    blocks = tuple(
        new._replace(channel=old.channel) for new, old in zip(fresh.blocks, state.blocks, strict=True)
    )
    return state._replace(blocks=blocks)


def each(
    scorer: Scorer, learning: Learning, run: Callable[[Scorer, Learning], TaskResult]
) -> list[TaskResult]:
    """Run in every way that the model can learn.

    By its memories, frozen and written, or by its state where it has none to freeze (neither where full attention
    keeps everything), by its CMS alone, and by training in each of its ways.
    """
    model, results = scorer.model, []

    def way(how: str) -> Learning:
        return Learning(how, learning.lr, learning.window, learning.penalty)

    if isinstance(model, HopeModel) and model.max_length is None:

        def read(asked: Scorer) -> list[TaskResult]:
            return [run(asked, way("memorize"))]

        results = both(scorer, Memorize(), read)[0] if model.memories else read(scorer)
        if can_carry_cms(model):
            results.append(run(scorer, way("cms")))
    return [*results, *(run(scorer, way(how)) for how in WEIGHTS)]
