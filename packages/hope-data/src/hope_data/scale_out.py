"""The same tasks under datatrove's executors: on this machine, or as a Slurm job array.

datatrove and not Ray: it needs no cluster of its own beside Slurm, is made for corpora, and a rank here is no more
than a list of tasks that leave their results in a folder, so that merging is reading their records.
"""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hope_data.errors import InputError, Unfinished
from hope_data.work import Todo

try:
    from datatrove.executor import LocalPipelineExecutor, SlurmPipelineExecutor
    from loguru import logger
except ImportError:
    raise InputError("engine datatrove needs datatrove: pip install 'hope-data[scale]'") from None

# Its banners would stand between the user and our one line. Workers import this module too.
logger.disable("datatrove")
_POLL_SECONDS = 5.0


class Ranks:
    """A pipeline step of datatrove: rank r of n does every n-th task, beginning with r."""

    def __init__(self, todo: Todo):
        self.todo = todo

    def __call__(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Do this rank's tasks; those that are done already are left alone."""
        del data
        for i in self.todo.numbers[rank::world_size]:
            if not self.todo.done(i):
                self.todo(i)


def local(todo: Todo, workers: int) -> None:
    """Run under the local executor, as many ranks as workers.

    Raises:
        InputError: a task's.
    """
    workers = max(1, min(workers, len(todo.numbers)))
    with tempfile.TemporaryDirectory() as logs, _silent_children():
        LocalPipelineExecutor([Ranks(todo)], tasks=workers, workers=workers, logging_dir=logs).run()


@contextmanager
def _silent_children() -> Iterator[None]:
    """Let processes that begin meanwhile write no tracebacks, as each would at Ctrl-C; what they raise comes here."""
    terminal, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)
        os.close(nowhere)


def slurm(todo: Todo, workers: int, options: dict[str, str]) -> None:
    """Submit a job array of `workers` ranks and wait for it.

    Args:
        todo: tasks; their folder must be on a file system that the nodes share.
        workers: ranks.
        options: of datatrove's SlurmPipelineExecutor: partition and time at least.

    Raises:
        InputError: Slurm is not here, or an option is missing or unknown.
        Unfinished: the array ended with tasks undone; the next run submits those again.
    """
    if not shutil.which("sbatch"):
        raise InputError("engine slurm: no sbatch on PATH; run on a login node, or use --engine datatrove")
    numbers = {k: int(v) if v.isdecimal() else v for k, v in options.items()}
    logs = todo.work.folder.absolute().parent / f"{todo.work.out.name}.slurm-logs"
    try:
        executor = SlurmPipelineExecutor(
            [Ranks(todo)],
            tasks=min(workers, len(todo.numbers)),
            logging_dir=str(logs),
            **{"job_name": f"hope-data-{todo.step}", "skip_completed": False, **numbers},
        )
    except TypeError as error:
        raise InputError(
            f"engine slurm: {str(error).split('() ')[-1]}; give it with --slurm KEY=VALUE"
        ) from None
    executor.run()
    try:
        while not all(todo.done(i) for i in todo.numbers):
            # Asked before the results are looked at: a job that has ended has written them.
            ended = not _queued(executor.job_id)
            if ended and not all(todo.done(i) for i in todo.numbers):
                raise Unfinished(
                    f"Slurm job {executor.job_id} ended with tasks undone; see {logs}, then run it again"
                )
            time.sleep(_POLL_SECONDS)
    except KeyboardInterrupt:
        subprocess.run(["scancel", str(executor.job_id)], check=False)
        raise
    shutil.rmtree(logs, ignore_errors=True)


def _queued(job: str) -> bool:
    listing = subprocess.run(["squeue", "-h", "-j", str(job)], capture_output=True, text=True, check=False)
    return bool(listing.stdout.strip())
