"""Token shards: memory-mapped files per corpus, and an index that vouches for every byte of them.

    index.json                     sealed JSON: counts, hashes, tokenizer, provenance
    {train,val,test}.bin           header + uint16/uint32 [n_tokens], every document followed by end-of-text
    {train,val,test}.docs.bin      header + int64 [n_documents, 2]: end offset in tokens, UTF-8 bytes

A corpus of several parts has one such pair per part and split, `train-00000.bin` and so on, so that no worker
waits for another and merging is no more than listing them. All numbers are little-endian. The header is 32 bytes:
magic, version, item size, number of items.
"""

import hashlib
import os
import struct
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from hope_data import seals
from hope_data.errors import InputError
from hope_data.files import check_name, conform, load_sealed, open_regular, plain_name, sha256_file
from hope_data.splits import SPLITS
from hope_data.tokenizer import Tokenizer

INDEX = "index.json"
REMEDY = "run `hope-data shard` for it again"
_HEADER = struct.Struct("<8sIIQ8x")
_MAGIC = b"HOPEDATA"
_VERSION = 1
HEADER_SIZE = _HEADER.size
_CHUNK = 1 << 20
_SPLIT = {"documents": int, "tokens": int, "bytes": int, "files": [str]}
_FORM = {
    "corpus": str,
    "dtype": str,
    "vocab_size": int,
    "eos_id": int,
    "tokenizer_sha256": str,
    "splits": dict.fromkeys(SPLITS, _SPLIT),
    "provenance": {"dropped": [int]},
}


def token_type(vocab_size: int) -> np.dtype[Any]:
    """Smallest of uint16 and uint32 that holds every token id."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def header(item_size: int, count: int) -> bytes:
    """The first 32 bytes of a file of `count` items."""
    return _HEADER.pack(_MAGIC, _VERSION, item_size, count)


def load_index(folder: Path) -> dict[str, Any]:
    """The sealed index of one corpus's shards.

    Raises:
        InputError: missing, damaged, or of another form.
    """
    index = load_sealed(folder / INDEX, REMEDY)
    conform(folder / INDEX, index, _FORM, REMEDY)
    if index["dtype"] != token_type(index["vocab_size"]).name:
        raise InputError(f"{folder / INDEX}: dtype {index['dtype']!r} does not fit its vocab_size; {REMEDY}")
    return index


def corpora(folder: Path, names: list[str] | None = None) -> list[Path]:
    """Corpus folders under `folder` (or `folder` itself if it is one), sorted by name, or those named.

    Raises:
        InputError: none there, or a named one is missing.
    """
    if names:
        for name in names:
            check_name("corpus", name)
        missing = [name for name in names if not (folder / name / INDEX).is_file()]
        if missing:
            raise InputError(f"{folder}: no shards of corpus {', '.join(missing)}; {REMEDY}")
        return [folder / name for name in names]
    if (folder / INDEX).is_file():
        return [folder]
    folders = sorted(
        path.parent for path in folder.glob(f"*/{INDEX}") if not path.parent.name.startswith(".")
    )
    if not folders:
        raise InputError(f"{folder}: no shards here; run `hope-data shard` first")
    return folders


def open_array(path: Path, dtype: npt.DTypeLike) -> np.memmap[Any, np.dtype[Any]]:
    """Memory-map the items of one file after its header has been checked.

    Raises:
        InputError: missing, of another format, or not as long as its header promises.
    """
    kind = np.dtype(dtype)
    try:
        size = path.stat().st_size
        with open_regular(path) as file:
            begin = file.read(HEADER_SIZE)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; {REMEDY}") from None
    count = _HEADER.unpack(begin)[3] if len(begin) == HEADER_SIZE else 0
    if not count or begin != header(kind.itemsize, count):
        raise InputError(f"{path}: header does not fit {INDEX}; {REMEDY}")
    if size != HEADER_SIZE + count * kind.itemsize:
        raise InputError(f"{path}: {size} bytes where the header promises {count} items; {REMEDY}")
    return np.memmap(path, kind, mode="r", offset=HEADER_SIZE, shape=(count,))


class Tokens:
    """Tokens of several shards, to be read like one array: slices, `len`, `numpy.asarray`."""

    def __init__(self, pieces: list[npt.NDArray[Any]]):
        self._pieces = pieces
        self._starts = np.cumsum([0] + [len(piece) for piece in pieces])
        self.dtype = pieces[0].dtype
        self.shape = (int(self._starts[-1]),)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, where: slice) -> npt.NDArray[Any]:
        """A copy-free view where the slice lies in one shard, else a new array."""
        start, stop, step = where.indices(len(self))
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        parts = []
        for k in range(first, len(self._pieces)):
            at = int(self._starts[k])
            if at >= stop:
                break
            parts.append(self._pieces[k][max(0, start - at) : stop - at])
        whole = parts[0] if len(parts) == 1 else np.concatenate([*parts, np.empty(0, self.dtype)])
        return np.asarray(whole[::step])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """All tokens in memory."""
        return np.concatenate(self._pieces).astype(dtype or self.dtype, copy=False)

    def tolist(self) -> list[int]:
        return [token for piece in self._pieces for token in piece.tolist()]


class Shard:
    """One pair of files of a split.

    Attributes:
        paths: files of tokens and of documents.
        tokens: [n_tokens], memory-mapped; every document is followed by end-of-text.
        ends: int64 [n_documents], offset of the token after each document's end-of-text.
        byte_lengths: int64 [n_documents], UTF-8 bytes of each document.
    """

    def __init__(self, folder: Path, name: str, dtype: npt.DTypeLike):
        self.paths = folder / f"{name}.bin", folder / f"{name}.docs.bin"
        self.tokens = open_array(self.paths[0], dtype)
        docs = open_array(self.paths[1], "<i8")
        if len(docs) % 2:
            raise InputError(f"{self.paths[1]}: an odd number of items; {REMEDY}")
        pairs = docs.reshape(-1, 2)
        self.ends, self.byte_lengths = pairs[:, 0], pairs[:, 1]
        if self.ends[-1] != len(self.tokens):
            raise InputError(f"{self.paths[1]}: does not end where {name}.bin does; {REMEDY}")

    def check(self, hashes: dict[str, str], vocab_size: int, eos_id: int) -> None:
        """Read every byte: hashes, tokens within the vocabulary, documents in order and ended by end-of-text.

        Raises:
            InputError: the first thing that is wrong, by file.
        """
        tokens, docs = self.paths
        seals.compare(docs, sha256_file(docs), hashes.get(docs.name), REMEDY)
        sha256, highest, n_ends = _scan(tokens, self.tokens.dtype, eos_id)
        seals.compare(tokens, sha256, hashes.get(tokens.name), REMEDY)
        if highest >= vocab_size:
            raise InputError(f"{tokens}: token {highest} is outside the vocabulary of {vocab_size}; {REMEDY}")
        ends = np.asarray(self.ends)
        if not np.all(np.diff(ends, prepend=0) > 0):
            raise InputError(f"{docs}: document ends are out of order; {REMEDY}")
        if n_ends != len(ends) or not np.all(self.tokens[ends - 1] == eos_id):
            raise InputError(f"{tokens}: documents do not end in end-of-text; {REMEDY}")
        if self.byte_lengths.min() < 0:
            raise InputError(f"{docs}: a document of less than no bytes; {REMEDY}")


def _scan(path: Path, dtype: np.dtype[Any], eos_id: int) -> tuple[str, int, int]:
    """Hash of a file of tokens, its highest token and how many are end-of-text, in one reading."""
    sha256, highest, n_ends = hashlib.sha256(), 0, 0
    buffer = bytearray(_CHUNK)
    tokens = np.frombuffer(buffer, dtype)
    with path.open("rb", buffering=0) as file:
        sha256.update(file.read(HEADER_SIZE))
        while size := file.readinto(buffer):
            sha256.update(memoryview(buffer)[:size])
            part = tokens[: size // dtype.itemsize]
            highest = max(highest, int(part.max(initial=0)))
            n_ends += int(np.count_nonzero(part == eos_id))
    return sha256.hexdigest(), highest, n_ends


class Split:
    """One split of one corpus, memory-mapped.

    Attributes:
        shards: its pairs of files, in order.
        tokens: [n_tokens] uint16 or uint32; every document is followed by end-of-text.
        n_documents: number of documents.
        n_tokens: number of tokens, end-of-text included.
        n_bytes: UTF-8 bytes of all texts.
        eos_id: end-of-text.
        tokenizer_sha256: of the tokenizer that made the tokens.
        index: the corpus's whole index.
    """

    def __init__(self, folder: Path, name: str, index: dict[str, Any]):
        counts = index["splits"][name]
        self.folder, self.name, self.index = folder, name, index
        self.n_documents: int = counts["documents"]
        self.n_tokens: int = counts["tokens"]
        self.n_bytes: int = counts["bytes"]
        self.eos_id: int = index["eos_id"]
        self.tokenizer_sha256: str = index["tokenizer_sha256"]
        dtype = np.dtype(index["dtype"]).newbyteorder("<")
        files = [plain_name(folder / INDEX, file) for file in counts["files"]]
        names = sorted(f.removesuffix(".docs.bin") for f in files if f.endswith(".docs.bin"))
        self.shards = [Shard(folder, shard, dtype) for shard in names]
        actual = [sum(len(array) for array in arrays) for arrays in (self._tokens(), self._ends())]
        if actual != [self.n_tokens, self.n_documents]:
            raise InputError(f"{folder}: {name} holds {actual}, not what {INDEX} promises; {REMEDY}")
        self._starts = np.cumsum([0] + [len(shard.ends) for shard in self.shards])

    def _tokens(self) -> list[npt.NDArray[Any]]:
        return [shard.tokens for shard in self.shards]

    def _ends(self) -> list[npt.NDArray[Any]]:
        return [shard.ends for shard in self.shards]

    @property
    def tokens(self) -> npt.NDArray[Any] | Tokens:
        """Tokens [n_tokens]: an array, or of several shards what can be sliced like one."""
        return self.shards[0].tokens if len(self.shards) == 1 else Tokens(self._tokens())

    @classmethod
    def open(
        cls, folder: str | Path, name: str, tokenizer: Tokenizer | None = None, *, reread: bool = False
    ) -> Self:
        """Open a split whose every byte is as its index promises.

        Args:
            folder: shards of one corpus.
            name: of the split.
            tokenizer: make sure that it is the one the shards were made with.
            reread: read every file even where a seal holds (see `seals`).

        Raises:
            InputError: missing, damaged, an unknown split, or another tokenizer's tokens.
        """
        folder = Path(folder)
        if name not in SPLITS:
            raise InputError(f"split {name!r}: must be one of {', '.join(SPLITS)}")
        split = cls(folder, name, load_index(folder))
        if tokenizer is not None:
            split.check_tokenizer(tokenizer.sha256)
        hashes = split.index["splits"][name]["files"]
        if reread or not seals.holds(folder, hashes):
            check = partial(
                Shard.check, hashes=hashes, vocab_size=split.index["vocab_size"], eos_id=split.eos_id
            )
            with seals.sealing(folder, hashes), ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(check, split.shards))
            if int(split.byte_lengths.sum()) != split.n_bytes:
                raise InputError(f"{folder}: byte lengths of {name} do not add up; {REMEDY}")
        return split

    def check_tokenizer(self, sha256: str) -> None:
        """Raise InputError unless these tokens were made with the tokenizer of this hash."""
        if self.tokenizer_sha256 != sha256:
            raise InputError(
                f"{self.folder}: shards were made with tokenizer {self.tokenizer_sha256[:12]}, "
                f"not {sha256[:12]}; run `hope-data shard` with this tokenizer"
            )

    def _place(self, i: int) -> tuple[Shard, int]:
        if not 0 <= i < self.n_documents:
            raise IndexError(f"{self.folder}: {self.name} has no document {i}")
        k = int(np.searchsorted(self._starts, i, side="right")) - 1
        return self.shards[k], i - int(self._starts[k])

    def document(self, i: int) -> npt.NDArray[Any]:
        """Tokens of document i without its end-of-text."""
        shard, k = self._place(i)
        start = int(shard.ends[k - 1]) if k else 0
        return np.asarray(shard.tokens[start : int(shard.ends[k]) - 1])

    def document_bytes(self, i: int) -> int:
        """UTF-8 bytes of document i."""
        shard, k = self._place(i)
        return int(shard.byte_lengths[k])

    @property
    def ends(self) -> npt.NDArray[np.int64]:
        """Offset [n_documents] of the token after each document's end-of-text."""
        offsets = np.cumsum([0] + [len(tokens) for tokens in self._tokens()])
        return np.concatenate([ends + at for ends, at in zip(self._ends(), offsets, strict=False)])

    @property
    def byte_lengths(self) -> npt.NDArray[np.int64]:
        """UTF-8 bytes [n_documents] of each document."""
        return np.concatenate([shard.byte_lengths for shard in self.shards])


class Windows:
    """Windows of T+1 tokens of a split: consecutive ones share one token, and none spans two shards.

    Attributes:
        count: how many there are.
    """

    def __init__(self, split: Split, length: int):
        self._tokens, self.length = [shard.tokens for shard in split.shards], length
        self._starts = np.cumsum([0] + [(len(tokens) - 1) // length for tokens in self._tokens])
        self.count = int(self._starts[-1])

    def __getitem__(self, k: int) -> npt.NDArray[Any]:
        """Tokens [T+1] of window k."""
        shard = 0
        if len(self._tokens) > 1:
            shard = int(np.searchsorted(self._starts, k, side="right")) - 1
            k -= int(self._starts[shard])
        return self._tokens[shard][k * self.length : (k + 1) * self.length + 1]
