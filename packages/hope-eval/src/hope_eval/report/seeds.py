"""Runs that were trained with several seeds: one pooled result a run, and differences whose intervals cover new seeds.

Seeds of a run are read from `RESULTS/RUN/SEED.json`. Every seed is measured on the same items.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean

import numpy as np

from hope_data.errors import InputError
from hope_eval.results import Items, Metric, PairedDifference, Results, TaskResult, rounded
from hope_eval.results.compare import Comparison, same_items
from hope_eval.results.statistics import combined, crossed

Seeds = Mapping[str, Sequence[Results]]


def pool(run: str, seeds: Sequence[Results]) -> Results:
    """Return one result of several seeds: means of the scores, standard errors over seeds and documents.

    Raises:
        InputError: the seeds were measured on different items, or one seed is there twice.
    """
    first = seeds[0]
    if len(seeds) == 1:
        return first
    numbers = [result.checkpoint.seed for result in seeds]
    if len(set(numbers)) < len(numbers):
        raise InputError(
            f"run '{run}': seed {max(numbers, key=numbers.count)} is there twice; remove one of them"
        )
    tasks = []
    for task in first.tasks:
        others = [result.task(task.task) for result in seeds]
        same = [other for other in others if other and same_items(task, other)]
        if len(same) < len(seeds):
            raise InputError(
                f"run '{run}', {task.task}: seeds measured on different items; evaluate all again"
            )
        tasks.append(_pooled_task(same))
    memorized = [_pooled_difference(row, seeds) for row in first.memorized]
    checkpoint = replace(first.checkpoint, seed=None)
    seconds = round(sum(result.seconds for result in seeds), 3)
    return replace(first, checkpoint=checkpoint, tasks=tasks, seconds=seconds, memorized=memorized)


def _pooled_task(tasks: Sequence[TaskResult]) -> TaskResult:
    first = tasks[0]
    scores = {name: np.asarray([task.items.scores[name] for task in tasks]) for name in first.items.scores}
    items = replace(first.items, scores={name: rounded(rows_SN.mean(0)) for name, rows_SN in scores.items()})
    groups = items.groups()

    def metric(one: Metric) -> Metric:
        if one.name in scores and one.group in groups:
            estimate = crossed(*_columns(items, scores[one.name], groups[one.group]))
            return replace(one, value=estimate.value, stderr=estimate.stderr)
        each = [found for task in tasks if (found := task.find(one.name, one.group))]
        pooled = combined([m.value for m in each], [m.stderr for m in each], one.clusters)
        return replace(one, value=pooled.value, stderr=pooled.stderr)

    return replace(
        first,
        metrics=[metric(one) for one in first.metrics],
        items=items,
        tokens=sum(task.tokens for task in tasks),
        seconds=round(sum(task.seconds for task in tasks), 3),
    )


def _columns(
    items: Items, rows_SN: np.ndarray, chosen: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    index = list(chosen)
    return rows_SN[:, index], np.asarray(items.weight)[index], np.asarray(items.cluster)[index]


def _pooled_difference(row: PairedDifference, seeds: Sequence[Results]) -> PairedDifference:
    """Return the mean over seeds of what an adaptation changes, with an interval over seeds and documents."""
    key = row.task, row.mode, row.metric, row.group
    each = [
        other for result in seeds for other in result.memorized
        if (other.task, other.mode, other.metric, other.group) == key
    ]  # fmt: skip
    pooled = combined([other.difference for other in each], [other.stderr for other in each], row.clusters)
    return replace(
        row,
        written=fmean(other.written for other in each),
        frozen=fmean(other.frozen for other in each),
        difference=pooled.value,
        stderr=pooled.stderr,
        low=pooled.low,
        high=pooled.high,
    )


def compare(a: Sequence[Results], b: Sequence[Results]) -> list[Comparison]:
    """Return A minus B over the seeds that both have, paired by seed and by item, for every score over all items."""
    others = {result.checkpoint.seed: result for result in b}
    pairs = [(one, others[one.checkpoint.seed]) for one in a if one.checkpoint.seed in others]
    rows = []
    for task in pairs[0][0].tasks if pairs else ():
        matching = [(one.task(task.task), other.task(task.task)) for one, other in pairs]
        if all(x and y and same_items(task, x) and same_items(task, y) for x, y in matching):
            for name in task.items.scores:
                if name != "unigram_bits_per_byte":
                    rows.append(_difference(task, name, matching))  # type: ignore[arg-type]
    return rows


def _difference(task: TaskResult, name: str, pairs: Sequence[tuple[TaskResult, TaskResult]]) -> Comparison:
    def scores(pick: Callable[[tuple[TaskResult, TaskResult]], TaskResult]) -> np.ndarray:
        return np.asarray([pick(pair).items.scores[name] for pair in pairs])

    a_SN, b_SN = scores(lambda pair: pair[0]), scores(lambda pair: pair[1])
    weight, cluster = task.items.weight, task.items.cluster
    value_a, value_b = (float(rows.mean(0).sum() / np.sum(weight)) for rows in (a_SN, b_SN))
    return Comparison(task.task, name, "all", value_a, value_b, crossed(a_SN - b_SN, weight, cluster))
