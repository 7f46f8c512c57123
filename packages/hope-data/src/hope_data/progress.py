"""A progress bar on a terminal, silence elsewhere."""

import sys
from collections.abc import Iterator

from hope_data.documents import Document


def track(rows: Iterator[Document], n_bytes: int, label: str) -> Iterator[Document]:
    """Pass documents on; on a terminal show bytes, rate and, where `n_bytes` is known, time left (stderr)."""
    if not sys.stderr.isatty():
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
            progress.advance(task, len(row.text.encode(errors="surrogatepass")))
