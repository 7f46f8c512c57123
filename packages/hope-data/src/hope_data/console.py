"""What every command does alike: a mistake is one line and exit status 2, Ctrl-C one line and 130."""

import argparse
import datetime  # noqa: F401 (numpy, interrupted while it imports this, says something else than Ctrl-C)
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from io import TextIOWrapper
from typing import NoReturn

from hope_data.errors import InputError, harmless

INTERRUPTED = "interrupted; what is done is kept where a step can be resumed: run the same command again"


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with the arguments."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {harmless(message)}; see {self.prog} --help\n")


def run(command: Callable[[], None], *, whole_process: bool) -> int:
    """Run a command.

    Args:
        command: what to run.
        whole_process: this process ends with it, so that signals and stdout are its own.

    Returns:
        Exit status: 0, 2 for a mistake of the user's or a failing disk, 130 after Ctrl-C; told in one line on stderr.
    """
    code, message = 0, ""
    try:
        if whole_process:
            _end_soon_after_interrupt()
        if isinstance(sys.stdout, TextIOWrapper):
            # A terminal or a file's name may be of another encoding than the text.
            sys.stdout.reconfigure(errors="backslashreplace")
        _call(command)
        sys.stdout.flush()
        return 0
    except BrokenPipeError:
        pass  # the reader has seen enough, as `head` does
    except (InputError, OSError) as error:
        code, message = 2, f"error: {error}"
    except MemoryError:
        code, message = 2, "error: there is not enough memory"
    except KeyboardInterrupt:
        code, message = 130, INTERRUPTED
    if whole_process:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C is no news
    if message:
        sys.stderr.write(f"{harmless(message)}\n")
    if whole_process:
        # Else Python would try to flush once more at exit, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def _call(command: Callable[[], None]) -> None:
    try:
        command()
    except ImportError as error:
        if isinstance(error.__cause__, KeyboardInterrupt):  # Ctrl-C met a module in C while it began
            raise error.__cause__ from None
        raise


def _end_soon_after_interrupt() -> None:
    """End this process two seconds after Ctrl-C even where a library does not return to Python for minutes."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)

    def wait() -> None:
        os.read(read, 1)
        time.sleep(2)
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
            os.write(2, f"{INTERRUPTED}\n".encode())
            os._exit(130)

    threading.Thread(target=wait, daemon=True).start()
