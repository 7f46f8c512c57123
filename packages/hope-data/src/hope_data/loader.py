"""Batches of packed windows from a weighted mixture of corpora; the whole position is one number.

Every batch is a pure function of (config, seed, position). Sample i of the stream falls into slot i mod K
of a fixed pattern that holds every corpus in exactly its share, evenly spread; the corpus's windows come in
an order that a keyed permutation gives anew for each pass over them.
"""

import hashlib
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hope_data.errors import InputError
from hope_data.files import sha256_bytes
from hope_data.shards import Split, Windows, corpora

_PATTERN = 1 << 14
_LARGEST = 1 << 28  # tokens of a batch: two gigabytes


@dataclass(frozen=True)
class LoaderConfig:
    """What to read.

    Attributes:
        shards: folder that holds one folder of shards per corpus.
        weights: share of the samples of each corpus, any positive scale; empty: in proportion to tokens.
        corpora: names to use when `weights` is empty; empty: every corpus in the folder.
        batch_size: sequences per batch and rank.
        length: T; a window is T+1 tokens, so that each of T tokens has a target.
    """

    shards: str = "data/shards"
    weights: dict[str, float] = field(default_factory=dict)
    corpora: list[str] = field(default_factory=list)
    batch_size: int = 16
    length: int = 512


class Batch(NamedTuple):
    """One batch of packed windows.

    Attributes:
        tokens: int64 [B, T+1]; tokens[:, :-1] is read, tokens[:, 1:] is predicted.
        corpus: int64 [B], an index of `Loader.corpora`.
        segments: int32 [B, T+1] or None: which document of its row each token belongs to, counted from 0; an
            end-of-text belongs to the document it ends. See `resets`, `positions` and `same_document`.
    """

    tokens: npt.NDArray[np.int64]
    corpus: npt.NDArray[np.int64]
    segments: npt.NDArray[np.int32] | None = None
    share: float = 1.0  # of the positions, those with a target; see tasks.loader for batches with fewer

    @property
    def inputs(self) -> npt.NDArray[np.int64]:
        """What is read, [B, T]."""
        return self.tokens[:, :-1]

    @property
    def targets(self) -> npt.NDArray[np.int64]:
        """What is predicted, [B, T]."""
        return self.tokens[:, 1:]


def segments(tokens: npt.NDArray[np.int64], eos_id: int) -> npt.NDArray[np.int32]:
    """Number the documents of each packed row from its end-of-text tokens: [B, T] to [B, T]."""
    numbers = np.zeros(tokens.shape, np.int32)
    np.cumsum(tokens[:, :-1] == eos_id, axis=1, dtype=np.int32, out=numbers[:, 1:])
    return numbers


def resets(segments: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
    """Where a document begins, so that a recurrent state starts anew before this token: [B, T] to bool [B, T].

    True at the first token of a row too: what came before it belongs to another window.
    """
    first = np.ones((len(segments), 1), bool)
    return np.concatenate([first, segments[:, 1:] != segments[:, :-1]], axis=1)


def positions(segments: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """Place of each token in its document as far as the row shows it, from 0: [B, T] to int64 [B, T]."""
    place = np.arange(segments.shape[1])
    return np.asarray(place - np.maximum.accumulate(np.where(resets(segments), place, 0), axis=1))


def same_document(segments: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
    """Causal attention mask that keeps documents apart: [B, T] to bool [B, T, T], True where query t may see s."""
    length = segments.shape[1]
    causal = np.tri(length, dtype=bool)
    return np.asarray((segments[:, :, None] == segments[:, None, :]) & causal)


def permutation(n: int, key: str) -> Callable[[int], int]:
    """A keyed permutation of range(n) that stores nothing.

    A balanced Feistel network over the next even power of two; a result outside range(n) walks on until
    it is inside.
    The round function is SplitMix64's finaliser (Steele et al. 2014).
    """
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    mask, word = (1 << half) - 1, (1 << 64) - 1
    keys = struct.unpack("<4Q", hashlib.sha256(key.encode()).digest())

    def place(x: int) -> int:
        while True:
            left, right = x >> half, x & mask
            for round_key in keys:
                y = (right + round_key) & word
                y = ((y ^ (y >> 30)) * 0xBF58476D1CE4E5B9) & word
                y = ((y ^ (y >> 27)) * 0x94D049BB133111EB) & word
                left, right = right, left ^ ((y ^ (y >> 31)) & mask)
            x = (left << half) | right
            if x < n:
                return x

    return place


def _pattern(shares: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Corpus of each of K slots, and how many of its slots come before; counts by largest remainder."""
    exact = shares * _PATTERN
    counts = np.maximum(1, np.floor(exact)).astype(np.int64)
    while counts.sum() < _PATTERN:
        counts[np.argmax(exact - counts)] += 1
    while counts.sum() > _PATTERN:
        counts[np.argmax(counts)] -= 1
    corpus = np.repeat(np.arange(len(shares)), counts)
    rank = np.concatenate([np.arange(count) for count in counts])
    place = np.argsort((rank + 0.5) / counts[corpus], kind="stable")
    return corpus[place], rank[place]


def _check_sizes(batch_size: int, length: int) -> None:
    for name, number in (("batch_size", batch_size), ("length", length)):
        if type(number) is not int or not 1 <= number <= _LARGEST:
            raise InputError(
                f"loader: {name} is {repr(number)[:20]}; it must be a whole number from 1 to {_LARGEST}"
            )
    if batch_size * (length + 1) > _LARGEST:
        raise InputError(f"loader: batch_size {batch_size} times length {length} is over {_LARGEST} tokens")


class Loader(Iterator[Batch]):
    """Endless batches; `state_dict()` and `load_state_dict()` resume anywhere, for any number of ranks.

    Within one pass over a corpus no window comes twice and none is left out. All ranks together take
    batch_size·world consecutive samples per step, so that product alone decides what a step sees.
    """

    def __init__(self, config: LoaderConfig, split: str, seed: int, rank: int = 0, world: int = 1):
        _check_sizes(config.batch_size, config.length)
        if not 0 <= rank < world:
            raise InputError(f"loader: there is no rank {rank} of {world}")
        self.config, self.seed, self.rank, self.world = config, seed, rank, world
        self._splits = self._open(config, split)
        self.corpora = [s.folder.name for s in self._splits]
        self._places = [Windows(s, config.length) for s in self._splits]
        self._windows = [places.count for places in self._places]
        for s, n in zip(self._splits, self._windows, strict=True):
            if n < 1:
                raise InputError(
                    f"{s.folder}: {split} has {s.n_tokens} tokens, fewer than length {config.length} + 1"
                )
        weights = config.weights or {s.folder.name: float(s.n_tokens) for s in self._splits}
        shares = np.array([weights[name] for name in self.corpora], np.float64)
        self._corpus, self._rank = _pattern(shares / shares.sum())
        self._counts = np.bincount(self._corpus, minlength=len(self.corpora))
        # Epoch and order of the pass each corpus is in.
        self._passes = [(-1, permutation(1, "")) for _ in self.corpora]
        self._samples = 0
        self._fingerprint = self._make_fingerprint(split)

    @staticmethod
    def _open(config: LoaderConfig, split: str) -> list[Split]:
        if any(
            type(weight) not in (int, float) or not 0 < weight < 1e300 for weight in config.weights.values()
        ):
            raise InputError(
                f"loader: weights must be positive, got {config.weights}; leave a corpus out to skip it"
            )
        names = sorted(config.weights) or sorted(config.corpora)
        splits = [Split.open(path, split) for path in corpora(Path(config.shards), names)]
        for other in splits[1:]:
            other.check_tokenizer(splits[0].tokenizer_sha256)
        return splits

    def _make_fingerprint(self, split: str) -> str:
        settings = asdict(self.config)
        # The folder may move and the ranks may change; the text, the mixture and the windows may not.
        del settings["shards"], settings["batch_size"], settings["corpora"]
        files = [s.index["splits"][s.name]["files"] for s in self._splits]
        return sha256_bytes(repr((settings, split, self.seed, self.corpora, files)).encode())

    @property
    def tokenizer_sha256(self) -> str:
        """Of the tokenizer that made every corpus here."""
        return self._splits[0].tokenizer_sha256

    def windows(self) -> dict[str, int]:
        """Windows per corpus: so many of its samples are one pass over it."""
        return dict(zip(self.corpora, self._windows, strict=True))

    def __next__(self) -> Batch:
        """The next batch of this rank."""
        first = self._samples + self.rank * self.config.batch_size
        self._samples += self.world * self.config.batch_size
        return self.samples(np.arange(first, first + self.config.batch_size))

    def samples(self, numbers: npt.NDArray[np.int64]) -> Batch:
        """The samples with these numbers in the endless stream, wherever the loader stands."""
        block, slot = numbers // _PATTERN, numbers % _PATTERN
        corpus = self._corpus[slot]
        drawn = block * self._counts[corpus] + self._rank[slot]
        tokens = np.empty((len(numbers), self.config.length + 1), np.int64)
        for row, (c, k) in enumerate(zip(corpus.tolist(), drawn.tolist(), strict=True)):
            tokens[row] = self._places[c][self._window(c, k)]
        return Batch(tokens, corpus, segments(tokens, self._splits[0].eos_id))

    def _window(self, corpus: int, drawn: int) -> int:
        epoch, place = divmod(drawn, self._windows[corpus])
        if self._passes[corpus][0] != epoch:
            key = f"{self.seed}/{self.corpora[corpus]}/{epoch}"
            self._passes[corpus] = (epoch, permutation(self._windows[corpus], key))
        return self._passes[corpus][1](place)

    def state_dict(self) -> dict[str, Any]:
        """Position after the batches taken so far: JSON-able, the same for every rank."""
        return {"samples": self._samples, "fingerprint": self._fingerprint}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a loader of the same text, mixture, length and seed stood.

        Raises:
            InputError: the state is of another stream.
        """
        check_stream(state, self._fingerprint, "other shards, weights, length or seed")
        self._samples = int(state["samples"])


def check_stream(state: Mapping[str, Any], fingerprint: str, other: str) -> None:
    """Raise InputError unless a position is of the stream with this fingerprint."""
    if state.get("fingerprint") != fingerprint:
        raise InputError(f"loader: this position belongs to {other}; start afresh")


def eval_windows(folder: str | Path, length: int, limit: int, split: str = "val") -> npt.NDArray[np.int64]:
    """Windows for validation: evenly spaced over one corpus's split, sharing no target.

    Args:
        folder: shards of one corpus.
        length: T, tokens predicted per window.
        limit: most windows to take.
        split: which split.

    Returns:
        int64 [N, T+1] with N = min(limit, windows there are).

    Raises:
        InputError: the split is shorter than one window.
    """
    _check_sizes(1, length)
    opened = Split.open(folder, split)
    windows = Windows(opened, length)
    if windows.count < 1 or limit < 1:
        raise InputError(
            f"{folder}: {split} has {opened.n_tokens} tokens, no window of {length} + 1 (limit {limit})"
        )
    count = min(limit, windows.count)
    _check_sizes(count, length)
    return np.array([windows[k * windows.count // count] for k in range(count)], np.int64)
