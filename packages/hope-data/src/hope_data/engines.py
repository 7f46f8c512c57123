"""What runs tasks: processes of this machine, or datatrove's executors (local, Slurm)."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import connection, get_context, parent_process
from typing import TYPE_CHECKING

from hope_data.errors import InputError
from hope_data.progress import steps

if TYPE_CHECKING:
    from hope_data.work import Todo

# Does every task of `todo.numbers`, in any order, with so many workers.
Engine = Callable[["Todo", int], None]


def processes(todo: "Todo", workers: int) -> None:
    """Run tasks here when one process is enough, else in a pool that dies with this process.

    Raises:
        InputError: a task's, or a worker was killed (what it had finished stays).
    """
    workers = min(workers, len(todo.numbers))
    if workers <= 1:
        for i in todo.numbers:
            todo(i)
        return
    # Spawned, not forked: sentencepiece and rensa hold threads.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_die_with_parent) as pool:
        futures = [pool.submit(todo, i) for i in todo.numbers]
        try:
            for future in steps(as_completed(futures), len(futures), todo.step):
                future.result()
        except BrokenProcessPool:
            raise OSError(f"{todo.work.out}: a worker process was killed; run it again to go on") from None
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _die_with_parent() -> None:
    parent = parent_process()
    if parent is None:
        return

    def wait() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def datatrove(todo: "Todo", workers: int) -> None:
    """Run tasks under datatrove's local executor: one rank per task, `workers` at a time.

    Raises:
        InputError: a task's, or datatrove is not installed.
    """
    from hope_data.scale_out import local  # noqa: PLC0415

    local(todo, workers)


def slurm(todo: "Todo", workers: int, options: dict[str, str]) -> None:
    """Run tasks as a Slurm job array under datatrove's executor.

    Raises:
        InputError: a task's, no Slurm here, or unfit options.
    """
    from hope_data.scale_out import slurm as submit  # noqa: PLC0415

    submit(todo, workers, options)


ENGINES = ("processes", "datatrove", "slurm")


def engine(name: str, options: list[str] | None = None) -> Engine:
    """The engine of this name; `options` as KEY=VALUE are for slurm.

    Raises:
        InputError: there is none of this name, or options without a value.
    """
    if options and name != "slurm":
        raise InputError(f"engine {name}: takes no --slurm options")
    if name == "slurm":
        pairs = [option.partition("=") for option in options or []]
        if bad := [key for key, _, value in pairs if not value]:
            raise InputError(f"--slurm {bad[0]}: must be KEY=VALUE, for example partition=cpu")
        return partial(slurm, options={key: value for key, _, value in pairs})
    found: dict[str, Engine] = {"processes": processes, "datatrove": datatrove}
    if name not in found:
        raise InputError(f"engine {name!r}: must be one of {', '.join(ENGINES)}")
    return found[name]
