"""A progress bar on a terminal, silence elsewhere."""

import sys
from collections.abc import Iterable, Iterator
from multiprocessing import parent_process
from typing import TypeVar

from hope_data.documents import Document, utf8_length

T = TypeVar("T")


def _visible() -> bool:
    # Worker processes leave the terminal to the one that started them.
    return sys.stderr.isatty() and parent_process() is None


def track(rows: Iterator[Document], n_bytes: int, label: str) -> Iterator[Document]:
    """Pass documents on; on a terminal show bytes, rate and, where `n_bytes` is known, time left (stderr)."""
    if not _visible():
        yield from rows
        return
    # ruff: noqa: PLC0415
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (TextColumn(label), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(label, total=n_bytes or None)
        for row in rows:
            yield row
            progress.advance(task, utf8_length(row.text))


def steps(things: Iterable[T], total: int, label: str) -> Iterator[T]:
    """Pass things on; on a terminal show how many of `total` are done, and the time left (stderr)."""
    if not _visible():
        yield from things
        return
    from rich.console import Console
    from rich.progress import track as show

    yield from show(things, label, total, console=Console(stderr=True))
