"""The values of options, each refused in one line."""

import argparse
import math

from hope_data.commands import share, whole

# numpy and torch would overflow on larger counts.
MOST = 2**40


def positive(text: str) -> int:
    return whole(text, 1, MOST)


def seed(text: str) -> int:
    """Return what numpy takes for a seed."""
    return whole(text, 0, 2**63 - 1)


def fraction(text: str) -> float:
    """Return a number from 0 to a million."""
    return share(text, 10**6)


def names(text: str) -> list[str]:
    """Return the parts of a list with commas, each once."""
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def lengths(text: str) -> list[int]:
    """Return token counts such as `512,8k,1M`."""
    counts = []
    for part in names(text):
        unit = {"k": 1024, "M": 1024**2}.get(part[-1], 1)
        number = part[:-1] if unit > 1 else part
        try:
            counts.append(whole(number, 1, MOST) * unit)
        except argparse.ArgumentTypeError:
            raise argparse.ArgumentTypeError(f"{part[:80]!r} is no length; write 512, 8k or 1M") from None
    if not counts:
        raise argparse.ArgumentTypeError("no length is given; write 512, 8k or 1M")
    return counts


def story_lengths(text: str) -> list[int]:
    """Return token counts, 0 being the story alone."""
    return [0 if part == "0" else lengths(part)[0] for part in names(text)] or lengths(text)


def relative_length(text: str) -> str:
    """Return tokens as text, or `2x` for twice the training length."""
    try:
        whole(text.removesuffix("x"), 1, MOST)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is no length; write 64 or 2x") from None
    return text


def depths(text: str) -> list[float]:
    """Return shares of a text, as `0,0.5,1`."""
    shares = []
    for part in names(text):
        try:
            shares.append(float(part))
        except ValueError:
            shares.append(math.nan)
        if not 0 <= shares[-1] <= 1:
            raise argparse.ArgumentTypeError(f"{part[:80]!r}: a depth is a share from 0 to 1")
    if not shares:
        raise argparse.ArgumentTypeError("no depth is given; write 0,0.5,1")
    return shares


def device(text: str) -> str:
    """Return a device of torch that this machine has."""
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
