"""Checks every promise that shards make, and describes the mixture."""

from pathlib import Path
from typing import Any

import numpy as np

from hope_data.errors import InputError
from hope_data.files import sha256_file
from hope_data.shards import Split, corpora, load_index
from hope_data.splits import SPLITS
from hope_data.tokenizer import Tokenizer


def validate(
    folder: Path, names: list[str] | None = None, tokenizer_folder: Path | None = None
) -> dict[str, Any]:
    """Check hashes, ranges and sums of all corpora in a folder.

    Args:
        folder: of one corpus's shards, or of several such folders.
        names: only these corpora.
        tokenizer_folder: also check that the shards fit this tokenizer and that bytes agree with tokens.

    Returns:
        {"corpora": {name: {documents, tokens, bytes, share, bytes_per_token, train_…, dropped}},
        "total": the sums}, all plain numbers; share is of train tokens.

    Raises:
        InputError: the first thing that is wrong, by file.
    """
    tokenizer = Tokenizer.load(tokenizer_folder) if tokenizer_folder else None
    found = {path.name: _check(path, tokenizer) for path in corpora(folder, names)}
    if len(shas := {load_index(path)["tokenizer_sha256"] for path in corpora(folder, names)}) > 1:
        raise InputError(
            f"{folder}: corpora were made with {len(shas)} different tokenizers; shard them again"
        )
    total = {
        key: sum(stats[key] for stats in found.values())
        for key in ("documents", "tokens", "bytes", "dropped")
    }
    train = sum(stats["train_tokens"] for stats in found.values())
    for stats in found.values():
        stats["share"] = stats["train_tokens"] / train
    return {"corpora": found, "total": {**total, "bytes_per_token": total["bytes"] / total["tokens"]}}


def _check(folder: Path, tokenizer: Tokenizer | None) -> dict[str, Any]:
    index = load_index(folder)
    stats: dict[str, Any] = {"documents": 0, "tokens": 0, "bytes": 0}
    for name in SPLITS:
        for file, promised in index["splits"][name]["files"].items():
            if not (folder / file).is_file() or sha256_file(folder / file) != promised:
                raise InputError(
                    f"{folder / file}: is missing or damaged (sha256 differs); run `hope-data shard` again"
                )
        split = Split.open(folder, name, tokenizer)
        _check_split(split, index, tokenizer)
        counts = {"documents": split.n_documents, "tokens": split.n_tokens, "bytes": split.n_bytes}
        for key, count in counts.items():
            stats[key] += count
            stats[f"{name}_{key}"] = count
    record = index["provenance"]
    stats["bytes_per_token"] = stats["bytes"] / stats["tokens"]
    stats["dropped"] = sum(record["dropped"].values())
    stats["dropped_by"] = record["dropped"]
    return stats


def _check_split(split: Split, index: dict[str, Any], tokenizer: Tokenizer | None) -> None:
    where = f"{split.folder / split.name}"
    ends, eos = split.ends, index["eos_id"]
    starts = np.concatenate([[0], ends[:-1]])
    if not (len(ends) and np.all(ends > starts) and ends[-1] == split.n_tokens):
        raise InputError(f"{where}.docs.bin: document ends are out of order; run `hope-data shard` again")
    if int(split.byte_lengths.sum()) != split.n_bytes or split.byte_lengths.min() < 0:
        raise InputError(f"{where}.docs.bin: byte lengths do not add up; run `hope-data shard` again")
    if int(split.tokens.max()) >= index["vocab_size"]:
        raise InputError(f"{where}.bin: holds a token outside the vocabulary; run `hope-data shard` again")
    if not np.all(split.tokens[ends - 1] == eos) or int((split.tokens == eos).sum()) != len(ends):
        raise InputError(f"{where}.bin: documents do not end in end-of-text; run `hope-data shard` again")
    if tokenizer is not None:
        lengths = np.add.reduceat(tokenizer.token_bytes[split.tokens], starts)
        if not np.array_equal(lengths, split.byte_lengths):
            bad = int(np.argmax(lengths != split.byte_lengths))
            raise InputError(f"{where}.bin: document {bad} has {lengths[bad]} bytes, index says otherwise")
