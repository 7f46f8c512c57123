"""Where a loss comes from: the position of a token in its window, and whether its context has shown it before."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hope_data.bpb import bits_per_byte
from hope_eval.results import Items, rounded
from hope_eval.results.names import CLASSES
from hope_eval.scoring.scorer import Tokens


def classes(window_T: Tokens) -> list[str]:
    """Class of every token after the first, by the tokens between the first (end-of-text) and itself.

    `new`: not among them. `seen`: among them, but not after its predecessor. `bigram seen`: after its predecessor, but
    not after its two predecessors. `trigram seen`: after both.
    """
    tokens = window_T.tolist()
    shown: tuple[set[tuple[int, ...]], ...] = (set(), set(), set())
    classes_T = []
    for t in range(1, len(tokens)):
        grams = [tuple(tokens[t - n : t + 1]) for n in range(min(3, t + 1))]
        known = 0
        while known < len(grams) and grams[known] in shown[known]:
            known += 1
        classes_T.append(CLASSES[known])
        for n, gram in enumerate(grams):
            shown[n].add(gram)
    return classes_T


def positions(window_T: Tokens) -> list[str]:
    """Bucket of every token after the first: its place in the window, each bucket as long as all before it."""
    buckets_T = []
    for t in range(len(window_T) - 1):
        low = 0 if t < 32 else 1 << (t.bit_length() - 1)
        buckets_T.append(f"{low}-{31 if t < 32 else 2 * low - 1}")
    return buckets_T


def repeats(window_T: Tokens) -> list[str]:
    """`new` or `repeated` of every token after the first: whether its window has shown it before."""
    return ["new" if source == "new" else "repeated" for source in classes(window_T)]


Window = tuple[Sequence[str], NDArray[np.float64], NDArray[Any]]


def by_label(label: str, documents: Sequence[Sequence[Window]], *, bits: bool = False) -> Items:
    """Items of (document, label value): summed nats over its tokens.

    Args:
        label: what tokens are grouped by.
        documents: of each the windows, of each window the label values, nats and weights of its tokens.
        bits: weights are bytes, and scores bits.
    """
    values, clusters, weights, nats = [], [], [], []
    for number, windows in enumerate(documents):
        sums: dict[str, tuple[float, float]] = {}
        for labels, nats_T, weights_T in windows:
            for value, loss, weight in zip(labels, nats_T.tolist(), weights_T.tolist(), strict=True):
                total, count = sums.get(value, (0.0, 0.0))
                sums[value] = (total + loss, count + weight)
        for value, (total, count) in sums.items():
            if not count:  # of bytes: special tokens have none
                continue
            values.append(value)
            clusters.append(number)
            weights.append(float(count))
            nats.append(bits_per_byte(total, 1) if bits else total)
    return Items(
        {label: values}, clusters, weights, {"bits_per_byte" if bits else "token_nats": rounded(nats)}
    )
