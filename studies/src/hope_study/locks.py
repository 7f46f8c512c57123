"""Locks that a child which outlives its parent keeps."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event


class StoppedError(Exception):
    """Asked to stop; what was running resumes with the same command."""


@contextmanager
def locked(
    path: Path, stop: Event | None = None, say: Callable[[str], None] = lambda _: None
) -> Iterator[int]:
    """Hold a lock that a child which outlives this process keeps: it inherits the descriptor.

    Args:
        path: the file.
        stop: ends the waiting.
        say: is told that there is something to wait for.

    Raises:
        StoppedError: `stop` was set while another process had it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_CREAT | os.O_RDWR)
    try:
        if not _taken(handle):
            say(f"{path.parent}: waiting for the processes of an earlier start to end")
        while not _taken(handle):
            if (stop or Event()).wait(0.2):
                raise StoppedError
        yield handle
    finally:
        os.close(handle)


def _taken(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
