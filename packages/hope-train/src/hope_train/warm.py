"""Console scripts in processes that need not import torch again: forked from one that has.

A training of the memory suite takes some ten seconds, and two imports of torch took as long.
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

DETACHED = "hope_train.detached"  # first of all, see there


class Warm:
    """Starts console scripts, each in a process of its own with the modules imported.

    Args:
        modules: imported once, before the first start; what is not installed is left out.
        environment: variables of all processes, set for this one too.
    """

    def __init__(self, modules: Sequence[str], environment: dict[str, str]) -> None:
        os.environ.update(environment)  # the server is a copy of this process's surroundings
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([DETACHED, *modules])

    def start(self, command: Sequence[str], said: Path, inherited: int) -> ForkServerProcess:
        """Begin one; `exitcode` tells its end as that of a subprocess.

        Args:
            command: a console script and its arguments.
            said: file for what it prints.
            inherited: descriptor that it keeps open until its end, a lock.

        Raises:
            InputError: no such script is installed.
        """
        script, *arguments = command
        if not entry_points(group="console_scripts", name=script):
            raise InputError(f"'{script}' is not installed here; pip install {script}")
        # Not a daemon: it may outlive this process, which then left the lock to it.
        given = (script, arguments, said, DupFd(inherited))
        process = self._context.Process(target=_main, args=given)
        process.start()
        return process


def _main(script: str, arguments: list[str], said: Path, inherited: Any) -> None:
    """In the new process. In a session of its own Ctrl-C does not reach it."""
    os.setsid()
    inherited.detach()
    with said.open("wb") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    (found,) = entry_points(group="console_scripts", name=script)
    sys.argv = [script, *arguments]
    sys.exit(found.load()(arguments))
