"""Publish output whole, one writer at a time: locks, atomic files and atomic folders.

Every command that writes follows the same discipline:

1. Take `exclusive(out)`: one process at a time writes an output, the second is refused in one line (or waits).
2. Write into a temporary beside the output, under a name that nobody else uses (`.NAME.RANDOM.tmp`).
3. Flush it to the disk and rename it onto the output. The lock is released only afterwards.

A killed process leaves its temporary behind. The next writer in that folder removes it: every live temporary is
locked by its writer, so one whose lock is free has none.
"""

import errno
import fcntl
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hope_data.errors import InputError

# Outputs that a process holds, with its id: taking one twice would otherwise wait for itself, and a forked child
# holds nothing.
_HELD: set[tuple[int, Path]] = set()
# Folders in which this process has looked for temporaries of dead writers.
_SWEPT: set[Path] = set()
_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp")


@contextmanager
def exclusive(out: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold an output, a file or a folder, for this process until the block ends.

    The lock is a hidden file beside the output, locked by `flock`: it ends with the process however that dies.
    A block inside another for the same output, in one process, changes nothing.

    Args:
        out: what is written; it need not exist yet.
        wait: wait for another process to finish instead of failing.

    Raises:
        InputError: another process holds it.
    """
    if out.name in ("", ".."):
        raise InputError(f"{str(out)!r} names no file or folder that could be written; give its name")
    path = Path(os.path.abspath(out))  # noqa: PTH100 (Path has no form that takes ".." away)
    path = path.parent.resolve() / path.name
    held = (os.getpid(), path)
    if held in _HELD:
        yield
        return
    absent = not path.parent.exists()
    lock = path.with_name(f".{path.name}.lock")
    handle = _acquire(lock, out, wait=wait)
    _HELD.add(held)
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        _remove_stale(path.parent, path.name)
        yield
    finally:
        _HELD.discard(held)
        # Removed while it is held: whoever waits for this file sees that it has gone, and makes its own.
        lock.unlink(missing_ok=True)
        os.close(handle)
        if absent:  # a folder made for the lock alone goes with it
            with suppress(OSError):
                path.parent.rmdir()


def _acquire(lock: Path, out: Path, *, wait: bool) -> int:
    attempts = 0
    while True:
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            # Never through a link, which another user could have put into a shared folder.
            handle = os.open(lock, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o644)
        except FileNotFoundError:  # the folder went with another process's lock, or takes no files as /proc
            attempts += 1
            if attempts > 100:
                raise
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _same(handle, lock):
                return handle
        except BlockingIOError:
            if not wait:
                holder = os.pread(handle, 32, 0).decode(errors="replace").strip()
                os.close(handle)
                process = f"process {holder}" if holder.isdigit() else "another process"
                raise InputError(
                    f"{out}: {process} is writing it; wait until it has finished, or name another output"
                ) from None
            time.sleep(0.05)
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _same(handle: int, path: Path) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    here = os.fstat(handle)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old bytes or the new ones, never half of them."""
    if path.exists() and (not path.is_file() or path.absolute().parts[1] in ("dev", "proc")):
        path.write_bytes(data)  # a pipe or /dev/stdout, which a rename would replace
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = path.parent.absolute()
    if folder not in _SWEPT:  # once: a folder of many files would be listed for each of them
        _remove_stale(folder)
        _SWEPT.add(folder)
    handle, temporary = _temporary(path, folder=False)
    try:
        with open(handle, "wb", closefd=False) as file:
            file.write(data)
            file.flush()
            os.fsync(handle)
        temporary.replace(path)
        fsync(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)


@contextmanager
def temporary_folder(out: Path) -> Iterator[Path]:
    """Yield an empty folder beside `out`, which is removed at the end unless it was renamed."""
    with exclusive(out):
        handle, folder = _temporary(out, folder=True)
        try:
            yield folder
        finally:
            if _same(handle, folder):
                shutil.rmtree(folder, ignore_errors=True)
            os.close(handle)


@contextmanager
def new_folder(out: Path, marker: str) -> Iterator[Path]:
    """Yield a temporary folder beside `out`, which takes the place of `out` when the block ends well.

    Args:
        out: the folder to make. One that is there already is replaced if it is empty or holds `marker`.
        marker: file name by which this package knows its own output.

    Raises:
        InputError: `out` holds somebody else's files, or another process is writing it.
    """
    try:
        with temporary_folder(out) as folder:
            recover_folder(out)
            # Not before the lock is held: between two renames of another process `out` is away.
            check_replaceable(out, marker)
            yield folder
            replace_folder(folder, out)
    except OSError as error:
        raise InputError(unwritable(out, error)) from None


def unwritable(out: Path, error: OSError) -> str:
    """Say in one line why an output cannot be written."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    remedy = "make room for it" if full else "mend that, or name another output"
    return f"{out}: cannot be written ({error.strerror or error}); {remedy}"


def check_replaceable(out: Path, marker: str) -> None:
    """Raise InputError unless `out` is absent, empty or holds `marker`, by which this package knows its own."""
    if out.exists() and not (out.is_dir() and ((out / marker).is_file() or not any(out.iterdir()))):
        raise InputError(
            f"{out}: exists and was not written by this command (no {marker}); name another --out"
        )


def replace_folder(folder: Path, out: Path) -> None:
    """Put a finished folder in the place of `out`, all its bytes on the disk first.

    Between the two renames a kill leaves `out` away and its predecessor beside it; `recover_folder` mends that.
    Call both only while holding `exclusive(out)`.
    """
    for path in folder.rglob("*"):
        fsync(path)
    fsync(folder)
    recover_folder(out)
    if out.exists():
        out.replace(_predecessor(out))
    folder.replace(out)
    fsync(out.parent)
    _discard_predecessor(out)


def recover_folder(out: Path) -> None:
    """Undo a `replace_folder` that was killed between its renames."""
    old = _predecessor(out)
    if old.exists() and not out.exists():
        old.replace(out)
    _discard_predecessor(out)


def _discard_predecessor(out: Path) -> None:
    # Renamed first, so that half of one is never taken for a whole one.
    if (old := _predecessor(out)).exists():
        rubbish = _name(out)
        old.replace(rubbish)
        shutil.rmtree(rubbish, ignore_errors=True)


def _predecessor(out: Path) -> Path:
    return out.with_name(f".{out.name}.old")


def fsync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _name(out: Path) -> Path:
    return out.with_name(f".{out.name}.{secrets.token_hex(4)}.tmp")


def _temporary(out: Path, *, folder: bool) -> tuple[int, Path]:
    """A new temporary beside `out` and a descriptor that locks it while its writer lives."""
    while True:
        path = _name(out)
        try:
            if folder:
                path.mkdir()
            handle = os.open(path, os.O_RDONLY if folder else os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        except FileExistsError:
            continue
        except FileNotFoundError:
            if not folder or not out.parent.exists():
                raise
            continue  # somebody took it for stale before it was locked
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            continue
        except OSError:
            # Network file systems lock no folders; `exclusive` guards this one.
            if not folder:
                raise
        if _same(handle, path):
            return handle, path
        os.close(handle)


def _remove_stale(folder: Path, held: str = "") -> None:
    """Remove temporaries in a folder whose writers are dead; folders for the output `held` have none."""
    with os.scandir(folder) as entries:
        stale = [Path(entry.path) for entry in entries if _TEMPORARY.fullmatch(entry.name)]
    for path in stale:
        with suppress(OSError):
            if path.is_dir() and path.name[1:-13] == held:
                shutil.rmtree(path, ignore_errors=True)
                continue
            mode = os.O_RDONLY if path.is_dir() else os.O_RDWR
            handle = os.open(path, mode | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink()
            finally:
                os.close(handle)
