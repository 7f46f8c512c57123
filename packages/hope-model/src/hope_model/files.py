"""Files that are written whole, and JSON that is read with care.

A reader sees the old bytes or the new ones, however many write at once and whoever is killed.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

from hope_model.errors import InputError

_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp")


def open_regular(path: Path) -> BufferedReader:
    """Open a file to read. A pipe would wait for ever and a device has no end, so both are an OSError at once."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        kind = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(kind, os.strerror(kind) if kind == errno.EISDIR else "is no regular file", str(path))
    return os.fdopen(handle, "rb")


def read_bytes(path: Path, most: int = 2**40) -> bytes:
    """Read a whole file; one of more than `most` bytes is an OSError before it is read."""
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > most:
            raise OSError(errno.EFBIG, f"is larger than {most:,} bytes", str(path))
        return file.read()


def sha256(path: Path) -> str:
    """Return the hash of a file."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def parse_json(data: bytes, name: str) -> dict[str, Any]:
    """Return the JSON object in `data`; whatever else it is raises `InputError` with `name` in one line."""
    try:
        value = json.loads(data.decode("utf-8"))
    except RecursionError:
        raise InputError(f"{name} is not valid JSON: it is nested too deeply") from None
    except ValueError as error:  # no UTF-8, no JSON, or a number of more than 4,300 digits
        raise InputError(f"{name} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f"{name} must hold a JSON object")
    return value


def no_checkpoint(missing: Path) -> str:
    """What to say of a checkpoint's file that is not there; of a run's folder, which checkpoint lies in it."""
    folder = missing.parent
    seeds = sorted(folder.glob("seeds/*/checkpoint"), key=lambda inner: (len(inner.parent.name), inner))
    within = (folder / "checkpoint", *seeds)
    meant = next((inner for inner in within if (inner / missing.name).is_file()), None)
    hint = f"is {folder} a checkpoint folder?" if meant is None else f"did you mean {meant}?"
    return f"{missing} is missing; {hint}"


def write_atomic(path: Path, data: bytes) -> None:
    """Write beside the target under a name of one's own, flush to disk, rename.

    Temporaries of killed writers in the same folder are removed: a live writer holds a lock on its own.
    """
    if path.exists() and not path.is_file():
        path.write_bytes(data)  # a pipe or /dev/stdout, which a rename would replace
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(path.parent)
    handle, temporary = _temporary(path, folder=False)
    try:
        with open(handle, "wb", closefd=False) as file:
            file.write(data)
            file.flush()
            os.fsync(handle)
        temporary.chmod(0o644)
        temporary.replace(path)
        _fsync(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)


def refuse_existing(out: Path) -> None:
    """Raise `InputError` if a folder that is to be made is there already."""
    if out.exists():
        raise InputError(f"{out} exists; name a new folder")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `out`, which must not exist, when the block ends well."""
    out.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(out.parent)
    handle, folder = _temporary(out, folder=True)
    try:
        folder.chmod(0o755)
        yield folder
        for path in folder.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)  # safetensors writes for the owner only
        os.sync()
        try:
            folder.rename(out)
        except OSError:
            refuse_existing(out)  # since
            raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def _temporary(path: Path, *, folder: bool) -> tuple[int, Path]:
    """A new file or folder and a descriptor that locks it while its writer lives."""
    prefix, suffix = f".{path.name[:100]}.", ".tmp"
    while True:
        if folder:
            name = tempfile.mkdtemp(dir=path.parent, prefix=prefix, suffix=suffix)
            handle = os.open(name, os.O_RDONLY)
        else:
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=prefix, suffix=suffix)
        with suppress(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if Path(name).exists():
                return handle, Path(name)
        os.close(handle)  # somebody took it for stale before it was locked


def _remove_stale(folder: Path) -> None:
    for path in (entry for entry in folder.iterdir() if _TEMPORARY.fullmatch(entry.name)):
        with suppress(OSError):
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
            finally:
                os.close(handle)


def _fsync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
