"""Tasks for people: what there is, and examples with their answers below."""

import dataclasses
import inspect
from collections.abc import Sequence

from hope_data.errors import InputError
from hope_data.tasks import TASKS, Task, draw


def listing() -> str:
    """A line per task: name, what it asks, vocabulary, chance, dials."""
    lines = []
    for name, kind in TASKS.items():
        task = kind()
        first = (inspect.getdoc(kind) or "").split("\n")[0]
        dials = ", ".join(f"{f.name}={f.default}" for f in dataclasses.fields(kind)) or "no dials"
        lines.append(
            f"{name:<18} {first}\n{'':<18} {task.vocab_size} tokens, chance {task.chance:.3g}; {dials}"
        )
    return "\n".join(lines)


def examples(name: str, length: int, count: int, seed: int) -> str:
    """The task's text, then drawn examples; a dash is a position where nothing is asked."""
    if name not in TASKS:
        raise InputError(f"task {name!r}: choose one of {', '.join(TASKS)}")
    task = TASKS[name]()
    drawn = draw(task, "train", seed, 0, count, length)
    parts = [inspect.getdoc(TASKS[name]) or ""]
    for tokens, targets, mask in zip(*(column.tolist() for column in drawn), strict=True):
        parts.append(_rows(task, tokens, targets, mask))
    return "\n\n".join(parts)


def _rows(task: Task, tokens: Sequence[int], targets: Sequence[int], mask: Sequence[bool]) -> str:
    above = [task.show(token) for token in tokens]
    below = [task.answer(target) if asked else "-" for target, asked in zip(targets, mask, strict=True)]
    width = max(map(len, above + below)) + 1
    per_line = max(1, 88 // width)
    lines = []
    for start in range(0, len(above), per_line):
        here = slice(start, start + per_line)
        lines += [
            f"{label:<9}" + "".join(f"{cell:<{width}}" for cell in row[here]).rstrip()
            for label, row in (("tokens", above), ("targets", below))
        ]
    return "\n".join(lines)
