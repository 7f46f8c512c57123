"""Progress on stderr: on a terminal one bar per task with the time left, elsewhere a line every ten seconds."""

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from hope_eval.escape import printable

SECONDS = 10.0  # between two lines where there is no terminal


class _Count(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        total = "" if task.total is None else f"/{task.total:,.0f}"
        return Text(f"{task.completed:,.0f}{total} {self._unit}" if task.completed or total else "")


class Display:
    """Counts tokens fed to the model, or another unit, task by task.

    Attributes:
        passes: how many tasks with a known number of tokens will begin; 0: not known.
    """

    def __init__(self, unit: str = "tokens") -> None:
        console = Console(stderr=True)
        columns = (
            TextColumn("{task.description:<12}", markup=False),
            BarColumn(),
            _Count(unit),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self._bars = Progress(*columns, console=console, disable=not console.is_terminal)
        self._current: TaskID | None = None
        self._unit, self._name, self._done = unit, "", 0
        self.passes = self._pass = 0
        self._total: int | None = None
        self._start = self._line = time.monotonic()

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def begin(self, name: str, tokens: int | None) -> None:
        """Begin a task that will feed about `tokens` tokens; None: not known yet.

        The task that is under way, named again, gets a new total and begins anew.
        """
        name = printable(name)
        self._pass += tokens is not None
        if self._current is not None and name != self._name:
            self._bars.update(self._current, total=self._bars.tasks[-1].completed, refresh=True)
            self._current = None
        if self._current is None:
            self._current = self._bars.add_task(name, total=tokens)
        else:
            self._bars.reset(self._current, total=tokens)
        self._name, self._done, self._total, self._start = name, 0, tokens, time.monotonic()

    def advance(self, tokens: int) -> None:
        if self._current is None:
            return
        self._bars.advance(self._current, tokens)
        self._done += tokens
        now = time.monotonic()
        if self._bars.disable and now - self._line >= SECONDS:
            self._line = now
            sys.stderr.write(f"{self._text(now - self._start)}\n")

    def _text(self, seconds: float) -> str:
        if not self._total or not self._done:
            return f"{self._name}: {self._done:,} {self._unit}"
        left = max(0.0, seconds * (self._total - self._done) / self._done)
        text = f"{self._name}: {self._done:,} of about {self._total:,} {self._unit}, {left:.0f} s left"
        return f"{text}; {self._pass} of {self.passes}" if self.passes else text
