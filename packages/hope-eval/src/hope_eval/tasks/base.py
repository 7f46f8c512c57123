"""What every evaluator is: its options, the model it loads, and how its results are put together."""

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from torch import Tensor

from hope_data.shards import Split
from hope_data.tokenizer import Tokenizer
from hope_eval.results import Items, Metric, TaskResult, fingerprint
from hope_eval.scoring.load import Loaded, load
from hope_eval.scoring.memorize import Memorize
from hope_eval.scoring.scorer import Scorer, Tokens


class Task(ABC):
    """One evaluator.

    A subclass is a frozen dataclass whose fields are its options, named as on the command line. It refuses wrong
    options when it is made, before any model is loaded.
    """

    @abstractmethod
    def run(self, loaded: Loaded, scorer: Scorer) -> list[TaskResult]:
        """Ask everything of the scorer, which may adapt or memorise; `loaded` says what model it is."""

    def load(self, checkpoint: Path, tokenizer: Path | None, device: str) -> Loaded:
        """Load the model, and check that it can be asked."""
        return load(checkpoint, tokenizer, device)

    def refuse(self, memorize: Memorize) -> None:
        """Raise InputError where memorising in this way would show the answers."""
        del memorize

    def window(self, loaded: Loaded) -> int:
        """Return the length of sequences for which the cost of an adaptation is counted."""
        return loaded.length

    def training_text(self, loaded: Loaded) -> list[Tensor]:
        """Return sequences of training text, for adaptations that take statistics of it."""
        del loaded
        return []

    def adapted(self) -> "Task":
        """Return what is run again with an adaptation at test time."""
        return self

    def passes(self, adaptations: int) -> int:
        """Return how often the scorer is told to begin, for the display; 0: not known."""
        del adaptations
        return 0

    def is_headline(self, metric: str, group: str) -> bool:
        """Whether a number is printed when the task is done."""
        del metric
        return group == "all"


@dataclass(frozen=True)
class Context:
    """The model and the held-out text of one evaluation.

    Attributes:
        scorer: the model.
        tokenizer: the one it was trained with.
        domains: folder of shards per domain.
        length: T the model was trained with.
        limit: most documents per domain, choices in all, passkey prompts per length; None: the task's own.
        seed: of everything that is drawn.
        documents: hashes of the only documents to score; None: all.
    """

    scorer: Scorer
    tokenizer: Tokenizer
    domains: Mapping[str, Path]
    length: int
    limit: int | None
    seed: int
    documents: frozenset[str] | None = None

    def split(self, domain: str, name: str = "test") -> Split:
        """Open a split of a domain; its tokens are known to be the tokenizer's."""
        return Split.open(self.domains[domain], name, self.tokenizer)

    def rng(self, *names: str) -> np.random.Generator:
        """Draws that depend on the seed and these names only, so that one domain does not move another's."""
        return np.random.default_rng([self.seed, *(crc32(name.encode()) for name in names)])

    def limited(self, count: int) -> int:
        """Return `count`, or the limit if that is lower."""
        return count if self.limit is None else min(count, self.limit)

    def windows(self, tokens: Tokens, size: int) -> list[Tokens]:
        """Cut a document into windows of up to `size` tokens, each after what stands before a text as context."""
        cuts = [tokens[start : start + size] for start in range(0, len(tokens), size)]
        return [np.concatenate(([self.tokenizer.begin_id], cut)).astype(np.int64) for cut in cuts]


class Stopwatch:
    """Measures what a task costs, tokens fed and seconds, and shows its progress.

    Args:
        scorer: counts the tokens.
        name: shown beside the bar.
        planned: about how many tokens will be fed; None: not known yet.
    """

    def __init__(self, scorer: Scorer, name: str, planned: int | None) -> None:
        self._scorer = scorer
        self._tokens, self._start, self._cpu = scorer.tokens, time.monotonic(), time.process_time()
        scorer.begin(name, planned)

    def finish(
        self,
        *,
        task: str,
        version: int,
        settings: Mapping[str, Any],
        seed: int,
        items: Items,
        identity: object,
        chance: Mapping[str, float] | None = None,
        metrics: Sequence[Metric] | None = None,
        notes: Sequence[str] = (),
    ) -> TaskResult:
        """Put a result together.

        Args:
            task: its name.
            version: raised whenever items or scoring change.
            settings: everything that determines the items, beside data and seed.
            seed: of the items.
            items: their scores.
            identity: the items' content as nested lists; results of equal identity are compared in pairs.
            chance: what guessing gives, by metric.
            metrics: in place of every score in every group.
            notes: what a reader has to know.
        """
        return TaskResult(
            task=task,
            version=version,
            settings=dict(settings),
            seed=seed,
            items_sha256=fingerprint(identity),
            tokens=self._scorer.tokens - self._tokens,
            seconds=round(time.monotonic() - self._start, 3),
            cpu_seconds=round(time.process_time() - self._cpu, 3) if self._scorer.device == "cpu" else 0.0,
            metrics=list(items.metrics(chance) if metrics is None else metrics),
            items=items,
            notes=list(notes),
        )
