"""Bits per byte of held-out documents, domain by domain, beside a unigram model of the same domain.

The same scores are also grouped by the token's position in its window and by whether its context has shown it before
(`sources`). `shuffle` is the control: blocks of tokens move between documents of a domain, so that a context tells
nothing of what comes later except within a block.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hope_data.bpb import bits_per_byte
from hope_data.files import sha256_bytes
from hope_data.shards import Split
from hope_eval.results import Items, Metric, TaskResult, rounded
from hope_eval.results.names import PERPLEXITY, SHUFFLED
from hope_eval.results.statistics import ratio
from hope_eval.scoring.memorize import refuse_rereading
from hope_eval.scoring.scorer import Tokens
from hope_eval.tasks.base import Context, Stopwatch
from hope_eval.tasks.sources import by_label, classes, positions, repeats

NAME, VERSION = PERPLEXITY, 1
SHUFFLE = 32  # tokens of the control's blocks


@dataclass(frozen=True)
class Settings:
    """What is scored.

    Attributes:
        tokens: budget over all domains, shared equally.
        windows: most windows taken from one document, so that long ones do not stand for all.
        length: tokens of a window, each window after an end-of-text token; 0 takes the training length.
        split: `test`, or `val` for tuning.
        shuffle: tokens of the blocks that change places with those of other documents; 0: none do.
    """

    tokens: int = 40_960
    windows: int = 4
    length: int = 0
    split: str = "test"
    shuffle: int = 0


@dataclass(frozen=True)
class Piece:
    """What is scored of one document: its windows, context token included."""

    domain: str
    document: int
    windows: list[Tokens]

    def targets(self) -> Tokens:
        """The scored tokens."""
        return np.concatenate([window[1:] for window in self.windows])


def run(context: Context, settings: Settings) -> TaskResult:
    """Score held-out documents.

    An item is a document: score in bits, weight in bytes. Errors are those of a ratio over documents.
    """
    return run_all(context, settings)[0]


def run_all(context: Context, settings: Settings) -> list[TaskResult]:
    """The same, then loss per token by position in the window and by class of target, and bits per byte by source."""
    settings = replace(settings, length=settings.length or context.length)
    task = SHUFFLED if settings.shuffle else NAME
    refuse_rereading(context.scorer.memorize, task)
    pieces = [piece for domain in context.domains for piece in _pieces(context, domain, settings)]
    windows = [window for piece in pieces for window in piece.windows]
    watch = Stopwatch(context.scorer, task, sum(len(window) - 1 for window in windows))
    logp = iter(context.scorer.token_logp(windows))
    nats = [[-next(logp) for _ in piece.windows] for piece in pieces]
    items = _documents(context, pieces, [sum(float(x.sum()) for x in document) for document in nats])
    identity = [
        [piece.domain, piece.document, [window.tolist() for window in piece.windows]] for piece in pieces
    ]

    def finished(name: str, items: Items) -> TaskResult:
        return watch.finish(
            task=name,
            version=VERSION,
            settings=asdict(settings),
            seed=context.seed,
            items=items,
            identity=[name, VERSION, identity],
        )

    whole = finished(task, items)
    results = [replace(whole, metrics=[*whole.metrics, *margins(items)])]
    for label, classify in (("position", positions), ("target", classes), ("source", repeats)):
        size = context.tokenizer.token_bytes if label == "source" else None
        documents = [
            [
                (classify(window), losses, np.ones_like(losses) if size is None else size[window[1:]])
                for window, losses in zip(piece.windows, document, strict=True)
            ]
            for piece, document in zip(pieces, nats, strict=True)
        ]
        part = finished(f"{task}_{label}", by_label(label, documents, bits=label == "source"))
        # Over all tokens it is the bits per byte again.
        results.append(replace(part, metrics=[metric for metric in part.metrics if metric.group != "all"]))
    return results


def _documents(context: Context, pieces: list[Piece], nats: list[float]) -> Items:
    tables = {domain: unigram_nats(context.split(domain, "train")) for domain in context.domains}
    unigram = [float(tables[piece.domain][piece.targets()].sum()) for piece in pieces]
    n_bytes = [int(context.tokenizer.token_bytes[piece.targets()].sum()) for piece in pieces]
    return Items(
        labels={"domain": [piece.domain for piece in pieces]},
        cluster=list(range(len(pieces))),
        weight=[float(size) for size in n_bytes],
        # bits_per_byte(nats, 1) is the conversion of nats to bits.
        scores={
            "bits_per_byte": rounded([bits_per_byte(x, 1) for x in nats]),
            "unigram_bits_per_byte": rounded([bits_per_byte(x, 1) for x in unigram]),
        },
    )


def unigram_nats(train: Split) -> NDArray[np.float64]:
    """-ln p of every token [vocab_size] under the counts of a train split, plus one each.

    End-of-text is left out of the counts, as it is never scored.
    """
    size, step = int(train.index["vocab_size"]), 1 << 20
    counts_V = np.ones(size, np.float64)
    for start in range(0, train.n_tokens, step):
        counts_V += np.bincount(train.tokens[start : start + step], minlength=size)
    counts_V[int(train.index["eos_id"])] = 1
    return np.asarray(np.log(counts_V.sum()) - np.log(counts_V))


def _pieces(context: Context, domain: str, settings: Settings) -> list[Piece]:
    pieces = [
        Piece(domain, document, context.windows(tokens, settings.length))
        for document, tokens in chosen(context, domain, settings)
    ]
    return _shuffled(context, pieces, settings.shuffle) if settings.shuffle else pieces


def _shuffled(context: Context, pieces: list[Piece], size: int) -> list[Piece]:
    """The same windows with blocks of `size` tokens in each other's places; what is left of a window stays."""
    places = [
        (window, slice(start, start + size))
        for piece in pieces
        for window in piece.windows
        for start in range(1, len(window) - size + 1, size)
    ]
    blocks = [window[place].copy() for window, place in places]
    if not blocks:
        return pieces
    order = context.rng(SHUFFLED, pieces[0].domain).permutation(len(blocks)).tolist()
    for (window, place), source in zip(places, order, strict=True):
        window[place] = blocks[source]
    return pieces


def digest(split: Split, document: int) -> str:
    """Hash of a document's tokens."""
    return sha256_bytes(np.asarray(split.document(document), "<u4").tobytes())


def chosen(context: Context, domain: str, settings: Settings) -> Iterator[tuple[int, Tokens]]:
    """Documents that are scored: number, and the tokens that are taken of each."""
    split = context.split(domain, settings.split)
    room = max(1, settings.tokens // len(context.domains))
    taken = 0
    for document in context.rng(NAME, domain).permutation(split.n_documents).tolist():
        if context.documents is not None and digest(split, document) not in context.documents:
            continue
        tokens = split.document(document)[: settings.windows * settings.length][:room]
        if not context.tokenizer.token_bytes[tokens].sum():
            continue
        yield document, tokens
        taken, room = taken + 1, room - len(tokens)
        if room <= 0 or taken == context.limit:
            return


def margins(items: Items) -> Iterator[Metric]:
    """Unigram minus model over the same documents."""
    for group, chosen in items.groups().items():
        unigram, weight, cluster = items.columns("unigram_bits_per_byte", chosen)
        model, _, _ = items.columns("bits_per_byte", chosen)
        estimate = ratio(unigram - model, weight, cluster)
        yield Metric("unigram_margin", group, **asdict(estimate))
