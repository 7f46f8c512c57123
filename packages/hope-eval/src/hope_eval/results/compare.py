"""Paired differences between result files.

Each file holds one training: its intervals say how surely these items tell these weights apart, and nothing of what
another training seed would change. So no word here says which method is better.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from hope_data.errors import InputError
from hope_eval.results.schema import Results, TaskResult
from hope_eval.results.statistics import Difference, paired, ratio


@dataclass(frozen=True)
class Comparison:
    """One metric of two runs over the same items; `difference` is A minus B."""

    task: str
    metric: str
    group: str
    a: float
    b: float
    difference: Difference

    @property
    def interval(self) -> str:
        """The bounds in words; a dash where there are too few documents for any."""
        low, high = self.difference.low, self.difference.high
        return "-" if low is None or high is None else f"{low:+.3f} to {high:+.3f}"


def compare(a: Results, b: Results) -> list[Comparison]:
    """Compare everything that both files measure of the model.

    Raises:
        InputError: a task was run on other items, or no task is in both.
    """
    shared = [(task, other) for task in a.tasks if (other := b.task(task.task))]
    if not shared:
        raise InputError("the two results have no task in common; evaluate both with the same --tasks")
    for task, other in shared:
        if not same_items(task, other):
            raise InputError(
                f"{task.task}: the two results are over different items; evaluate both with the same shards, "
                "tokenizer, --seed, --limit, --length and version of hope-eval"
            )
    return [row for task, other in shared for row in compare_tasks(task, other)]


def same_items(a: TaskResult, b: TaskResult) -> bool:
    """Whether items can be paired."""
    return a.items_sha256 == b.items_sha256


def compare_tasks(a: TaskResult, b: TaskResult, groups: Collection[str] = ()) -> Iterator[Comparison]:
    """Every score in every group (or in those named); what does not depend on the model is left out."""
    for name in a.items.scores:
        if name == "unigram_bits_per_byte":
            continue
        for group, chosen in a.items.groups().items():
            if groups and group not in groups:
                continue
            score_a, weight, cluster = a.items.columns(name, chosen)
            score_b, _, _ = b.items.columns(name, chosen)
            value_a, value_b = (ratio(score, weight, cluster).value for score in (score_a, score_b))
            difference = paired(score_a, score_b, weight, cluster)
            yield Comparison(a.task, name, group, value_a, value_b, difference)
