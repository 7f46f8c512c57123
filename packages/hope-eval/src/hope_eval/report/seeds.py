"""Runs that were trained with several seeds: one pooled result a run, and differences whose intervals cover new seeds.

Seeds of a run are read from `RESULTS/RUN/SEED.json`. Every seed is measured on the same items.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from statistics import fmean

import numpy as np

from hope_data.errors import InputError
from hope_eval.results import Items, Metric, PairedDifference, Results, TaskResult, rounded
from hope_eval.results.compare import Comparison, compare_tasks, same_items
from hope_eval.results.statistics import Difference, combined, crossed

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
        each = [other for task in tasks if (other := task.find(one.name, one.group))]
        pooled = combined([m.value for m in each], [m.stderr for m in each], one.clusters)
        return replace(one, value=pooled.value, stderr=pooled.stderr)

    return replace(
        first,
        metrics=[metric(one) for one in first.metrics],
        items=items,
        tokens=sum(task.tokens for task in tasks),
        seconds=round(sum(task.seconds for task in tasks), 3),
        cpu_seconds=round(sum(task.cpu_seconds for task in tasks), 3),
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


def interval(seeds: Sequence[Results], task: str, metric: str, group: str = "all") -> Difference | None:
    """Return a run's mean with its 95 % interval over seeds and documents; None where it was not measured."""
    measured = [one for result in seeds if (one := result.task(task)) and metric in one.items.scores]
    chosen = measured[0].items.groups().get(group) if measured else None
    if not chosen or len(measured) < len(seeds):
        return None
    rows_SN = np.asarray([one.items.scores[metric] for one in measured])
    return crossed(*_columns(measured[0].items, rows_SN, chosen))


def compare(
    a: Sequence[Results], b: Sequence[Results], task: str, other: str, groups: Collection[str] = ()
) -> list[Comparison]:
    """Return A minus B over the seeds that both have, paired by seed and by item, for every score.

    Args:
        a: seeds of a run.
        b: seeds of another, or of the same.
        task: of A.
        other: the task of B over the same items; `TASK+ADAPTATION` of an adapted model.
        groups: of items; none given means all of them.

    Returns:
        Nothing where the items differ. Of one seed, intervals of a bootstrap over documents.
    """
    others = {result.checkpoint.seed: result for result in b}
    pairs = [
        (x, y)
        for one in a
        if one.checkpoint.seed in others
        and (x := one.task(task))
        and (y := others[one.checkpoint.seed].task(other))
        and same_items(x, y)
    ]
    if not pairs:
        return []
    if len(pairs) == 1:
        return list(compare_tasks(*pairs[0], groups=groups))
    items, rows = pairs[0][0].items, []
    for name in items.scores:
        for group, chosen in items.groups().items():
            if name == "unigram_bits_per_byte" or (groups and group not in groups):
                continue
            a_SN, b_SN = (np.asarray([pair[n].items.scores[name] for pair in pairs]) for n in (0, 1))
            columns = _columns(items, a_SN - b_SN, chosen)
            value_a, value_b = (float(x.mean(0)[chosen].sum() / columns[1].sum()) for x in (a_SN, b_SN))
            rows.append(Comparison(task, name, group, value_a, value_b, crossed(*columns)))
    return rows
