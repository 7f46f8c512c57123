"""Synthetic tasks that ask for one ability of a memory each; numpy only."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from hope_data.errors import InputError
from hope_data.tasks.base import LARGEST, Examples, Task, draw
from hope_data.tasks.copying import Compression, SelectiveCopying
from hope_data.tasks.recall import MQAR, FuzzyRecall, InContextRecall, Needle, NoisyRecall
from hope_data.tasks.states import Dyck, ModularAddition, Parity, PermutationS5

__all__ = ["TASKS", "Examples", "Task", "build", "draw"]

TASKS: dict[str, type[Task]] = {
    "mqar": MQAR,
    "in_context_recall": InContextRecall,
    "noisy_recall": NoisyRecall,
    "fuzzy_recall": FuzzyRecall,
    "needle": Needle,
    "selective_copying": SelectiveCopying,
    "compression": Compression,
    "parity": Parity,
    "modular_addition": ModularAddition,
    "permutation_s5": PermutationS5,
    "dyck": Dyck,
}


def build(values: Mapping[str, Any]) -> Task:
    """A task from its name and what differs from its defaults, as in `{"name": "mqar", "pairs": 16}`.

    Raises:
        InputError: an unknown name or key, a value of the wrong type.
    """
    name = str(values.get("name", ""))
    if name not in TASKS:
        raise InputError(f"task {name!r}: choose one of {', '.join(TASKS)}")
    kind = TASKS[name]
    known: dict[str, type] = {field.name: type(field.default) for field in dataclasses.fields(kind)}
    given: dict[str, Any] = {key: value for key, value in values.items() if key != "name"}
    for key, value in given.items():
        if key not in known:
            raise InputError(f"task {name}: unknown key '{key}'; known: {', '.join(known) or 'none'}")
        if type(value) is not known[key] or not _fits(value):
            allowed = {
                int: f"a whole number from 1 to {LARGEST}",
                float: "a number from 0 up to 1",
                bool: "true or false",
            }
            raise InputError(f"task {name}: '{key}' is {repr(value)[:40]}; it must be {allowed[known[key]]}")
    return kind(**given)


def _fits(value: Any) -> bool:
    # A number with a point is a share of the tokens.
    return 0 <= value < 1 if type(value) is float else type(value) is bool or 1 <= value <= LARGEST
