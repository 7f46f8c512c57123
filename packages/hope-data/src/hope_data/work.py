"""Work that survives a kill: numbered tasks whose sealed results wait in a hidden folder until all are there.

    .NAME.partial/job.json           what is being made, and from what
    .NAME.partial/STEP-00007.json    sealed result of task 7: written last, so that it vouches for its files
    .NAME.partial/…                  files of the tasks

A run that finds the folder of an earlier run of the same job goes on there. Tasks are pure functions of their
input, so neither the number of processes nor an interruption changes a byte of the output.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from hope_data.engines import Engine, processes
from hope_data.errors import InputError, Unfinished
from hope_data.files import dump_sealed, load_sealed
from hope_data.publishing import check_replaceable, fsync, replace_folder, write_atomic

Task = Callable[[Path, int], dict[str, Any]]
_JOB, _LOCK = "job.json", "lock"


class Work:
    """A folder in which a job's tasks leave their files and sealed results."""

    def __init__(self, folder: Path, out: Path):
        self.folder, self.out = folder, out

    def _record(self, step: str, i: int) -> Path:
        return self.folder / f"{step}-{i:05d}.json"

    def result(self, step: str, i: int) -> dict[str, Any] | None:
        """What task i of a step returned, or None if it has not been done or its files are gone."""
        try:
            found = load_sealed(self._record(step, i), "")
        except InputError:
            return None
        return found if all((self.folder / name).is_file() for name in found.get("files", ())) else None

    def do(self, step: str, task: Task, i: int) -> None:
        """Do task i, then seal its result."""
        self.seal(step, i, task(self.folder, i))

    def seal(self, step: str, i: int, found: dict[str, Any]) -> None:
        """Record that task i is done, once the files it names are on the disk."""
        for name in found.get("files", ()):
            fsync(self.folder / name)
        write_atomic(self._record(step, i), dump_sealed(found))

    def run(
        self, step: str, task: Task, count: int, workers: int = 1, engine: Engine = processes
    ) -> list[dict[str, Any]]:
        """Do what is left of a step's tasks.

        Args:
            step: name of the step.
            task: function of (folder, i); its result is plain JSON, and `files` in it names what it wrote.
            count: number of tasks.
            workers: processes; the result does not depend on it.
            engine: what runs them.

        Returns:
            Results in the order of the tasks.

        Raises:
            InputError: a task's, or the engine left tasks undone.
        """
        todo = [i for i in range(count) if self.result(step, i) is None]
        if todo:
            engine(Todo(self, step, task, todo), workers)
        found = [self.result(step, i) for i in range(count)]
        if undone := [i for i, result in enumerate(found) if result is None]:
            raise Unfinished(
                f"{self.folder}: {len(undone)} of {count} tasks of step {step} are not done; run it again"
            )
        return [result for result in found if result is not None]

    def finish(self, names: Sequence[str]) -> None:
        """Make these files, and nothing else, the output folder."""
        wanted = set(names)
        for path in self.folder.iterdir():
            if path.name not in wanted and path.name not in (_JOB, _LOCK):
                path.unlink()
        (self.folder / _JOB).unlink()
        (self.folder / _LOCK).unlink()
        replace_folder(self.folder, self.out)


class Todo:
    """Tasks for an engine: picklable, and idempotent one by one."""

    def __init__(self, work: Work, step: str, task: Task, numbers: list[int]):
        self.work, self.step, self.task, self.numbers = work, step, task, numbers

    def done(self, i: int) -> bool:
        """Whether the result of task i is there."""
        return self.work.result(self.step, i) is not None

    def __call__(self, i: int) -> int:
        """Do task i."""
        lock = _shared_lock(self.work.folder)
        try:
            self.work.do(self.step, self.task, i)
        finally:
            lock.close()
        return i


def _shared_lock(folder: Path) -> IO[bytes]:
    # Held while a process writes here, so that no other run begins beside it.
    file = (folder / _LOCK).open("rb")
    fcntl.flock(file, fcntl.LOCK_SH)
    return file


def _locked(folder: Path) -> IO[bytes]:
    """The folder's lock, alone; waits for another run's processes to end."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / _LOCK).open("ab")
        fcntl.flock(file, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.fstat(file.fileno()).st_ino == (folder / _LOCK).stat().st_ino:
                return file
        file.close()  # the other run finished meanwhile, and the folder with it


@contextmanager
def open_work(out: Path, marker: str, job: dict[str, Any]) -> Iterator[Work]:
    """The folder where `out` comes into being; left for the next run when this one is interrupted.

    Args:
        out: folder to make. One that is there already is replaced if it is empty or holds `marker`.
        marker: file name by which this package knows its own output.
        job: everything the output depends on, plain JSON; an interrupted run of another job is thrown away.

    Raises:
        InputError: `out` holds somebody else's files. What the block raises as InputError leaves nothing behind.
    """
    check_replaceable(out, marker)
    folder = out.parent / f".{out.name}.partial"
    with _locked(folder) as lock:
        try:
            if _job_of(folder) != json.loads(json.dumps(job)):
                _empty(folder)
                write_atomic(folder / _JOB, dump_sealed(job))
            fcntl.flock(lock, fcntl.LOCK_SH)
            yield Work(folder, out)
        except InputError as error:
            if not isinstance(error, Unfinished) or not _begun(folder):
                shutil.rmtree(folder, ignore_errors=True)
            raise
        except OSError as error:
            raise Unfinished(
                f"{out}: cannot be written ({error.strerror or error}); what is done so far is kept: make room "
                "and run the same command again"
            ) from None


def _job_of(folder: Path) -> dict[str, Any] | None:
    try:
        return load_sealed(folder / _JOB, "")
    except InputError:
        return None


def _begun(folder: Path) -> bool:
    return any(path.name not in (_JOB, _LOCK) for path in folder.iterdir())


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name != _LOCK:
            path.unlink()
