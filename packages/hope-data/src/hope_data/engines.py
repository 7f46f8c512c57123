"""What runs tasks: processes of this machine, or datatrove's executors (local, Slurm)."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import connection, get_context, parent_process
from multiprocessing.process import BaseProcess
from typing import Any

from hope_data.errors import InputError, Unfinished
from hope_data.progress import steps
from hope_data.work import Engine, Todo, in_turn

ENGINES = ("processes", "datatrove", "slurm")


def processes(todo: Todo, workers: int) -> None:
    """Run tasks here when one process is enough, else in a pool that dies with this process.

    Raises:
        InputError: a task's, or a worker was killed (what it had finished stays).
    """
    workers = min(workers, len(todo.numbers))
    if workers <= 1:
        in_turn(todo)
        return
    for _ in steps(_finished(todo, workers), len(todo.numbers), todo.step):
        pass


def _finished(todo: Todo, workers: int) -> Iterator[int]:
    """Yield tasks as worker processes finish them; no worker outlives this."""
    # Spawned, not forked: sentencepiece and rensa hold threads.
    context = get_context("spawn")
    taken = context.Value("q", 0)
    running: dict[Any, BaseProcess] = {}
    try:
        for _ in range(workers):
            receive, send = context.Pipe(duplex=False)
            with _uninterrupted():
                process: BaseProcess = context.Process(target=_worker, args=(todo, taken, send), daemon=True)
                process.start()
                running[receive] = process
            send.close()
        while running:
            for ready in connection.wait(list(running)):
                yield from _heard(todo, ready, running)
    finally:
        for worker in running.values():
            worker.terminate()
            worker.join()


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Keep Ctrl-C until a worker has been started and told what to do: half-told, it ends in a traceback.

    Blocking the signal is for the worker, which inherits it and leaves Ctrl-C to this process. It does not keep the
    signal from this process, where another thread (a library's) can receive it; holding it back does.
    """
    main = threading.current_thread() is threading.main_thread()  # no other may set handlers, nor gets Ctrl-C
    interrupts: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _: interrupts.append(number)) if main else None
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        if main:
            signal.signal(signal.SIGINT, handler)
    if interrupts:
        signal.raise_signal(signal.SIGINT)


def _heard(todo: Todo, receive: Any, running: dict[Any, BaseProcess]) -> Iterator[int]:
    try:
        message = receive.recv()
    except EOFError:
        process = running.pop(receive)
        process.join()
        if process.exitcode:
            raise Unfinished(f"{todo.work.out}: a worker process was killed; run it again to go on") from None
        return
    if isinstance(message, BaseException):
        raise message
    yield message


def _worker(todo: Todo, taken: Any, send: Any) -> None:
    """Take the next task that nobody has taken until there is none, and tell of each."""
    _die_with_parent()
    try:
        while True:
            with taken.get_lock():
                k, taken.value = taken.value, taken.value + 1
            if k >= len(todo.numbers):
                return
            send.send(todo(todo.numbers[k]))
    except (InputError, OSError) as error:
        send.send(error)


def _die_with_parent() -> None:
    parent = parent_process()
    if parent is None:
        return

    def wait() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def engine(name: str, options: list[str] | None = None) -> Engine:
    """The engine of this name; `options` as KEY=VALUE are for slurm.

    Raises:
        InputError: there is none of this name, datatrove is not installed, or options without a value.
    """
    if options and name != "slurm":
        raise InputError(f"engine {name}: takes no --slurm options")
    if name == "processes":
        return processes
    if name not in ENGINES:
        raise InputError(f"engine {name!r}: must be one of {', '.join(ENGINES)}")
    pairs = [option.partition("=") for option in options or []]
    if bad := [key for key, _, value in pairs if not value]:
        raise InputError(f"--slurm {bad[0]}: must be KEY=VALUE, for example partition=cpu")
    from hope_data import scale_out  # noqa: PLC0415 (datatrove is optional)

    if name == "datatrove":
        return scale_out.local
    return partial(scale_out.slurm, options={key: value for key, _, value in pairs})
