"""Documents on disk: a folder of zstd JSONL parts with one sealed `provenance.json`."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zstandard

from hope_data.compressed import lines
from hope_data.errors import InputError
from hope_data.files import conform, load_sealed, plain_name, sha256_file

PROVENANCE = "provenance.json"
# A line of a part: a document of the longest kind, every character of it escaped.
INNER_LINE = 1 << 30
_FORM = {"corpus": str, "documents": int, "bytes": int, "files": [str]}
_BATCH_DOCUMENTS, _BATCH_CHARS = 256, 1 << 20


@dataclass(frozen=True)
class Document:
    """One text with its name and where it comes from."""

    text: str
    id: str
    meta: dict[str, Any] = field(default_factory=dict)


def utf8_length(text: str) -> int:
    """Bytes of a text as it comes from a source, where a surrogate may stand alone, as JSON allows."""
    return len(text.encode(errors="surrogatepass"))


def batches(rows: Iterable[Document]) -> Iterator[list[Document]]:
    """Documents to work on together: many enough to keep threads busy, few enough to keep memory flat."""
    held: list[Document] = []
    size = 0
    for row in rows:
        held.append(row)
        size += len(row.text)
        if len(held) == _BATCH_DOCUMENTS or size >= _BATCH_CHARS:
            yield held
            held, size = [], 0
    if held:
        yield held


def line_of(document: Document) -> bytes:
    """A document as a line of a part."""
    row = {"text": document.text, "id": document.id, "meta": document.meta}
    # A file's name may hold what is no Unicode; JSON can say it.
    return json.dumps(row, ensure_ascii=False, sort_keys=True).encode(errors="backslashreplace") + b"\n"


class Writer:
    """Writes documents into numbered parts; a new part begins after `part_bytes` of text (0: never).

    The bytes depend on the documents and their order only (one compression thread, fixed level).
    """

    def __init__(self, folder: Path, part_bytes: int = 64 << 20, name: str = "part-{:05d}.jsonl.zst"):
        self.folder, self.part_bytes, self.name = folder, part_bytes, name
        self.documents = self.bytes = 0
        self.names: list[str] = []
        self._room = 0
        self._stream: zstandard.ZstdCompressionWriter | None = None
        if not part_bytes:
            self._next_part()

    def write(self, document: Document) -> None:
        size = len(document.text.encode())
        if (self.part_bytes and self._room < size) or self._stream is None:
            self._next_part()
        self.write_line(line_of(document))
        self._room -= size
        self.documents += 1
        self.bytes += size

    def write_line(self, line: bytes) -> None:
        """Append a document's line as it stands in another part."""
        if self._stream is not None:
            self._stream.write(line)

    def _next_part(self) -> None:
        self._close_part()
        name = self.name.format(len(self.names))
        file = (self.folder / name).open("wb")
        self._stream = zstandard.ZstdCompressor(level=3).stream_writer(file, closefd=True)
        self.names.append(name)
        self._room = self.part_bytes

    def _close_part(self) -> None:
        if self._stream is not None:
            self._stream.close()  # type: ignore[no-untyped-call]
            self._stream = None

    def close(self) -> dict[str, Any]:
        """Finish the last part.

        Returns:
            {"documents", "bytes", "files": {name: sha256}}.
        """
        self._close_part()
        files = {name: sha256_file(self.folder / name) for name in self.names}
        return {"documents": self.documents, "bytes": self.bytes, "files": files}


def provenance(folder: Path, kind: str = "") -> dict[str, Any]:
    """The sealed record of a folder of documents.

    Args:
        folder: of a corpus.
        kind: the corpus must be `raw` or `clean`.

    Raises:
        InputError: not such a folder, damaged, or a corpus of the other kind.
    """
    remedy = "run `hope-data acquire` (raw) or `hope-data filter` (clean) for it"
    record = load_sealed(folder / PROVENANCE, remedy)
    conform(folder / PROVENANCE, record, _FORM, remedy)
    if kind and kind != (actual := _kind(record)):
        raise InputError(f"{folder}: is a {actual} corpus where a {kind} one is needed; {remedy}")
    for name in [*record["files"], *record.get("signatures", ())]:
        plain_name(folder / PROVENANCE, name)
    return record


def _kind(record: dict[str, Any]) -> str:
    # Only what has been filtered knows its splits.
    return "clean" if "split" in record else "raw"


def check_kind(out: Path, kind: str) -> None:
    """Raise InputError if a corpus of the other kind, perhaps the one that is read, stands where `kind` is written."""
    try:
        existing = _kind(provenance(out))
    except InputError:
        return
    if existing != kind:
        raise InputError(
            f"{out}: holds a {existing} corpus, which a {kind} one shall not replace; name another --out"
        )


def read(folder: Path) -> Iterator[Document]:
    """Yield the documents of a folder in their order.

    Raises:
        InputError: a part is missing or is not what the provenance promises.
    """
    for name in provenance(folder)["files"]:
        yield from read_part(folder, name)


def read_part(folder: Path, name: str) -> Iterator[Document]:
    """Yield the documents of one part.

    Raises:
        InputError: it is missing or is not what the provenance promises.
    """
    path = folder / name
    if not path.is_file() or sha256_file(path) != provenance(folder)["files"][name]:
        raise InputError(f"{path}: is missing or damaged (sha256 differs); make the folder again")
    for _, line in lines(path, INNER_LINE):
        try:
            row = json.loads(line)
            document = Document(row["text"], row["id"], row["meta"])
        except (ValueError, KeyError, TypeError, RecursionError):
            raise InputError(f"{path}: holds what is no document; make the folder again") from None
        yield document


def json_of(line: bytes, where: str) -> Any:
    """Parse a line of somebody else's JSON.

    Raises:
        InputError: it holds none, or in another encoding.
    """
    try:
        return json.loads(line)
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: is no UTF-8 ({error.reason}); convert it with iconv") from None
    # RecursionError: brackets by the thousand.
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: is no JSON ({error}); mend or remove the line") from None


def text_of(row: Mapping[str, Any], fields: list[str], joiner: str, where: str) -> str:
    """The text of a row: its fields, strings or lists of strings, joined.

    Raises:
        InputError: a field is missing or holds no text.
    """
    parts: list[str] = []
    for name in fields:
        if name not in row:
            have = ", ".join(map(str, row)) or "none"
            raise InputError(f"{where}: no field {name!r} (it has {have}); set `fields` in the manifest")
        value = row[name]
        strings = value if isinstance(value, list) else [value]
        if not all(isinstance(s, str) for s in strings):
            raise InputError(f"{where}: field {name!r} is no text; set `fields` in the manifest")
        parts += strings
    return joiner.join(parts)
