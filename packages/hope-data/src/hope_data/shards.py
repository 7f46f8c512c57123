"""Token shards: three memory-mapped files per corpus, and an index that vouches for every byte of them.

    index.json                 sealed JSON: counts, hashes, tokenizer, provenance
    {train,val,test}.bin       header + uint16/uint32 [n_tokens], every document followed by end-of-text
    {train,val,test}.docs.bin  header + int64 [n_documents, 2]: end offset in tokens, UTF-8 bytes

All numbers are little-endian. The header is 32 bytes: magic, version, item size, number of items.
"""

import struct
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
import numpy.typing as npt

from hope_data import documents
from hope_data.errors import InputError
from hope_data.files import dump_sealed, load_sealed, new_folder, sha256_file
from hope_data.splits import SPLITS, SplitRule
from hope_data.tokenizer import Tokenizer

INDEX = "index.json"
_HEADER = struct.Struct("<8sIIQ8x")
_MAGIC = b"HOPEDATA"
_VERSION = 1
_REMEDY = "run `hope-data shard` for it again"


def token_type(vocab_size: int) -> np.dtype[Any]:
    """Smallest of uint16 and uint32 that holds every token id."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


class _SplitWriter:
    """Appends documents to the two files of one split."""

    def __init__(self, folder: Path, name: str, dtype: np.dtype[Any]):
        self.dtype = dtype
        self.n_tokens = self.n_documents = self.n_bytes = 0
        self.paths = (folder / f"{name}.bin", folder / f"{name}.docs.bin")
        self._files: tuple[IO[bytes], ...] = tuple(path.open("wb") for path in self.paths)
        for file in self._files:
            file.write(bytes(_HEADER.size))

    def write(self, ids: list[int], n_bytes: int) -> None:
        self.n_tokens += len(ids)
        self.n_documents += 1
        self.n_bytes += n_bytes
        self._files[0].write(np.array(ids, self.dtype).tobytes())
        self._files[1].write(np.array([self.n_tokens, n_bytes], "<i8").tobytes())

    def close(self) -> dict[str, Any]:
        for file, size, count in zip(
            self._files, (self.dtype.itemsize, 8), (self.n_tokens, 2 * self.n_documents), strict=True
        ):
            file.seek(0)
            file.write(_HEADER.pack(_MAGIC, _VERSION, size, count))
            file.close()
        return {
            "documents": self.n_documents,
            "tokens": self.n_tokens,
            "bytes": self.n_bytes,
            "files": {path.name: sha256_file(path) for path in self.paths},
        }


def _batches(folder: Path, size: int = 256) -> Iterator[list[documents.Document]]:
    rows = documents.read(folder)
    while batch := list(islice(rows, size)):
        yield batch


def build(clean: Path, tokenizer_folder: Path, out: Path, threads: int = 2) -> dict[str, Any]:
    """Tokenise a clean corpus into shards.

    Args:
        clean: folder of `hope-data filter`.
        tokenizer_folder: folder of `hope-data tokenizer`.
        out: folder to write; takes the place of an older one only when finished.
        threads: for tokenising; the bytes written do not depend on it.

    Returns:
        The index: per split documents, tokens, bytes and file hashes; tokenizer; provenance.

    Raises:
        InputError: an unfit input, or a corpus too small to give each split a document.
    """
    tokenizer = Tokenizer.load(tokenizer_folder)
    record = documents.provenance(clean)
    rule = SplitRule.from_dict(record["split"])
    dtype = token_type(tokenizer.vocab_size)
    with new_folder(out, INDEX) as folder:
        writers = {name: _SplitWriter(folder, name, dtype) for name in SPLITS}
        for batch in _batches(clean):
            for document, ids in zip(
                batch, tokenizer.encode_batch([d.text for d in batch], threads), strict=True
            ):
                writer = writers[rule.of(document.meta["sha256"])]
                writer.write([*ids, tokenizer.eos_id], len(document.text.encode()))
        splits = {name: writer.close() for name, writer in writers.items()}
        for name, split in splits.items():
            if not split["documents"]:
                raise InputError(
                    f"{clean}: no document for the {name} split; a corpus needs three or more "
                    "(for long texts set `chunk_bytes` in the manifest)"
                )
        index = {
            "corpus": out.name,
            "dtype": dtype.name,
            "vocab_size": tokenizer.vocab_size,
            "eos_id": tokenizer.eos_id,
            "tokenizer_sha256": tokenizer.sha256,
            "splits": splits,
            "provenance": {key: value for key, value in record.items() if key != "samples"},
        }
        (folder / INDEX).write_bytes(dump_sealed(index))
    return index


def load_index(folder: Path) -> dict[str, Any]:
    """The sealed index of one corpus's shards.

    Raises:
        InputError: missing or damaged.
    """
    return load_sealed(folder / INDEX, _REMEDY)


def corpora(folder: Path, names: list[str] | None = None) -> list[Path]:
    """Corpus folders under `folder` (or `folder` itself if it is one), sorted by name, or those named.

    Raises:
        InputError: none there, or a named one is missing.
    """
    if names:
        missing = [name for name in names if not (folder / name / INDEX).is_file()]
        if missing:
            raise InputError(f"{folder}: no shards of corpus {', '.join(missing)}; {_REMEDY}")
        return [folder / name for name in names]
    if (folder / INDEX).is_file():
        return [folder]
    found = sorted(path.parent for path in folder.glob(f"*/{INDEX}") if not path.parent.name.startswith("."))
    if not found:
        raise InputError(f"{folder}: no shards here; run `hope-data shard` first")
    return found


def open_array(path: Path, dtype: npt.DTypeLike, count: int) -> np.memmap[Any, np.dtype[Any]]:
    """Memory-map the items of one file after its header has been checked.

    Raises:
        InputError: missing, of another format, or not of the promised length.
    """
    kind = np.dtype(dtype)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header = file.read(_HEADER.size)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; {_REMEDY}") from None
    if header != _HEADER.pack(_MAGIC, _VERSION, kind.itemsize, count):
        raise InputError(f"{path}: header does not fit {INDEX}; {_REMEDY}")
    if size != _HEADER.size + count * kind.itemsize:
        raise InputError(f"{path}: {size} bytes where {INDEX} promises {count} items; {_REMEDY}")
    return np.memmap(path, kind, mode="r", offset=_HEADER.size, shape=(count,))


class Split:
    """One split of one corpus, memory-mapped.

    Attributes:
        tokens: [n_tokens] uint16 or uint32; every document is followed by end-of-text.
        n_documents: number of documents.
        n_tokens: number of tokens, end-of-text included.
        n_bytes: UTF-8 bytes of all texts.
        tokenizer_sha256: of the tokenizer that made the tokens.
        index: the corpus's whole index.
    """

    def __init__(self, folder: Path, name: str, index: dict[str, Any]):
        counts = index["splits"][name]
        self.folder, self.name, self.index = folder, name, index
        self.n_documents: int = counts["documents"]
        self.n_tokens: int = counts["tokens"]
        self.n_bytes: int = counts["bytes"]
        self.tokenizer_sha256: str = index["tokenizer_sha256"]
        self.tokens = open_array(
            folder / f"{name}.bin", np.dtype(index["dtype"]).newbyteorder("<"), self.n_tokens
        )
        self._docs = open_array(folder / f"{name}.docs.bin", "<i8", 2 * self.n_documents).reshape(-1, 2)

    @classmethod
    def open(cls, folder: str | Path, name: str, tokenizer: Tokenizer | None = None) -> Self:
        """Open a split; with `tokenizer`, make sure that it is the one the shards were made with.

        Raises:
            InputError: missing, damaged, an unknown split, or another tokenizer's tokens.
        """
        folder = Path(folder)
        if name not in SPLITS:
            raise InputError(f"split {name!r}: must be one of {', '.join(SPLITS)}")
        split = cls(folder, name, load_index(folder))
        if tokenizer is not None:
            split.check_tokenizer(tokenizer.sha256)
        return split

    def check_tokenizer(self, sha256: str) -> None:
        """Raise InputError unless these tokens were made with the tokenizer of this hash."""
        if self.tokenizer_sha256 != sha256:
            raise InputError(
                f"{self.folder}: shards were made with tokenizer {self.tokenizer_sha256[:12]}, "
                f"not {sha256[:12]}; run `hope-data shard` with this tokenizer"
            )

    def document(self, i: int) -> npt.NDArray[Any]:
        """Tokens of document i without its end-of-text."""
        start = int(self._docs[i - 1, 0]) if i else 0
        return np.asarray(self.tokens[start : int(self._docs[i, 0]) - 1])

    def document_bytes(self, i: int) -> int:
        """UTF-8 bytes of document i."""
        return int(self._docs[i, 1])

    @property
    def ends(self) -> npt.NDArray[np.int64]:
        """Offset [n_documents] of the token after each document's end-of-text."""
        return np.asarray(self._docs[:, 0])

    @property
    def byte_lengths(self) -> npt.NDArray[np.int64]:
        """UTF-8 bytes [n_documents] of each document."""
        return np.asarray(self._docs[:, 1])
