"""Hashes of files, names that stay in their folder, and JSON that carries its own seal."""

import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

from hope_data.errors import InputError
from hope_data.publishing import write_atomic

# Of a file that is read whole; the largest of ours are judged parts and tokenizers.
LARGEST = 2**30
# Of a YAML file; the largest of ours has 100 entries.
_DEEPEST, _ENTRIES = 200, 10_000
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


def open_regular(path: Path) -> BufferedReader:
    """Open a file to read. A pipe would wait for ever and a device has no end, so both are an OSError at once."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        kind = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(kind, os.strerror(kind) if kind == errno.EISDIR else "is no regular file", str(path))
    return os.fdopen(handle, "rb")


def read_bytes(path: Path, most: int = LARGEST) -> bytes:
    """Read a whole file; one of more than `most` bytes is an OSError before it is read."""
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > most:
            raise OSError(errno.EFBIG, f"is larger than {most:,} bytes", str(path))
        return file.read()


def check_depth(path: Path, text: str) -> None:
    """Refuse text of YAML with brackets in brackets by the hundred, which takes its reader seconds to refuse.

    Raises:
        InputError: it is nested too deeply.
    """
    depth = 0
    for bracket in re.findall(r"[][{}]", text):
        depth = depth + 1 if bracket in "[{" else max(depth - 1, 0)
        if depth > _DEEPEST:
            raise InputError(f"{path}: lists or mappings are nested too deeply")


def every_entry(path: Path, content: Any) -> Iterator[tuple[str, Any]]:
    """Yield every value of a YAML file with its key, aliases written out.

    Raises:
        InputError: more than 10,000: aliases of aliases grow exponentially, and one of itself has no end.
    """
    waiting: list[tuple[str, Any]] = [("", content)]
    count = 0
    while waiting:
        name, entry = waiting.pop()
        yield name, entry
        if isinstance(entry, dict | list):
            count += len(entry)
            if count > _ENTRIES:
                raise InputError(
                    f"{path}: more than {_ENTRIES:,} entries, its aliases written out; shorten it"
                )
            inner = entry.items() if isinstance(entry, dict) else enumerate(entry)
            waiting += [(f"{name}.{key}" if name else str(key), value) for key, value in inner]


def sha256_bytes(data: bytes) -> str:
    """Hash of bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hash of a file's bytes, in hex."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_name(what: str, name: str) -> str:
    """Return the name of a corpus if no path, shell or page could take it for something else.

    Raises:
        InputError: it holds other characters; says what it should name.
    """
    if not (isinstance(name, str) and NAME.fullmatch(name)):
        raise InputError(
            f"{what} {name!r}: a name has at most 100 letters, digits, '_', '-' and '.', and begins with no '-' or '.'"
        )
    return name


def plain_name(record: Path, name: str) -> str:
    """A file name that a record mentions, if it stays in the record's own folder.

    Raises:
        InputError: a path that leads elsewhere.
    """
    if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise InputError(f"{record}: names {name!r}, which leaves its folder; make the folder again")
    return name


def _dump(record: dict[str, Any]) -> bytes:
    # A file's name may hold what is no Unicode; JSON can say it.
    text = json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False)
    return text.encode(errors="backslashreplace") + b"\n"


def dump_sealed(record: dict[str, Any]) -> bytes:
    """JSON with a `seal`: the hash of everything else in it, so that one flipped bit is noticed."""
    return _dump({**record, "seal": sha256_bytes(_dump(record))})


def load_sealed(path: Path, remedy: str) -> dict[str, Any]:
    """Read what `dump_sealed` wrote.

    Raises:
        InputError: no such file (with `remedy`), no JSON, or bytes that the seal does not cover.
    """
    try:
        data = read_bytes(path)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or 'cannot be read'}; {remedy}") from None
    try:
        record: dict[str, Any] = json.loads(data)
        claimed = record.pop("seal")
        whole = dump_sealed(record) == data
    # RecursionError: brackets by the thousand.
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise InputError(f"{path}: is damaged (no sealed JSON); {remedy}") from None
    if not whole:
        raise InputError(f"{path}: is damaged (seal {str(claimed)[:12]} does not fit its content); {remedy}")
    return record


def conform(path: Path, value: Any, form: Any, remedy: str, key: str = "") -> None:
    """Check the form of JSON.

    Args:
        path: where it is from.
        value: what was read.
        form: a type; a dictionary of keys that must be there, each with its form; or [form] for a dictionary of any
            keys.
        remedy: what to do about another form.
        key: where in the file `value` is.

    Raises:
        InputError: it has another form; names the key.
    """
    kind = dict if isinstance(form, dict | list) else form
    if type(value) is not kind:
        raise InputError(
            f"{path}: {key or 'content'} is {type(value).__name__} where {kind.__name__} is needed; {remedy}"
        )
    for name, inner in form.items() if isinstance(form, dict) else ():
        if name not in value:
            raise InputError(f"{path}: has no {key}{'.' * bool(key)}{name}; {remedy}")
        conform(path, value[name], inner, remedy, f"{key}{'.' * bool(key)}{name}")
    for name in value if isinstance(form, list) else ():
        conform(path, value[name], form[0], remedy, f"{key}.{name}")


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write plain JSON for people and for DVC metrics."""
    write_atomic(path, _dump(record))
