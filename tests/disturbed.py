"""Run commands twice at once, or killed before a chosen step on the disk: helpers of tests in every package."""

import importlib
import json
import mmap
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# Calls that change what is on the disk, or wait for it.
_STEPS = [(Path, name) for name in ("mkdir", "open", "replace", "unlink")] + [
    (os, name) for name in ("fsync", "open")
]
_NEVER = 1 << 60
_Main = Callable[[list[str]], int]


class Ended(NamedTuple):
    """How a command ended.

    Attributes:
        code: exit status, -9 if it was killed.
        out: stdout.
        err: stderr.
        steps: calls it made that touch the disk.
    """

    code: int
    out: str
    err: str
    steps: int


def folder_bytes(folder: Path) -> dict[str, bytes]:
    """Content of every file below a folder, by its path in it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


class Commands:
    """Runs command lines in processes forked from one that has imported everything and done nothing.

    Args:
        main: function of an argument list, as "package.cli:main".
        imports: modules to import beforehand, so that each run starts within milliseconds.
    """

    def __init__(self, main: str, *imports: str):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._server = subprocess.Popen(
            [sys.executable, __file__, main, *imports],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def run(self, *commands: Sequence[object], delay: float = 0.0, kill_before: int = _NEVER) -> list[Ended]:
        """Start each command `delay` seconds after the one before it; wait for all.

        Args:
            commands: argument lists.
            delay: between the starts.
            kill_before: SIGKILL ends each before its call of this number, from 0, that touches the disk.
        """
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        lines = [list(map(str, command)) for command in commands]
        self._server.stdin.write(json.dumps([lines, delay, kill_before]) + "\n")
        self._server.stdin.flush()
        return [Ended(*ended) for ended in json.loads(self._server.stdout.readline())]

    def __enter__(self) -> "Commands":
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the server."""
        self._server.communicate()


def kill_everywhere(
    commands: Commands,
    command: Sequence[object],
    out: Path,
    prepare: Callable[[], Any],
    choose: Callable[[int], Iterable[int]] = range,
) -> int:
    """Kill a command before chosen steps, each time in a new folder; run it again and compare every byte.

    Args:
        commands: what runs it.
        command: writes `out`, alone in its folder.
        out: what is written.
        prepare: makes what is there before.
        choose: steps to kill before, of so many that there are.

    Returns:
        The number of kills.
    """

    def fresh() -> None:
        shutil.rmtree(out.parent, ignore_errors=True)
        prepare()

    def succeeds() -> int:
        (ended,) = commands.run(command)
        assert ended.code == 0, ended
        return ended.steps

    fresh()
    total = succeeds()
    expected, beside = folder_bytes(out), sorted(path.name for path in out.parent.iterdir())
    kills = 0
    for step in choose(total):
        fresh()
        (killed,) = commands.run(command, kill_before=step)
        assert killed.code in (0, -signal.SIGKILL), killed
        kills += killed.code != 0
        succeeds()
        assert folder_bytes(out) == expected, f"other bytes after a kill before step {step}"
        assert sorted(path.name for path in out.parent.iterdir()) == beside, f"left over after step {step}"
    return kills


def _serve(main: _Main) -> None:
    for line in sys.stdin:
        commands, delay, kill_before = json.loads(line)
        begin = time.monotonic() + 0.01
        started = [
            _start(main, command, begin + k * delay, kill_before) for k, command in enumerate(commands)
        ]
        ended = []
        for child, steps, *streams in started:
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            ended.append([code, *map(_content, streams), _number(steps)])
        sys.stdout.write(json.dumps(ended) + "\n")
        sys.stdout.flush()


def _start(
    main: _Main, command: list[str], begin: float, kill_before: int
) -> tuple[int, mmap.mmap, int, int]:
    steps, streams = mmap.mmap(-1, 8), (os.memfd_create("out"), os.memfd_create("err"))
    child = os.fork()
    if child:
        return child, steps, *streams
    code = 99
    try:
        for number, stream in enumerate(streams, start=1):
            os.dup2(stream, number)
        for place, name in _STEPS:
            _count(place, name, steps, kill_before)
        time.sleep(max(0, begin - time.monotonic()))
        code = main(command)
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:  # noqa: BLE001 (a test compares what it prints)
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _count(place: Any, name: str, steps: mmap.mmap, kill_before: int) -> None:
    original = getattr(place, name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        so_far = _number(steps)
        if so_far == kill_before:
            os.kill(os.getpid(), signal.SIGKILL)
        steps[:] = (so_far + 1).to_bytes(8, "little")
        return original(*args, **kwargs)

    setattr(place, name, counted)


def _number(memory: mmap.mmap) -> int:
    return int.from_bytes(memory[:], "little")


def _content(stream: int) -> str:
    with open(stream, "rb") as file:
        file.seek(0)
        return file.read().decode()


if __name__ == "__main__":
    module, _, function = sys.argv[1].partition(":")
    for imported in sys.argv[2:]:
        importlib.import_module(imported)
    _serve(getattr(importlib.import_module(module), function))
