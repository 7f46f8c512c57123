"""From a clean corpus to token shards: one task per part, and an index of what the tasks wrote."""

import os
import sys
from array import array
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np

from hope_data import documents
from hope_data.engines import processes
from hope_data.errors import InputError
from hope_data.files import check_name, dump_sealed, sha256_file
from hope_data.progress import track
from hope_data.shards import HEADER_SIZE, INDEX, header, token_type
from hope_data.splits import SPLITS, SplitRule
from hope_data.tokenizer import Tokenizer
from hope_data.work import Engine, open_work


class _ShardWriter:
    """Appends documents to the two files of one shard."""

    def __init__(self, folder: Path, name: str, dtype: np.dtype[Any]):
        self.dtype, self.typecode = dtype, "H" if dtype.itemsize == 2 else "I"
        self.n_tokens = self.n_documents = self.n_bytes = 0
        self.paths = (folder / f"{name}.bin", folder / f"{name}.docs.bin")
        self._files: tuple[IO[bytes], ...] = tuple(path.open("wb") for path in self.paths)
        for file in self._files:
            file.write(bytes(HEADER_SIZE))

    def write(self, ids: list[int], n_bytes: int) -> None:
        self.n_tokens += len(ids)
        self.n_documents += 1
        self.n_bytes += n_bytes
        # Twice as fast as numpy, which looks at every number's type.
        row = array(self.typecode, ids)
        if sys.byteorder == "big":
            row.byteswap()
        self._files[0].write(row)
        self._files[1].write(np.array([self.n_tokens, n_bytes], "<i8").tobytes())

    def close(self) -> dict[str, Any]:
        for file, size, count in zip(
            self._files, (self.dtype.itemsize, 8), (self.n_tokens, 2 * self.n_documents), strict=True
        ):
            file.seek(0)
            file.write(header(size, count))
            file.close()
        if not self.n_documents:
            for path in self.paths:
                path.unlink()
        files = {path.name: sha256_file(path) for path in self.paths} if self.n_documents else {}
        return {"documents": self.n_documents, "tokens": self.n_tokens, "bytes": self.n_bytes, "files": files}


@lru_cache(maxsize=1)
def _tokenizer(folder: Path, sha256: str) -> Tokenizer:
    """Loaded once for the many parts that a process tokenises; the hash is there to notice another one."""
    tokenizer = Tokenizer.load(folder)
    if tokenizer.sha256 != sha256:
        raise InputError(f"{folder}: changed while it was in use; run `hope-data shard` again")
    return tokenizer


@dataclass(frozen=True)
class _Shard:
    """Task: tokenise a part of a clean corpus into one shard per split."""

    clean: Path
    parts: list[str]
    tokenizer: Path
    sha256: str
    rule: SplitRule
    threads: int
    n_bytes: int

    def __call__(self, folder: Path, i: int) -> dict[str, Any]:
        tokenizer = _tokenizer(self.tokenizer, self.sha256)
        dtype = token_type(tokenizer.vocab_size)
        number = f"-{i:05d}" if len(self.parts) > 1 else ""
        writers = {name: _ShardWriter(folder, name + number, dtype) for name in SPLITS}
        rows = track(documents.read_part(self.clean, self.parts[i]), self.n_bytes, f"shard {self.clean.name}")
        for batch in documents.batches(rows):
            encoded = tokenizer.encode_batch([d.text for d in batch], self.threads)
            for document, ids in zip(batch, encoded, strict=True):
                ids.append(tokenizer.eos_id)
                writer = writers[self.rule.of(document.meta["sha256"])]
                writer.write(ids, len(document.text.encode()))
        splits = {name: writer.close() for name, writer in writers.items()}
        return {"files": [file for split in splits.values() for file in split["files"]], "splits": splits}


def shard(
    clean: Path, tokenizer_folder: Path, out: Path, workers: int = 1, engine: Engine = processes
) -> dict[str, Any]:
    """Tokenise a clean corpus into shards; an interrupted run goes on where it stood.

    Args:
        clean: folder of `hope-data filter`.
        tokenizer_folder: folder of `hope-data tokenizer`.
        out: folder to write; takes the place of an older one only when finished.
        workers: processes, or threads where there are fewer parts; the bytes written do not depend on it.
        engine: what runs them.

    Returns:
        The index: per split documents, tokens, bytes and file hashes; tokenizer; provenance.

    Raises:
        InputError: an unfit input, or a corpus too small to give each split a document.
    """
    corpus = check_name("corpus", out.absolute().name)
    tokenizer = Tokenizer.load(tokenizer_folder)
    record = documents.provenance(clean, "clean")
    parts = list(record["files"])
    provenance = {key: value for key, value in record.items() if key not in ("samples", "signatures")}
    task = _Shard(
        clean,
        parts,
        tokenizer_folder,
        tokenizer.sha256,
        SplitRule.from_dict(record["split"]),
        min(max(1, workers // len(parts)), 4 * (os.cpu_count() or 1)),
        record["bytes"] if len(parts) == 1 else 0,
    )
    job = {"step": "shard 1", "clean": provenance, "tokenizer": tokenizer.sha256, "corpus": corpus}
    with open_work(out, INDEX, job) as work:
        results = work.run("shard", task, len(parts), workers, engine)
        splits = {name: _sum([result["splits"][name] for result in results]) for name in SPLITS}
        for name, split in splits.items():
            if not split["documents"]:
                raise InputError(
                    f"{clean}: no document for the {name} split; a corpus needs three or more "
                    "(for long texts set `chunk_bytes` in the manifest)"
                )
        index = {
            "corpus": corpus,
            "dtype": token_type(tokenizer.vocab_size).name,
            "vocab_size": tokenizer.vocab_size,
            "eos_id": tokenizer.eos_id,
            "tokenizer_sha256": tokenizer.sha256,
            "splits": splits,
            "provenance": provenance,
        }
        (work.folder / INDEX).write_bytes(dump_sealed(index))
        work.finish([INDEX, *(file for split in splits.values() for file in split["files"])])
    return index


def _sum(shards: list[dict[str, Any]]) -> dict[str, Any]:
    counts = {key: sum(shard[key] for shard in shards) for key in ("documents", "tokens", "bytes")}
    return {**counts, "files": {name: sha for shard in shards for name, sha in shard["files"].items()}}
