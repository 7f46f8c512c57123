"""Duplicates, exact and near, within a corpus and against others.

A document's signature is 128 MinHashes (Broder 1997) of its word trigrams, from the library rensa, cut to 16 bits:
two unlike hashes then agree once in 65,536, far below the estimate's standard error of 0.04. Where a script puts no
space between words, so many characters that they touch three words take their place (`units`). Documents that agree
in a whole band of 5 hashes are candidates (25 bands: 0.95 of pairs with similarity 0.65, 0.999 with 0.75; Leskovec
et al., Mining of Massive Datasets, section 3.4); the share of all 128 hashes that agree decides.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hope_data.units import WORD, hashed, spans, units

HASHES, BANDS, ROWS = 128, 25, 5
_SHINGLE = 3
# A shorter text has too few trigrams to be judged by; only its exact copies go.
_MIN_WORDS = 12
_MIX = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F], np.uint64)
_PAIRS = 1 << 15
# One row per document; `key` is of the exact text, `words` how many it has.
SIGNATURE = np.dtype(
    [("key", "<u8"), ("sha256", "S64"), ("bytes", "<u8"), ("words", "<u4"), ("hashes", "<u2", HASHES)]
)
Signatures = npt.NDArray[Any]


def minhashes(texts: Sequence[str]) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint32]]:
    """Sign texts.

    Returns:
        MinHashes [N, 128], and the number of words of each text [N].
    """
    from rensa import RMinHash  # noqa: PLC0415

    pieces = [units(text) for text in texts]
    tokens = RMinHash.hash_token_sets([row for row, _ in pieces])
    counts = np.array([weights.sum() // WORD for _, weights in pieces], np.uint32)
    shingles = [
        hashed(np.array(row, np.uint64), *spans(weights, _SHINGLE))
        for row, (_, weights) in zip(tokens, pieces, strict=True)
    ]
    ends = np.cumsum([0] + [len(row) for row in shingles])
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(
        np.concatenate([*shingles, np.empty(0, np.uint64)]), ends, HASHES, 1
    )
    rows = np.array(matrix.to_rows(), np.uint32).reshape(len(texts), HASHES)
    return rows.astype(np.uint16), counts


def first_of_equal(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """For each of N keys the position of the first that is equal to it: [N]."""
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    return first[inverse]


def first_like(signatures: Signatures, similarity: float, fixed: int = 0) -> npt.NDArray[np.int64]:
    """For each of N signatures the position of an earlier one like it, or its own: [N].

    Like means: at least `similarity` of the 128 hashes agree, which estimates the Jaccard similarity of the
    word trigrams. Looks within the documents that share a band, at the first of them and the one before.

    Args:
        signatures: [N] of SIGNATURE.
        similarity: in (0, 1].
        fixed: so many at the beginning are never asked about.
    """
    hashes = signatures["hashes"]
    long_enough = signatures["words"] >= _MIN_WORDS
    like = np.arange(len(signatures))
    for band in range(BANDS):
        keys = np.zeros(len(signatures), np.uint64)
        # One reading of the file per band, where it is larger than the memory.
        for column in np.ascontiguousarray(hashes[:, band * ROWS : (band + 1) * ROWS].T):
            keys = (keys ^ column) * _MIX[0]
            keys ^= keys >> np.uint64(29)
        order = np.argsort(keys, kind="stable")
        order = order[long_enough[order]]
        same = keys[order[1:]] == keys[order[:-1]]
        begins = np.flatnonzero(np.concatenate([[True], ~same]))[: len(order)]
        first = order[np.repeat(begins, np.diff([*begins, len(order)]))]
        for earlier, later in ((order[:-1], order[1:]), (first[1:], order[1:])):
            open_ = same & (later >= fixed) & (like[later] == later)
            _mark(like, hashes, earlier[open_], later[open_], similarity)
    return like


def _mark(
    like: npt.NDArray[np.int64],
    hashes: npt.NDArray[np.uint16],
    earlier: npt.NDArray[np.int64],
    later: npt.NDArray[np.int64],
    similarity: float,
) -> None:
    for at in range(0, len(later), _PAIRS):
        one, other = earlier[at : at + _PAIRS], later[at : at + _PAIRS]
        agree = (hashes[one] == hashes[other]).mean(axis=1) >= similarity
        like[other[agree]] = one[agree]


def judge(
    parts: Sequence[Path], others: dict[str, list[Path]], similarity: float, work: Path
) -> tuple[list[npt.NDArray[np.uint16]], list[str]]:
    """Find the documents that resemble an earlier one of their own corpus, or any of another.

    Args:
        parts: signature files of the corpus's parts, in order.
        others: signature files of other corpora, which keep their documents.
        similarity: least share of equal hashes; 0 looks for exact copies only.
        work: file for all signatures together, so that memory need not hold them.

    Returns:
        Per part and document the number of a reason, 0 to keep it; and the reasons.
    """
    opened = [[np.load(path, mmap_mode="r") for path in paths] for paths in [*others.values(), parts]]
    sizes = [sum(map(len, rows)) for rows in opened]
    total, fixed = sum(sizes), sum(sizes[:-1])
    # Written, not mapped: a full disk is an error of write, and would be the end of a process that maps.
    with work.open("wb") as file:
        for rows in (row for corpus in opened for row in corpus):
            file.write(np.ascontiguousarray(rows).data)
    every = np.memmap(work, SIGNATURE, "r", shape=(total,)) if total else np.empty(0, SIGNATURE)
    source = np.repeat(np.arange(len(sizes)), sizes)
    names = [f" of {name}" for name in others] + [""]
    reasons = ["", *(kind + name for kind in ("duplicate", "near duplicate") for name in names)]
    positions = np.arange(total)
    first = first_of_equal(every["key"])
    verdict = np.where(first != positions, 1 + source[first], 0)
    if similarity:
        like = first_like(every, similarity, fixed)
        verdict = np.where((verdict == 0) & (like != positions), 1 + len(names) + source[like], verdict)
    ends = fixed + np.cumsum([len(rows) for rows in opened[-1]])
    return [part.astype(np.uint16) for part in np.split(verdict[fixed:], ends[:-1] - fixed)], reasons
