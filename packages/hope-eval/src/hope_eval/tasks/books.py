"""Loss by position over whole books: does a model still gain from what it read long ago?

Each text is read once from its beginning, state carried, in nats per token by position (0-255, 256-511, 512-1023,
... tokens) and in bits per byte of the whole.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from hope_data.errors import InputError
from hope_eval.results import Items, TaskResult, fingerprint, rounded
from hope_eval.scoring.load import Loaded
from hope_eval.scoring.memorize import Memorize, refuse_rereading
from hope_eval.scoring.scorer import Scorer
from hope_eval.scoring.tokenizers import TextTokenizer
from hope_eval.tasks.base import Stopwatch
from hope_eval.tasks.texts import TextTask, tokens_of

VERSION, FIRST = 1, 256


@dataclass(frozen=True)
class Books(TextTask):
    """Whole texts, each read once.

    Attributes:
        text: files, or folders of them.
        max_tokens: of each text at most; 0: as many as the model allows.
    """

    text: Sequence[Path]
    max_tokens: int = 0

    def refuse(self, memorize: Memorize) -> None:
        refuse_rereading(memorize, "books")

    def run(self, loaded: Loaded, scorer: Scorer) -> list[TaskResult]:
        return run(scorer, loaded.tokenizer, self.texts, self.max_tokens)


def run(scorer: Scorer, tokenizer: TextTokenizer, texts: dict[str, str], most: int = 0) -> list[TaskResult]:
    """Read every text once.

    Args:
        scorer: the model.
        tokenizer: its own.
        texts: by name.
        most: tokens of each text at most; 0: as many as the model allows.
    """
    limit = scorer.model.max_length
    if limit is not None and most > limit:
        raise InputError(f"--max-tokens {most}: attention of this model allows {limit}")
    cut = (most or limit or 2**62) + 1
    tokens = {name: tokens_of(tokenizer, text)[:cut] for name, text in texts.items()}
    watch = Stopwatch(scorer, "books", sum(map(len, tokens.values())))
    nats = {
        name: -np.concatenate([logp for logp, _ in scorer.stream_logp(tokens_T)])
        for name, tokens_T in tokens.items()
    }
    n_bytes = {
        name: len(tokenizer.decode(tokens_T[1:].tolist()).encode()) for name, tokens_T in tokens.items()
    }
    by_book = Items(
        {"book": list(texts)},
        list(range(len(texts))),
        [float(size) for size in n_bytes.values()],
        {"bits_per_byte": rounded([nats_T.sum() / np.log(2) for nats_T in nats.values()])},
    )
    rows = [
        (n, name, bucket, nats_T[a:b].sum(), float(b - a))
        for n, (name, nats_T) in enumerate(nats.items())
        for bucket, a, b in buckets(len(nats_T))
    ]
    by_position = Items(
        {"book": [name for _, name, *_ in rows], "position": [bucket for _, _, bucket, *_ in rows]},
        [n for n, *_ in rows],
        [count for *_, count in rows],
        {"token_nats": rounded([total for *_, total, _ in rows])},
    )
    identity = [[name, fingerprint(tokens_T.tolist())] for name, tokens_T in tokens.items()]

    def finished(task: str, items: Items) -> TaskResult:
        return watch.finish(
            task=task,
            version=VERSION,
            settings={"max_tokens": most},
            seed=0,
            items=items,
            identity=[task, VERSION, identity],
        )

    # One reading gives both: its cost stands with the first.
    return [
        finished("books", by_book),
        replace(finished("books_position", by_position), tokens=0, seconds=0.0),
    ]


def buckets(size: int) -> list[tuple[str, int, int]]:
    """Return ranges of positions: 256 tokens, then as many again, then twice as many ... as far as the text reaches."""
    ranges, start, end = [], 0, FIRST
    while start < size:
        ranges.append((f"{start}-{end - 1}", start, min(end, size)))
        start, end = end, 2 * end
    return ranges
