"""Picking what a table or picture shows out of several runs' results."""

from collections.abc import Sequence

from hope_eval.escape import printable
from hope_eval.results import Metric, Results, TaskResult

Named = Sequence[tuple[str, Results]]
Done = Sequence[tuple[str, TaskResult]]


def done(results: Named, task: str) -> Done:
    """The runs that have results of a task."""
    return [(name, finished) for name, result in results if (finished := result.task(task))]


def groups(runs: Done, label: str) -> list[str]:
    """Groups of a label that any run has, and `all`."""
    values = dict.fromkeys(value for _, task in runs for value in task.items.labels.get(label, []))
    return [*(f"{label}={value}" for value in values), "all"]


def any_of(runs: Done, name: str, group: str) -> Metric | None:
    """The first run's metric, for numbers that are the same for all: unigram, chance, n."""
    return next((metric for _, task in runs if (metric := task.find(name, group))), None)


def plain(group: str) -> str:
    """A group as people read it: the value without its label."""
    return printable(group.split("=", 1)[-1])
