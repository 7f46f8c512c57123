"""Ranges of configuration values: declared beside the default, checked for a whole tree of dataclasses at once.

@dataclass(frozen=True)
class Config:
    steps: int = field(default=100, metadata=within(1))
    share: float = field(default=0.5, metadata=within(0, 1))
    name: str = field(default="muon", metadata=one_of("muon", "adamw"))

check_ranges(Config(steps=0), "train")  # InputError: train.steps is 0; it must be at least 1
"""

import dataclasses
import reprlib
import sys
import types
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any

from hope_model.errors import InputError

KINDS = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text", list: "a list"}


def within(low: float, high: float | None = None, *, above: bool = False, most: int = 4096) -> dict[str, Any]:
    """Return field metadata: the value, or each entry of a list or mapping, lies between `low` and `high`.

    Args:
        low: smallest value allowed.
        high: largest value allowed; None: any finite number.
        above: `low` itself is not allowed.
        most: entries that a list or mapping may have.
    """
    return {"range": (low, high, above), "most": most}


def one_of(*choices: str) -> dict[str, Any]:
    """Return field metadata: the value is one of `choices`."""
    return {"choices": choices}


def check_ranges(value: Any, prefix: str) -> None:
    """Raise `InputError` at the first field of a dataclass, or of one inside it, with a wrong type or value.

    Args:
        value: a dataclass; its numbers must be finite, whether or not a range is declared.
        prefix: what stands before the field's name in a message, such as `model`; empty for nothing.
    """
    hints = _hints(value.__class__)
    for entry in dataclasses.fields(value):
        name = f"{prefix}.{entry.name}" if prefix else entry.name
        _check(getattr(value, entry.name), hints[entry.name], name, entry.metadata)


def check_value(value: Any, name: str, kind: Any, field: str) -> None:
    """Raise `InputError` unless a value that goes by `name` is one that `field` of a dataclass may have."""
    metadata: Mapping[str, Any] = kind.__dataclass_fields__[field].metadata
    _check(value, _hints(kind)[field], name, metadata)


def shown(value: Any) -> str:
    """Return a value as an error message may quote it: short, on one line, whatever it is."""
    try:
        return reprlib.repr(value)
    except ValueError:  # Python does not print whole numbers of more than 4,300 digits
        return "a number of thousands of digits"


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _check(value: Any, hint: Any, name: str, rules: Mapping[str, Any]) -> None:
    kind, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind in (types.UnionType, typing.Union):
        if value is not None:
            _check(value, next(part for part in arguments if part is not type(None)), name, rules)
    elif dataclasses.is_dataclass(kind):
        if not isinstance(value, typing.cast(type, kind)):
            raise InputError(f"{name} must be a mapping, not {shown(value)}")
        check_ranges(value, name)
    elif kind in (list, dict):
        _check_entries(value, kind, arguments, name, rules)
    elif kind in KINDS:
        _check_one(value, kind, name, rules)


def _check_entries(value: Any, kind: type, arguments: Any, name: str, rules: Mapping[str, Any]) -> None:
    if not (isinstance(value, list) if kind is list else isinstance(value, dict)):
        raise InputError(f"{name} is {shown(value)}; it must be a {'list' if kind is list else 'mapping'}")
    if len(value) > rules.get("most", len(value)):
        raise InputError(f"{name} has {len(value):,} entries; at most {rules['most']:,} are allowed")
    for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
        _check(entry, arguments[-1] if arguments else Any, f"{name}[{shown(key)}]", rules)


def _check_one(value: Any, kind: type, name: str, rules: Mapping[str, Any]) -> None:
    number = kind in (int, float)
    fits = isinstance(value, int | float if kind is float else kind)
    if number:
        # A comparison, not isfinite, which fails on whole numbers that no float can hold.
        fits = fits and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    if not fits:
        raise InputError(f"{name} is {shown(value)}; it must be {KINDS[kind]}{_allowed(rules)}")
    low, high, above = rules.get("range", (None, None, False))
    outside = number and low is not None and (value < low or (above and value == low))
    if outside or (number and high is not None and value > high):
        raise InputError(f"{name} is {shown(value)}; it must be {_allowed(rules).removeprefix(', ')}")
    if value not in rules.get("choices", (value,)):
        raise InputError(f"{name} is {shown(value)}; choose one of {', '.join(rules['choices'])}")


def _allowed(rules: Mapping[str, Any]) -> str:
    low, high, above = rules.get("range", (None, None, False))
    if low is None:
        return ""
    lowest = f"above {_plain(low)}" if above else f"at least {_plain(low)}"
    if high is None:
        return f", {lowest}"
    highest = _plain(high)
    return f", {lowest} and at most {highest}" if above else f", between {_plain(low)} and {highest}"


def _plain(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:g}"
