"""Checks every promise that shards make, and describes the mixture."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from hope_data import overlap
from hope_data.errors import InputError
from hope_data.files import sha256_file
from hope_data.progress import steps
from hope_data.shards import HEADER_SIZE, INDEX, REMEDY, Shard, Split, corpora, load_index
from hope_data.splits import SPLITS
from hope_data.tokenizer import Tokenizer

_CHUNK = 1 << 20
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
    found = {path.name: _check(path, tokenizer) for path in steps(folders, len(folders), "validate")}
    if len(shas := {load_index(path)["tokenizer_sha256"] for path in folders}) > 1:
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
    return {
        "corpora": found,
        "total": {**total, "bytes_per_token": total["bytes"] / total["tokens"]},
        "overlap": overlap.table({path.name: {s: Split.open(path, s) for s in SPLITS} for path in folders}),
    }


def _check(folder: Path, tokenizer: Tokenizer | None) -> dict[str, Any]:
    index = load_index(folder)
    stats: dict[str, Any] = {"documents": 0, "tokens": 0, "bytes": 0, "sha256": sha256_file(folder / INDEX)}
    for name in SPLITS:
        split = Split.open(folder, name, tokenizer)
        for shard in split.shards:
            _check_shard(split, shard, tokenizer)
        if sum(int(shard.byte_lengths.sum()) for shard in split.shards) != split.n_bytes:
            raise InputError(f"{folder}: byte lengths of {name} do not add up; {REMEDY}")
        counts = {"documents": split.n_documents, "tokens": split.n_tokens, "bytes": split.n_bytes}
        for key, count in counts.items():
            stats[key] += count
            stats[f"{name}_{key}"] = count
    record = index["provenance"]
    stats["bytes_per_token"] = stats["bytes"] / stats["tokens"]
    stats["dropped"] = sum(record["dropped"].values())
    stats["dropped_by"] = record["dropped"]
    return stats


def _check_shard(split: Split, shard: Shard, tokenizer: Tokenizer | None) -> None:
    promised = split.index["splits"][split.name]["files"]
    where = split.folder / shard.name
    if sha256_file(Path(f"{where}.docs.bin")) != promised.get(f"{shard.name}.docs.bin"):
        raise InputError(f"{where}.docs.bin: is damaged (sha256 differs); {REMEDY}")
    sha256, highest, n_ends = _scan(Path(f"{where}.bin"), shard.tokens.dtype, split.eos_id)
    if sha256 != promised.get(f"{shard.name}.bin"):
        raise InputError(f"{where}.bin: is damaged (sha256 differs); {REMEDY}")
    if highest >= split.index["vocab_size"]:
        raise InputError(f"{where}.bin: holds a token outside the vocabulary; {REMEDY}")
    ends = np.asarray(shard.ends)
    starts = np.concatenate([[0], ends[:-1]])
    if not np.all(ends > starts):
        raise InputError(f"{where}.docs.bin: document ends are out of order; {REMEDY}")
    if n_ends != len(ends) or not np.all(shard.tokens[ends - 1] == split.eos_id):
        raise InputError(f"{where}.bin: documents do not end in end-of-text; {REMEDY}")
    if shard.byte_lengths.min() < 0:
        raise InputError(f"{where}.docs.bin: a document of less than no bytes; {REMEDY}")
    if tokenizer is not None:
        _recount(where, shard, tokenizer, starts)


def _scan(path: Path, dtype: np.dtype[Any], eos_id: int) -> tuple[str, int, int]:
    """Hash of a file of tokens, its highest token and how many are end-of-text, in one reading."""
    sha256, highest, n_ends = hashlib.sha256(), 0, 0
    buffer = bytearray(_CHUNK)
    tokens = np.frombuffer(buffer, dtype)
    with path.open("rb", buffering=0) as file:
        sha256.update(file.read(HEADER_SIZE))
        while size := file.readinto(buffer):
            sha256.update(memoryview(buffer)[:size])
            found = tokens[: size // dtype.itemsize]
            highest = max(highest, int(found.max(initial=0)))
            n_ends += int(np.count_nonzero(found == eos_id))
    return sha256.hexdigest(), highest, n_ends


def _recount(where: Path, shard: Shard, tokenizer: Tokenizer, starts: Any) -> None:
    step = max(1, len(shard.tokens) // _RECOUNT)
    sizes = tokenizer.token_bytes
    for first in range(0, len(starts), 1000 * step):
        last = min(first + 1000, len(starts))
        begin, end = int(starts[first]), int(shard.ends[last - 1])
        lengths = np.add.reduceat(sizes[shard.tokens[begin:end]], starts[first:last] - begin)
        wrong = np.flatnonzero(lengths != shard.byte_lengths[first:last])
        if len(wrong):
            raise InputError(
                f"{where}.bin: document {first + wrong[0]} has {lengths[wrong[0]]} bytes, index says otherwise"
            )
