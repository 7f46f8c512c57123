"""What every task is given, and the way from a task's items to its result."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from hope_data.errors import InputError
from hope_data.shards import Split
from hope_data.tokenizer import Tokenizer
from hope_eval.progress import Display
from hope_eval.results import Items, TaskResult, fingerprint
from hope_eval.scoring.scorer import Scorer, Tokens


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
        display: progress.
    """

    scorer: Scorer
    tokenizer: Tokenizer
    domains: Mapping[str, Path]
    length: int
    limit: int | None
    seed: int
    display: Display

    def split(self, domain: str, name: str = "test") -> Split:
        """Open a split of a domain; its tokens are known to be the tokenizer's."""
        return Split.open(self.domains[domain], name, self.tokenizer)

    def rng(self, *names: str) -> np.random.Generator:
        """Draws that depend on the seed and these names only, so that one domain does not move another's."""
        return np.random.default_rng([self.seed, *(crc32(name.encode()) for name in names)])

    def limited(self, count: int) -> int:
        """`count`, or the limit if that is lower."""
        return count if self.limit is None else min(count, self.limit)

    def windows(self, tokens: Tokens, size: int) -> list[Tokens]:
        """Cut a document into windows of up to `size` tokens, each after an end-of-text token as context."""
        cuts = [tokens[start : start + size] for start in range(0, len(tokens), size)]
        return [np.concatenate(([self.tokenizer.eos_id], cut)).astype(np.int64) for cut in cuts]


def refuse_rereading(scorer: Scorer, task: str) -> None:
    """Where every token is scored, reading twice would show the answers.

    Raises:
        InputError: memorisation is to read more than once, or with answers.
    """
    asked = scorer.memorize
    if asked and (asked.steps > 1 or asked.oracle):
        raise InputError(
            f"{task}: more than one reading would show what is scored; leave out steps and oracle"
        )


class Stopwatch:
    """Measures what a task costs: tokens fed and seconds, from when it is made."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self._tokens, self._start = scorer.tokens, time.monotonic()

    def stop(self) -> tuple[int, float]:
        """Tokens and seconds since the start."""
        return self._scorer.tokens - self._tokens, round(time.monotonic() - self._start, 3)


class Clock(Stopwatch):
    """A stopwatch with a progress bar."""

    def __init__(self, context: Context, name: str, planned: int) -> None:
        super().__init__(context.scorer)
        context.display.begin(name, planned)


def finish(
    context: Context,
    clock: Clock,
    *,
    task: str,
    version: int,
    settings: Mapping[str, Any],
    items: Items,
    identity: object,
    chance: Mapping[str, float] | None = None,
    notes: list[str] | None = None,
) -> TaskResult:
    """Put a result together; `identity` is the items' content as nested lists, which pairs files."""
    tokens, seconds = clock.stop()
    return TaskResult(
        task=task,
        version=version,
        settings=dict(settings),
        seed=context.seed,
        items_sha256=fingerprint([task, version, identity]),
        tokens=tokens,
        seconds=seconds,
        metrics=items.metrics(chance),
        items=items,
        notes=notes or [],
    )
