"""Check files against their recorded hashes; of large ones, remember that nothing has touched them since.

What is opened is hashed, a second per gigabyte. For more than a gigabyte a seal may stand in: it lists each file's
size, times and inode at the time when its hash was right. No program can set the time of change that the kernel keeps
(ctime), so a seal that still holds means that nobody has written to the file; what a disk does to its own bits it does
not see, and `hope-data validate` reads everything whatever a seal says.

Seals lie in the user's cache folder: shards are outputs of DVC, which hashes all files that lie with them.
"""

import os
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hope_data.errors import InputError
from hope_data.files import dump_sealed, load_sealed, sha256_bytes
from hope_data.publishing import write_atomic

# Bytes up to which files are read whenever they are opened by a new process.
_SMALL = 1 << 30
# A file that changed so recently may change again within the same tick of the clock (seconds).
_SETTLED = 10.0
_Stamp = list[int]
# Of this process: what a seal would say of smaller files.
_checked: dict[Path, tuple[_Stamp, str]] = {}


def compare(path: Path, sha256: str, recorded: str | None, remedy: str) -> None:
    """Raise InputError unless a file's hash is the recorded one."""
    if sha256 != recorded:
        raise InputError(f"{path}: is damaged (sha256 differs from the recorded one); {remedy}")


def holds(folder: Path, hashes: Mapping[str, str]) -> bool:
    """Whether these files had these hashes when they were last read, and nothing has touched them since."""
    stamps, sealed = _stamps(folder, hashes), _load(folder)
    return all(
        [stamp, hashes[name]] in ([*_checked.get(folder / name, ())], sealed.get(name))
        for name, stamp in stamps.items()
    )


@contextmanager
def sealing(folder: Path, hashes: Mapping[str, str]) -> Iterator[None]:
    """Seal files if the block, which checks their hashes, ends well and nothing touches them meanwhile."""
    begin, before = time.time(), _stamps(folder, hashes)
    yield
    if _stamps(folder, hashes) != before or any(
        stamp[2] / 1e9 > begin - _SETTLED for stamp in before.values()
    ):
        return
    _checked.update({folder / name: (stamp, hashes[name]) for name, stamp in before.items()})
    if sum(stamp[0] for stamp in before.values()) > _SMALL:
        new = {name: [stamp, hashes[name]] for name, stamp in before.items()}
        with suppress(OSError):  # a full disk, or no home: the next process reads the files again
            path = _place(folder)
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomic(path, dump_sealed({**_load(folder), **new}))
            path.chmod(0o600)


def _stamps(folder: Path, names: Mapping[str, str]) -> dict[str, _Stamp]:
    """Size, time of last writing, time of last change, inode and device of each file."""
    stamps = {}
    for name in names:
        try:
            status = (folder / name).stat()
        except OSError as error:
            raise InputError(f"{folder / name}: {error.strerror}") from None
        stamps[name] = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev]
    return stamps


def _place(folder: Path) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "hope-data" / "seals" / f"{sha256_bytes(os.fsencode(folder.resolve()))[:32]}.json"


def _load(folder: Path) -> dict[str, Any]:
    """The seals of a folder's files; none if somebody else could have written them."""
    try:
        path = _place(folder)
        for place in (path.parent, path):
            status = place.lstat()
            if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                return {}
        return load_sealed(path, "")
    except (OSError, RuntimeError, InputError):  # RuntimeError: there is no home
        return {}
