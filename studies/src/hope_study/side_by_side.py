"""Console scripts side by side, each with one thread, and a line now and then that says how far they are."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from hope_model.errors import InputError
from hope_study.locks import locked
from hope_study.worker import IMPORTED, Workers, last_line

EVERY = 8.0  # seconds between lines of progress
GRACE = 60.0  # seconds that a training has to save
FINISHED, RESUMABLE = 0, os.EX_TEMPFAIL


@dataclass
class Task:
    """A console script for one seed.

    Attributes:
        seed: its number, as text.
        command: script and arguments.
        done: share that is finished, by whatever the command writes.
        weight: how long it takes beside the others.
    """

    seed: str
    command: list[str]
    done: Callable[[], float]
    weight: float = 1.0
    process: ForkServerProcess | None = field(default=None, repr=False)

    def share(self) -> float:
        """Return what is finished, from 0 to 1."""
        if self.process is not None and self.process.exitcode == FINISHED:
            return 1.0
        return min(1.0, self.done())


@dataclass(frozen=True)
class Rest:
    """What the pipeline does after the tasks that are shown.

    Attributes:
        names: for the display.
        multiple: its time in units of theirs.
        seconds: further time that is known.
    """

    names: Sequence[str] = ()
    multiple: float = 0.0
    seconds: float = 0.0


def at_a_time(seeds: int, cores: int) -> int:
    """Return how many processes run at a time: as many as cores, or some more where a core would wait for the last.

    Three seeds on two cores run together, each with two thirds of a core.
    """
    return -(-seeds // max(1, seeds // max(1, cores)))


def side_by_side(title: str, tasks: Sequence[Task], folder: Path, device: str, rest: Rest = Rest()) -> int:
    """Run console scripts, each with one thread, as many at a time as `at_a_time` says.

    Args:
        title: what is done, for the display.
        tasks: of the seeds, in order.
        folder: of the run; gets `.seeds.lock` and what each script prints.
        device: of the trainings; on a GPU they take turns.
        rest: what comes after them.

    Returns:
        Exit status: 0 finished, 75 stopped with everything saved.

    Raises:
        InputError: one of them failed; the others have ended, too.
    """
    gpu = device.startswith("cuda") or (device == "auto" and Path("/dev/nvidia0").exists())
    places = 1 if gpu else at_a_time(len(tasks), len(os.sched_getaffinity(0)))
    modules = IMPORTED if tasks[0].command[0] == "hope-train" else IMPORTED[:1] + IMPORTED[3:]
    workers = Workers({} if gpu else {"OMP_NUM_THREADS": "1"}, modules)
    stop: list[int] = []
    for kind in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(kind) is not signal.SIG_IGN:
            signal.signal(kind, lambda number, _: stop.append(number))
    display = Display(title, tasks, rest)
    display.update()
    # Processes of a start that was killed keep the lock until they end; then this one resumes.
    with locked(folder / ".seeds.lock", say=display.say) as lock:
        waiting, running, failed = list(tasks), list[Task](), list[Task]()
        while waiting or running:
            while waiting and len(running) < places and not (stop or failed):
                task = waiting.pop(0)
                task.process = workers.start(task.command, _output(folder, task), lock)
                running.append(task)
            if stop or failed:
                waiting.clear()
                _end(running)
            for task in [one for one in running if not _alive(one)]:
                running.remove(task)
                if task.process and task.process.exitcode not in (FINISHED, RESUMABLE):
                    failed.append(task)
            display.update()
            time.sleep(0.1)
    if failed and not stop:
        output = _output(folder, failed[0])
        raise InputError(f"{title}: seed {failed[0].seed}: {last_line(output)}; {output} has the rest")
    return RESUMABLE if stop else FINISHED


def _output(folder: Path, task: Task) -> Path:
    return folder / f"{task.command[0]}-{task.seed}.txt"


def _alive(task: Task) -> bool:
    return task.process is not None and task.process.is_alive()


def _end(running: Sequence[Task]) -> None:
    """Have all save and end; kill what takes longer than `GRACE`."""
    for task in running:
        if task.process:
            task.process.terminate()
    deadline = time.monotonic() + GRACE
    for task in running:
        if task.process:
            task.process.join(max(0.0, deadline - time.monotonic()))
            if task.process.is_alive():
                task.process.kill()


class Display:
    """A line on stderr now and then: how far the seeds are, and the time left, also of what is still to come."""

    def __init__(self, title: str, tasks: Sequence[Task], rest: Rest) -> None:
        self._title, self._tasks, self._rest = title, tasks, rest
        self._begin = self._start = time.monotonic()
        self._before, self._moved, self._last = self._share(), False, -EVERY

    def _share(self) -> float:
        return sum(task.weight * task.share() for task in self._tasks) / sum(
            task.weight for task in self._tasks
        )

    def update(self) -> None:
        """Say where things stand, unless that was said a moment ago."""
        now = time.monotonic()
        if now - self._last < EVERY:
            return
        self._last = now
        share = self._share()
        # Time is measured from the first progress on: before it imports are under way.
        if share <= self._before or not self._moved:
            self._moved = share > self._before
            self._start, self._before = now, share
        text = f"{self._title}: {int(100 * share)} %, {duration(now - self._begin)}"
        if share > self._before:
            whole = (now - self._start) / (share - self._before)
            text += f", {duration(whole * (1 - share))} left"
            if self._rest.names:
                rest = whole * (1 - share + self._rest.multiple) + self._rest.seconds
                text += f"; about {duration(rest)} with {', '.join(self._rest.names)}"
        self.say(text)

    def say(self, text: str) -> None:
        """Print a line."""
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def duration(seconds: float) -> str:
    """Return seconds, or minutes from two on."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
