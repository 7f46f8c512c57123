"""Checks every promise that shards make, and describes the mixture."""

from pathlib import Path
from typing import Any

import numpy as np

from hope_data import overlap
from hope_data.errors import InputError
from hope_data.files import sha256_file
from hope_data.progress import steps
from hope_data.shards import INDEX, REMEDY, Shard, Split, corpora, load_index
from hope_data.splits import SPLITS
from hope_data.tokenizer import Tokenizer

# Tokens per shard whose bytes are added up again, document by document, evenly spaced.
_RECOUNT = 4_000_000


def validate(
    folder: Path, names: list[str] | None = None, tokenizer_folder: Path | None = None
) -> dict[str, Any]:
    """Check hashes, ranges and sums of all corpora in a folder.

    Args:
        folder: of one corpus's shards, or of several such folders.
        names: only these corpora.
        tokenizer_folder: also check that the shards fit this tokenizer and that bytes agree with tokens.

    Returns:
        {"corpora": {name: {documents, tokens, bytes, share, bytes_per_token, sha256, train_…, dropped}},
        "total": the sums, "overlap": see `overlap.table`}, plain numbers; share is of train tokens, sha256 of all
        that the corpus's index vouches for.

    Raises:
        InputError: the first thing that is wrong, by file.
    """
    tokenizer = Tokenizer.load(tokenizer_folder) if tokenizer_folder else None
    folders = corpora(folder, names)
    opened = {
        path.name: {name: Split.open(path, name, tokenizer, reread=True) for name in SPLITS}
        for path in steps(folders, len(folders), "validate")
    }
    checked = {name: _check(splits, tokenizer) for name, splits in opened.items()}
    if len(shas := {load_index(path)["tokenizer_sha256"] for path in folders}) > 1:
        raise InputError(
            f"{folder}: corpora were made with {len(shas)} different tokenizers; shard them again"
        )
    total = {
        key: sum(stats[key] for stats in checked.values())
        for key in ("documents", "tokens", "bytes", "dropped")
    }
    train = sum(stats["train_tokens"] for stats in checked.values())
    for stats in checked.values():
        stats["share"] = stats["train_tokens"] / train
    return {
        "corpora": checked,
        "total": {**total, "bytes_per_token": total["bytes"] / total["tokens"]},
        "overlap": overlap.table(opened),
    }


def _check(splits: dict[str, Split], tokenizer: Tokenizer | None) -> dict[str, Any]:
    """Figures of one corpus, once the bytes of its tokens agree with its index."""
    index, folder = splits["train"].index, splits["train"].folder
    stats: dict[str, Any] = {"documents": 0, "tokens": 0, "bytes": 0, "sha256": sha256_file(folder / INDEX)}
    for name, split in splits.items():
        if tokenizer is not None:
            for shard in split.shards:
                _recount(shard, tokenizer)
        counts = {"documents": split.n_documents, "tokens": split.n_tokens, "bytes": split.n_bytes}
        for key, count in counts.items():
            stats[key] += count
            stats[f"{name}_{key}"] = count
    record = index["provenance"]
    stats["bytes_per_token"] = stats["bytes"] / stats["tokens"]
    stats["dropped"] = sum(record["dropped"].values())
    stats["dropped_by"] = record["dropped"]
    return stats


def _recount(shard: Shard, tokenizer: Tokenizer) -> None:
    """Add up the bytes of some documents' tokens again."""
    starts = np.concatenate([[0], np.asarray(shard.ends)[:-1]])
    step = max(1, len(shard.tokens) // _RECOUNT)
    sizes = tokenizer.token_bytes
    for first in range(0, len(starts), 1000 * step):
        last = min(first + 1000, len(starts))
        begin, end = int(starts[first]), int(shard.ends[last - 1])
        lengths = np.add.reduceat(sizes[shard.tokens[begin:end]], starts[first:last] - begin)
        wrong = np.flatnonzero(lengths != shard.byte_lengths[first:last])
        if len(wrong):
            at = wrong[0]
            raise InputError(
                f"{shard.paths[0]}: document {first + at} has {lengths[at]} bytes by its tokens, "
                f"{shard.byte_lengths[first + at]} by {shard.paths[1].name}; {REMEDY}"
            )
