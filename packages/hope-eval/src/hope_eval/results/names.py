"""Names in results: they become parts of paths, so nothing else passes for one."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hope_data.errors import InputError

# Tasks and groups that reports know by name; they stand here so that a report needs no torch.
PERPLEXITY, SHUFFLED, NEEDLES = "perplexity", "perplexity_shuffled", "niah_"
CLASSES = ("new", "seen", "bigram seen", "trigram seen")
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,199}")
# Labels that tables and pictures read as numbers.
LABELS = {
    "length": re.compile(r"[0-9]{1,18}"),
    "depth": re.compile(r"[01](\.[0-9]{1,18})?|[0-9.]{1,18}e-[0-9]{1,3}"),
    "stage": re.compile(r"[0-9]{1,9}"),
    "position": re.compile(r"[0-9]{1,18}-[0-9]{1,18}"),
}


def as_name(text: str) -> str:
    """Make a name of any text: `_` stands for what `NAME` does not allow."""
    return re.sub(r"[^A-Za-z0-9_.+-]", "_", text).lstrip(".+-")[:200] or "unnamed"


def check_name(key: str, name: str) -> None:
    """Raise InputError unless `name` is a name."""
    if not NAME.fullmatch(name):
        raise InputError(
            f"{key} is {name[:80]!r}; a name is of letters, digits, '_', '-', '.' and '+' and begins with a letter, "
            "a digit or '_'"
        )


def check_labels(labels: Mapping[str, Sequence[str]]) -> None:
    """Raise InputError where a label that is read as a number is none."""
    for label, form in LABELS.items():
        unfit = next((value for value in labels.get(label, ()) if not form.fullmatch(value)), None)
        if unfit is not None:
            raise InputError(f"label {label} is {unfit[:80]!r}, which is no {label}")


def check_count(key: str, value: Any, *, least: int = 0) -> None:
    """Raise InputError unless a value is a whole number of at least `least`."""
    if type(value) is not int or not least <= value < 2**63:
        raise InputError(f"{key} is {str(value)[:80]!r}, not a whole number of at least {least}")


def trained_length(folder: Path, meta: dict[str, Any], default: int) -> int:
    """Tokens of a training window, `default` where the checkpoint does not say."""
    length = meta.get("length", default)
    check_count(f"{folder / 'meta.json'}: length", length, least=1)
    return int(length)
