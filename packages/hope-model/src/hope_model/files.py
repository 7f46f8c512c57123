"""Write files whole: a reader sees the old bytes or the new ones, however many write at once and whoever is killed."""

import fcntl
import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path

_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp")


def write_atomic(path: Path, data: bytes) -> None:
    """Write beside the target under a name of one's own, flush to disk, rename.

    Temporaries of killed writers in the same folder are removed: a live writer holds a lock on its own.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(path.parent)
    handle, temporary = _temporary(path)
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


def _temporary(path: Path) -> tuple[int, Path]:
    """A new file and a descriptor that locks it while its writer lives."""
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.", suffix=".tmp")
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
                path.unlink()
            finally:
                os.close(handle)


def _fsync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
