"""Progress on stderr: one bar per task with the time left; silent where there is no terminal."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from hope_eval.escape import printable


class Display:
    """Bars that count tokens fed to the model."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        columns = (
            TextColumn("{task.description:<12}", markup=False),
            BarColumn(),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} tokens"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self._bars = Progress(*columns, console=console, disable=not console.is_terminal)
        self._current: TaskID | None = None

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def begin(self, name: str, tokens: int) -> None:
        """Start the bar of a task that will feed about `tokens` tokens."""
        self._current = self._bars.add_task(printable(name), total=tokens)

    def advance(self, tokens: int) -> None:
        """Count tokens."""
        if self._current is not None:
            self._bars.advance(self._current, tokens)
