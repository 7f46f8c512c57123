"""Values of the command line, each refused in one line, and the parser that says so."""

import argparse
import math
from typing import NoReturn

from hope_data.errors import InputError

# Counts beyond this are no counts; numpy and torch would overflow.
MOST = 2**40


class Parser(argparse.ArgumentParser):
    """A parser that refuses in one line, without the list of its options."""

    def error(self, message: str) -> NoReturn:
        """Raise InputError, as everything does that a user can mend."""
        raise InputError(f"{message}; see {self.prog} --help")


def positive(text: str) -> int:
    """A positive whole number, as argparse takes it."""
    return _whole(text, 1, MOST)


def seed(text: str) -> int:
    """What numpy takes for a seed."""
    return _whole(text, 0, 2**63 - 1)


def _whole(text: str, least: int, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20 and least <= int(text) <= most):
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is no whole number from {least} to {most}")
    return int(text)


def fraction(text: str) -> float:
    """A finite number, not negative."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= 1e6:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is no number from 0 to 1e6")
    return number


def names(text: str) -> list[str]:
    """Parts of a list with commas, each once."""
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def lengths(text: str) -> list[int]:
    """Token counts such as `512,8k,1M`."""
    made = []
    for part in names(text):
        unit = {"k": 1024, "M": 1024**2}.get(part[-1], 1)
        number = part[:-1] if unit > 1 else part
        try:
            made.append(_whole(number, 1, MOST) * unit)
        except argparse.ArgumentTypeError:
            raise argparse.ArgumentTypeError(f"{part[:80]!r} is no length; write 512, 8k or 1M") from None
    if not made:
        raise argparse.ArgumentTypeError("no length is given; write 512, 8k or 1M")
    return made


def story_lengths(text: str) -> list[int]:
    """The same as `lengths`, with 0 for the story alone."""
    return [0 if part == "0" else lengths(part)[0] for part in names(text)] or lengths(text)


def relative_length(text: str) -> str:
    """Tokens, or `2x` for twice the training length."""
    try:
        _whole(text.removesuffix("x"), 1, MOST)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is no length; write 64 or 2x") from None
    return text


def depths(text: str) -> list[float]:
    """Shares of a text, as `0,0.5,1`."""
    made = []
    for part in names(text):
        try:
            made.append(float(part))
        except ValueError:
            made.append(math.nan)
        if not 0 <= made[-1] <= 1:
            raise argparse.ArgumentTypeError(f"{part[:80]!r}: a depth is a share from 0 to 1")
    if not made:
        raise argparse.ArgumentTypeError("no depth is given; write 0,0.5,1")
    return made


def device(text: str) -> str:
    """A device of torch that this machine has."""
    if text != "cpu":
        import torch  # noqa: PLC0415 (slow to import, and needed for other devices only)

        try:
            torch.zeros(1, device=text).item()
        except (RuntimeError, AssertionError, NotImplementedError, ValueError) as error:
            reason = str(error).splitlines()[0][:160]
            raise argparse.ArgumentTypeError(
                f"{text[:80]!r} is no device of this machine ({reason})"
            ) from None
    return text
