"""Passages that an earlier document of the corpus has already: a few lines in a row, cut where they come again.

C4 keeps one of every three sentences that occur more than once (Raffel et al. 2020, section 2.2). Here they are lines,
for documentation is made of lines. Passages of fewer than twelve words (`units.count`) are left: headings, closing
brackets.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hope_data.units import count as count_words

MIN_WORDS = 12
# One row per passage: the position of its document, and the hash of its words; 0 if it is too short to count.
PASSAGE = np.dtype([("document", "<u4"), ("key", "<u8")])
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
Passages = npt.NDArray[Any]


def keys(text: str, size: int) -> npt.NDArray[np.uint64]:
    """Hash of every `size` lines in a row, blank ones left out: [lines - size + 1], 0 for the short ones."""
    rows = [plain for line in text.split("\n") if (plain := " ".join(line.split()))]
    count = len(rows) - size + 1
    if count < 1:
        return np.empty(0, np.uint64)
    digests = [hashlib.blake2b(row.encode(), digest_size=8).digest() for row in rows]
    lines = np.frombuffer(b"".join(digests), "<u8")
    hashed = np.zeros(count, np.uint64)
    for k in range(size):
        hashed = (hashed ^ lines[k : k + count]) * _FACTOR
        hashed ^= hashed >> np.uint64(29)
    n_words = np.cumsum([0, *map(count_words, rows)])
    return np.where(n_words[size:] - n_words[:count] >= MIN_WORDS, hashed, 0)


def table(texts: Sequence[str], size: int, first: int) -> Passages:
    """Passages of documents at the positions `first`, `first + 1`, …: [N] of PASSAGE."""
    hashes = [keys(text, size) for text in texts]
    rows = np.empty(sum(map(len, hashes)), PASSAGE)
    rows["document"] = np.repeat(np.arange(first, first + len(texts)), [len(row) for row in hashes])
    rows["key"] = np.concatenate([*hashes, np.empty(0, np.uint64)])
    return rows


def repeated(parts: Sequence[Path], keep: Sequence[npt.NDArray[np.bool_]]) -> list[npt.NDArray[np.bool_]]:
    """Whether an earlier document has a passage too, for every row of every part.

    Holds some 40 bytes per line of the corpus in memory.

    Args:
        parts: files of PASSAGE, in the corpus's order.
        keep: of each part, the documents that count at all.
    """
    rows = [np.load(path) for path in parts]
    starts = np.cumsum([0, *map(len, keep)])
    document = np.concatenate([row["document"] + start for row, start in zip(rows, starts[:-1], strict=True)])
    key = np.concatenate([row["key"] * kept[row["document"]] for row, kept in zip(rows, keep, strict=True)])
    order = np.argsort(key, kind="stable")
    begins = np.flatnonzero(np.concatenate([[True], np.diff(key[order]) != 0])[: len(order)])
    first = document[order[np.repeat(begins, np.diff([*begins, len(order)]))]]
    again = np.zeros(len(key), bool)
    again[order] = (key[order] != 0) & (document[order] > first)
    return np.split(again, np.cumsum([len(row) for row in rows])[:-1])


def cut(text: str, size: int, again: npt.NDArray[np.bool_]) -> str:
    """The text without the passages that `again` marks (as `keys` counts them) and the blank lines after them."""
    lines, solid = _solid(text)
    gone = {solid[at + k] for at in np.flatnonzero(again) for k in range(size)}
    kept: list[str] = []
    after_cut = False
    for i, line in enumerate(lines):
        after_cut = i in gone or (after_cut and not line.strip())
        if not after_cut or (i not in gone and kept and kept[-1].strip()):
            kept.append(line)
    return "\n".join(kept).strip("\n") + "\n"


def first(text: str, size: int, again: npt.NDArray[np.bool_]) -> str:
    """The first passage that `cut` cuts."""
    lines, solid = _solid(text)
    at = int(np.flatnonzero(again)[0])
    return "\n".join(lines[i] for i in solid[at : at + size])


def _solid(text: str) -> tuple[list[str], list[int]]:
    """Lines, and which of them are not blank."""
    lines = text.split("\n")
    return lines, [i for i, line in enumerate(lines) if line.strip()]
