"""Whole or not at all: folders and files that appear finished, and JSON that carries its own seal."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hope_data.errors import InputError


def sha256_bytes(data: bytes) -> str:
    """Hash of bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hash of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def plain_name(record: Path, name: str) -> str:
    """A file name that a record mentions, if it stays in the record's own folder.

    Raises:
        InputError: a path that leads elsewhere.
    """
    if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise InputError(f"{record}: names {name!r}, which leaves its folder; make the folder again")
    return name


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old bytes or the new ones, never half of them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
        fsync(path.parent)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def fsync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_replaceable(out: Path, marker: str) -> None:
    """Raise InputError unless `out` is absent, empty or holds `marker`, by which this package knows its own."""
    if out.exists() and not (out.is_dir() and ((out / marker).is_file() or not any(out.iterdir()))):
        raise InputError(
            f"{out}: exists and was not written by this command (no {marker}); name another --out"
        )


def replace_folder(work: Path, out: Path) -> None:
    """Put `work` in the place of `out`, all its bytes on the disk first."""
    for path in work.rglob("*"):
        fsync(path)
    fsync(work)
    old = out.parent / f".{out.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.replace(old)
    work.replace(out)
    fsync(out.parent)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def new_folder(out: Path, marker: str) -> Iterator[Path]:
    """Yield a temporary folder beside `out`, which takes the place of `out` when the block ends well.

    Args:
        out: the folder to make. One that is there already is replaced if it is empty or holds `marker`.
        marker: file name by which this package knows its own output.

    Raises:
        InputError: `out` holds somebody else's files.
    """
    check_replaceable(out, marker)
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        work.chmod(0o755)
        yield work
        replace_folder(work, out)
    except OSError as error:
        shutil.rmtree(work, ignore_errors=True)
        raise InputError(f"{out}: cannot be written ({error.strerror or error}); make room for it") from None
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def _dump(record: dict[str, Any]) -> str:
    return json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def dump_sealed(record: dict[str, Any]) -> bytes:
    """JSON with a `seal`: the hash of everything else in it, so that one flipped bit is noticed."""
    return _dump({**record, "seal": sha256_bytes(_dump(record).encode())}).encode()


def load_sealed(path: Path, remedy: str) -> dict[str, Any]:
    """Read what `dump_sealed` wrote.

    Raises:
        InputError: no such file (with `remedy`), no JSON, or bytes that the seal does not cover.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or 'cannot be read'}; {remedy}") from None
    try:
        record: dict[str, Any] = json.loads(data)
        claimed = record.pop("seal")
    except (ValueError, KeyError, AttributeError, TypeError):
        raise InputError(f"{path}: is damaged (no sealed JSON); {remedy}") from None
    if dump_sealed(record) != data:
        raise InputError(f"{path}: is damaged (seal {str(claimed)[:12]} does not fit its content); {remedy}")
    return record


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write plain JSON for people and for DVC metrics."""
    write_atomic(path, _dump(record).encode())
