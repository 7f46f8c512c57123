"""Console scripts in processes that need not import torch again: forked from one that has.

A training of the memory suite takes some ten seconds, and two imports of torch take as long.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from multiprocessing.context import ForkServerProcess
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

from hope_model.errors import InputError

# What a training or an evaluation would import; torch's optimisers ask for its compiler.
IMPORTED = (
    "hope_study.detached",  # first of all, see there
    "torch._dynamo",
    "hope_train.run",
    "hope_eval.cli",
    "hope_eval.evaluate",
    "hope_eval.tasks.synthetic",
)


class Workers:
    """Starts console scripts, each in a process of its own with the modules imported.

    Args:
        environment: variables of all processes, set for this one too.
        modules: imported once, before the first start; what is not installed is left out.
    """

    def __init__(self, environment: dict[str, str], modules: Sequence[str] = IMPORTED) -> None:
        os.environ.update(environment)  # the server is a copy of this process's surroundings
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(modules))

    def start(self, command: Sequence[str], output: Path, inherited: int) -> ForkServerProcess:
        """Begin one; its `exitcode` is that of a subprocess.

        Args:
            command: a console script and its arguments.
            output: file for what it prints.
            inherited: descriptor that it keeps open until its end, a lock.

        Raises:
            InputError: no such script is installed.
        """
        script, *arguments = command
        if not entry_points(group="console_scripts", name=script):
            raise InputError(f"'{script}' is not installed here; pip install {script}")
        # Not a daemon: it may outlive this process, which then leaves the lock to it.
        process = self._context.Process(target=_main, args=(script, arguments, output, DupFd(inherited)))
        process.start()
        return process


def _main(script: str, arguments: list[str], output: Path, inherited: Any) -> None:
    """Run in the new process; in a process group of its own Ctrl-C does not reach it."""
    os.setsid()
    inherited.detach()
    with output.open("wb") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    (entry,) = entry_points(group="console_scripts", name=script)
    sys.argv = [script, *arguments]
    sys.exit(entry.load()(arguments))


def last_line(output: Path) -> str:
    """Return what a training or an evaluation printed last, without the word for an error."""
    lines = output.read_text(errors="replace").strip().splitlines()
    return lines[-1].removeprefix("error: ") if lines else "no message"
