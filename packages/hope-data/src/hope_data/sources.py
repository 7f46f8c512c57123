"""Documents from files and from the Hugging Face hub, one iterator per kind of manifest."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from hope_data import hub, installed
from hope_data.compressed import LONGEST_LINE, check_growth, lines
from hope_data.config import Manifest
from hope_data.documents import Document, json_of, text_of, utf8_length
from hope_data.errors import InputError
from hope_data.source_files import FileList, find

_GUTENBERG_START = re.compile(r"\*\*\* ?START OF (?:THE|THIS) PROJECT GUTENBERG", re.IGNORECASE)
_GUTENBERG_END = re.compile(r"(?:\*\*\* ?)?END OF (?:THE |THIS )?PROJECT GUTENBERG", re.IGNORECASE)
_HEADER_LINES = 1000


class Source(Iterator[Document]):
    """A corpus's documents in a fixed order, from the beginning or from where an earlier run stood.

    Args:
        manifest: of the corpus.
        state: of an earlier run.
        listed: files of the manifest, if they have been looked for.

    Attributes:
        skipped: files left out so far, by reason.

    Raises:
        InputError: a file is missing or damaged, a line is no JSON, a field is missing, no hub in reach.
    """

    def __init__(
        self, manifest: Manifest, state: dict[str, Any] | None = None, listed: FileList | None = None
    ):
        listed = listed or files_of(manifest)
        self.skipped = Counter(listed.skipped)
        self._count = state["documents"] if state else 0
        # A hub's rows are not fetched twice; elsewhere, and between the pieces of a row, reading past them is cheap.
        self._hub: hub.Rows | None = None
        if manifest.kind == "hf":
            exact = not manifest.chunk_bytes
            commit = state["hub"]["commit"] if state else ""
            self._hub = hub.Rows(manifest, state["hub"] if state and exact else None, commit)
            rows: Iterable[Document] = self._hub
            skip = 0 if exact else self._count
        else:
            rows, skip = _local(manifest, listed.files, self.skipped), self._count
        if manifest.chunk_bytes:
            rows = (piece for row in rows for piece in _chunks(row, manifest.chunk_bytes))
        self._rows = islice(rows, skip, None)

    def __next__(self) -> Document:
        row = next(self._rows)
        self._count += 1
        return row

    def state(self) -> dict[str, Any]:
        """Where it stands now, plain JSON."""
        return {"documents": self._count, "hub": self._hub.state() if self._hub else None}


def documents(manifest: Manifest) -> Iterator[Document]:
    """Yield a corpus's documents from the beginning; see `Source`."""
    return Source(manifest)


def files_of(manifest: Manifest) -> FileList:
    """Files that a manifest's documents are read from; none if it names no files of its own."""
    return find(manifest.files, manifest.kind) if manifest.kind in _READ else FileList([], Counter())


def _local(manifest: Manifest, files: list[tuple[Path, str]], skipped: Counter[str]) -> Iterator[Document]:
    if manifest.kind == "installed-docs":
        yield from installed.documents(manifest.installed, skipped)
    for path, name in files:
        nothing = True
        for row in _READ[manifest.kind](path, name, manifest):
            nothing = False
            yield row
        if nothing:
            skipped["no text in it"] += 1


def _jsonl(path: Path, name: str, manifest: Manifest) -> Iterator[Document]:
    for number, line in lines(path):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        row = json_of(line, where)
        if not isinstance(row, dict):
            raise InputError(f"{where}: is no JSON object with a text field")
        yield Document(
            text_of(row, manifest.fields, manifest.joiner, where), f"{name}:{number}", {"file": name}
        )


def _text(path: Path, name: str, manifest: Manifest) -> Iterator[Document]:
    ends = re.compile(manifest.separator).search if manifest.separator else _never
    drops = re.compile(manifest.drop_lines).search if manifest.drop_lines else _never
    held: list[str] = []
    count = size = 0
    for line in _without_gutenberg(_decoded(path)):
        if not drops(line.rstrip("\n")):
            held.append(line)
            size += len(line)
        if size > LONGEST_LINE and not manifest.chunk_bytes:
            raise InputError(
                f"{path}: a document of over {LONGEST_LINE >> 20} MiB; set `chunk_bytes` in the manifest to cut it"
            )
        if ends(line.rstrip("\n")):
            yield Document("".join(held).strip("\n") + "\n", f"{name}:{count}", {"file": name})
            count, size, held = count + 1, 0, []
    if "".join(held).strip():
        yield Document("".join(held).strip("\n") + "\n", f"{name}:{count}", {"file": name})


def _never(_line: str) -> None:
    return None


def _decoded(path: Path) -> Iterator[str]:
    for number, line in lines(path):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8").replace("\r\n", "\n")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path}, line {number}: is no UTF-8 ({error.reason}); convert it with iconv"
            ) from None


def _without_gutenberg(rows: Iterator[str]) -> Iterator[str]:
    """Leave out the licence that Project Gutenberg puts before and after a book."""
    head = list(islice(rows, _HEADER_LINES))
    starts = [i for i, line in enumerate(head) if _GUTENBERG_START.search(line)]
    for line in chain(head[starts[0] + 1 if starts else 0 :], rows):
        if starts and _GUTENBERG_END.match(line):
            return
        yield line


def _parquet(path: Path, name: str, manifest: Manifest) -> Iterator[Document]:
    try:
        from pyarrow import ArrowException, parquet  # noqa: PLC0415
    except ImportError:
        raise InputError("kind parquet needs pyarrow: pip install 'hope-data[hf]'") from None
    number = size = 0
    try:
        packed = path.stat().st_size
        file = parquet.ParquetFile(path, page_checksum_verification=True)
        have = file.schema_arrow.names
        if missing := [field for field in manifest.fields if field not in have]:
            raise InputError(
                f"{path}: no field {missing[0]!r} (it has {', '.join(have)}); set `fields` in the manifest"
            )
        # Few at a time: a packed row may be long.
        for batch in file.iter_batches(batch_size=64, columns=manifest.fields):
            for row in batch.to_pylist():
                where = f"{path}, row {number}"
                text = text_of(row, manifest.fields, manifest.joiner, where)
                number, size = number + 1, size + len(text)
                check_growth(where, size, packed)
                yield Document(text, f"{name}:{number - 1}", {"file": name})
    except InputError:
        raise
    # ValueError: text that is no UTF-8.
    except (ArrowException, OSError, ValueError, MemoryError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}, row {number}: is no readable parquet file ({reason})") from None


def _chunks(document: Document, size: int) -> Iterator[Document]:
    """Cut a long text at paragraph ends (at line ends where a paragraph is itself too long)."""
    held: list[str] = []
    n_bytes = count = 0
    whole = utf8_length(document.text) <= size
    for line in document.text.splitlines(keepends=True):
        held.append(line)
        n_bytes += utf8_length(line)
        if not whole and n_bytes >= (size if not line.strip() else 2 * size):
            yield _piece(document, held, count)
            held, n_bytes, count = [], 0, count + 1
    if held:
        yield document if whole else _piece(document, held, count)


def _piece(document: Document, lines: list[str], count: int) -> Document:
    return Document("".join(lines).strip("\n") + "\n", f"{document.id}#{count}", document.meta)


_READ = {"jsonl": _jsonl, "text": _text, "parquet": _parquet}
