"""Work that survives a kill: numbered tasks whose sealed results wait in a hidden folder until all are there.

    .NAME.partial/job.json           what is being made, and from what
    .NAME.partial/lock               number of the run that works here; held by each of its workers during a task
    .NAME.partial/STEP-00007.json    sealed result of task 7: written last, with the hashes of the task's files
    .NAME.partial/…                  files of the tasks

A run holds the output's lock (`publishing.exclusive`) from its start until the finished folder has been renamed. One
that finds the folder of a killed run of the same job waits for the tasks that workers of that run, here or on other
machines, are in the middle of; they begin no other, because the folder carries another number by then. What is done
is kept where its files still have their hashes. Tasks are pure functions of their input, so neither the number of
processes nor an interruption changes a byte of the output.
"""

import fcntl
import json
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from hope_data.errors import InputError, Unfinished
from hope_data.files import dump_sealed, load_sealed, sha256_file
from hope_data.publishing import (
    check_replaceable,
    exclusive,
    fsync,
    recover_folder,
    replace_folder,
    unwritable,
    write_atomic,
)

Task = Callable[[Path, int], dict[str, Any]]
_JOB, _LOCK = "job.json", "lock"
# How long a run waits for what workers of a killed one are in the middle of.
_PATIENCE = 60.0


class Todo:
    """Tasks for an engine: picklable, and idempotent one by one."""

    def __init__(self, work: "Work", step: str, task: Task, numbers: list[int]):
        self.work, self.step, self.task, self.numbers = work, step, task, numbers

    def done(self, i: int) -> bool:
        """Whether the result of task i is there."""
        return self.work.result(self.step, i) is not None

    def __call__(self, i: int) -> int:
        self.work.do(self.step, self.task, i)
        return i


# Does every task of `todo.numbers`, in any order, with at most so many workers.
Engine = Callable[[Todo, int], None]


def in_turn(todo: Todo, workers: int = 1) -> None:
    """Do the tasks one after the other in this process."""
    del workers
    for i in todo.numbers:
        todo(i)


class Work:
    """A folder in which a job's tasks leave their files and sealed results.

    Attributes:
        folder: where the tasks write.
        out: what it becomes.
        run_number: of this run, by which its workers know that no other has taken the folder over.
    """

    def __init__(self, folder: Path, out: Path, run: str):
        self.folder, self.out, self.run_number = folder, out, run

    def _record(self, step: str, i: int) -> Path:
        return self.folder / f"{step}-{i:05d}.json"

    def result(self, step: str, i: int, *, check: bool = False) -> dict[str, Any] | None:
        """What task i of a step returned, or None if it has not been done or its files are gone.

        Args:
            step: name of the step.
            i: number of the task.
            check: also ask that its files have the hashes that were sealed with it.
        """
        try:
            sealed = load_sealed(self._record(step, i), "")
        except InputError:
            return None
        if sealed.keys() != {"result", "sha256"}:
            return None
        for name, sha256 in sealed["sha256"].items():
            path = self.folder / name
            if not path.is_file() or (check and sha256_file(path) != sha256):
                return None
        result: dict[str, Any] = sealed["result"]
        return result

    def do(self, step: str, task: Task, i: int) -> None:
        """Do task i, then seal its result.

        Raises:
            Unfinished: another run has taken over.
        """
        with self._worker():
            self.seal(step, i, task(self.folder, i))

    def seal(self, step: str, i: int, result: dict[str, Any]) -> None:
        """Record that task i is done, once the files it names are on the disk."""
        for name in result.get("files", ()):
            fsync(self.folder / name)
        hashes = {name: sha256_file(self.folder / name) for name in result.get("files", ())}
        write_atomic(self._record(step, i), dump_sealed({"result": result, "sha256": hashes}))

    @contextmanager
    def _worker(self) -> Iterator[None]:
        """Keep other runs from beginning while a process writes here."""
        try:
            lock = (self.folder / _LOCK).open("r")
        except FileNotFoundError:
            raise Unfinished(f"{self.out}: its tasks have been taken away") from None
        with lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            if lock.read() != self.run_number:
                raise Unfinished(f"{self.out}: another run has taken over its tasks")
            yield

    def run(
        self, step: str, task: Task, count: int, workers: int = 1, engine: Engine = in_turn
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
        with ThreadPoolExecutor(min(workers, 32)) as pool:
            earlier = list(pool.map(lambda i: self.result(step, i, check=True), range(count)))
        if todo := [i for i, result in enumerate(earlier) if result is None]:
            engine(Todo(self, step, task, todo), workers)
        results = [self.result(step, i) for i in range(count)]
        if undone := results.count(None):
            raise Unfinished(
                f"{self.folder}: {undone} of {count} tasks of step {step} are not done; run it again"
            )
        return [result for result in results if result is not None]

    def finish(self, names: Sequence[str]) -> None:
        """Make these files, and nothing else, the output folder."""
        for name in names:
            fsync(self.folder / name)
        kept = {*names, _JOB, _LOCK}
        _remove([path for path in self.folder.iterdir() if path.name not in kept])
        # Last, so that a run that was killed before finds its work done.
        _remove([self.folder / _JOB, self.folder / _LOCK])
        replace_folder(self.folder, self.out)


@contextmanager
def open_work(out: Path, marker: str, job: dict[str, Any]) -> Iterator[Work]:
    """The folder where `out` comes into being; left for the next run when this one is interrupted.

    Args:
        out: folder to make. One that is there already is replaced if it is empty or holds `marker`.
        marker: file name by which this package knows its own output.
        job: everything the output depends on, plain JSON; an interrupted run of another job is thrown away.

    Raises:
        InputError: `out` holds somebody else's files, or another process is writing it. What the block raises as
            InputError leaves nothing behind.
    """
    try:
        with exclusive(out):
            recover_folder(out)
            check_replaceable(out, marker)
            folder = out.with_name(f".{out.name}.partial")
            work = Work(folder, out, _take_over(folder, out, job))
            try:
                yield work
            except InputError as error:
                if not isinstance(error, Unfinished) or not _begun(folder):
                    shutil.rmtree(folder, ignore_errors=True)
                raise
    except OSError as error:
        raise Unfinished(
            f"{unwritable(out, error)}; what is done so far is kept for the same command"
        ) from None


def _take_over(folder: Path, out: Path, job: dict[str, Any]) -> str:
    """Begin a run in a folder, new or of an earlier run; returns its number."""
    folder.mkdir(exist_ok=True)
    number = secrets.token_hex(8)
    with (folder / _LOCK).open("a+") as lock:
        _wait_for_workers(lock, out)
        lock.truncate(0)
        lock.write(number)
        lock.flush()
        if _job_of(folder) != json.loads(json.dumps(job)):
            _remove([path for path in folder.iterdir() if path.name != _LOCK])
            write_atomic(folder / _JOB, dump_sealed(job))
    return number


def _wait_for_workers(lock: IO[str], out: Path) -> None:
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise Unfinished(
                    f"{out}: workers of an earlier run are still writing; wait until they have finished, or cancel "
                    "their Slurm job"
                ) from None
            time.sleep(0.05)


def _job_of(folder: Path) -> dict[str, Any] | None:
    try:
        return load_sealed(folder / _JOB, "")
    except InputError:
        return None


def _begun(folder: Path) -> bool:
    return any(path.name not in (_JOB, _LOCK) for path in folder.iterdir())


def _remove(paths: list[Path]) -> None:
    for path in paths:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
