"""How much text corpora share: runs of 16 tokens, sampled by their content so that copies are sampled alike.

A run counts if a hash of its first four tokens is 0 modulo 16; the same run is then chosen wherever it stands
(Broder 1997). Shares are of distinct runs that lie within one document.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from hope_data.shards import Split

RUN = 16
# Tokens looked at per split, a fraction of a second. Of longer splits the shares are lower bounds.
LIMIT = 5_000_000
_CHUNK = 1 << 16  # stays in a core's cache
_ANCHOR, _MODULUS = 4, 16
_FACTOR = np.uint32(0x9E3779B1)
_MIX = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F], np.uint64)
Runs = npt.NDArray[np.uint64]


def runs(split: Split, limit: int = LIMIT) -> tuple[Runs, npt.NDArray[np.int64]]:
    """Distinct sampled runs of the split's first `limit` tokens, hashed and sorted, and how often each occurs."""
    parts: list[Runs] = [np.empty(0, np.uint64)]
    left = limit
    for shard in split.shards:
        for at in range(0, min(left, len(shard.tokens)), _CHUNK):
            tokens = np.asarray(shard.tokens[at : min(at + _CHUNK + RUN - 1, left)], np.uint32)
            parts.append(_hashed(tokens, split.eos_id))
        left -= len(shard.tokens)
        if left <= 0:
            break
    return _counted(np.sort(np.concatenate(parts)))


def _counted(hashes: Runs) -> tuple[Runs, npt.NDArray[np.int64]]:
    """Distinct of sorted hashes, and how often each occurs: numpy's own `unique` takes ten times as long."""
    first = np.flatnonzero(np.concatenate([[True], hashes[1:] != hashes[:-1]])[: len(hashes)])
    return hashes[first], np.diff(np.append(first, len(hashes)))


def _hashed(tokens: npt.NDArray[np.uint32], eos_id: int) -> Runs:
    count = len(tokens) - RUN + 1
    if count < 1:
        return np.empty(0, np.uint64)
    anchor = np.zeros(count, np.uint32)
    for k in range(_ANCHOR):
        anchor = (anchor + tokens[k : k + count]) * _FACTOR
        anchor ^= anchor >> np.uint32(15)
    starts = np.flatnonzero(anchor % np.uint32(_MODULUS) == 0)
    # The last end-of-text before a run's end must lie before its start.
    ends = np.flatnonzero(tokens == eos_id)
    starts = starts[np.searchsorted(ends, starts) == np.searchsorted(ends, starts + RUN)]
    hashed = np.zeros(len(starts), np.uint64)
    for k in range(RUN):
        hashed = (hashed ^ tokens[starts + k]) * _MIX[k % 2]
        hashed ^= hashed >> np.uint64(29)
    return hashed


def _distinct(parts: list[Runs]) -> Runs:
    return _counted(np.sort(np.concatenate(parts)))[0]


def share(part: Runs, whole: Runs) -> dict[str, float]:
    """Share of one corpus's runs that another has too, with its standard error and n."""
    n = len(part)
    p = float(np.isin(part, whole, assume_unique=True).mean()) if n else 0.0
    return {"share": p, "se": float(np.sqrt(p * (1 - p) / n)) if n else 0.0, "n": n}


def table(splits: dict[str, dict[str, Split]], limit: int = LIMIT) -> dict[str, Any]:
    """Overlap between components and between training and held-out text.

    Args:
        splits: corpus to its splits.
        limit: tokens looked at per split.

    Returns:
        {"run": 16, "limit", "between": {A: {B: share of A's train runs that B's train has; B = A: share that
        A has more than once}}, "held_out": {A: share of A's val and test runs that any corpus's train has}}.
    """
    train = {name: runs(opened["train"], limit) for name, opened in splits.items()}
    between: dict[str, dict[str, Any]] = {}
    for name, (own, counts) in train.items():
        between[name] = {other: share(own, theirs) for other, (theirs, _) in train.items() if other != name}
        between[name][name] = share(own, own[counts > 1])
    every = _distinct([own for own, _ in train.values()])
    held_out = {
        name: share(_distinct([runs(opened[s], limit)[0] for s in ("val", "test")]), every)
        for name, opened in splits.items()
    }
    return {"run": RUN, "limit": limit, "between": between, "held_out": held_out}
