"""Sentences that the numbers themselves decide."""

from collections.abc import Iterator, Sequence
from itertools import chain

from hope_eval.compare import Comparison, compare_tasks, same_items
from hope_eval.report.select import Named, done, plain
from hope_eval.results import METRICS, value

COMPARED = {
    "bits_per_byte": "perplexity",
    "choice_accuracy": "choice",
    "choice_likelihood": "choice",
    "passkey_choice": "passkey",
    "passkey_exact": "passkey",
}


Pairs = Sequence[tuple[str, str, Sequence[Comparison]]]


def pairs(results: Named) -> Pairs:
    """Every two runs with their comparisons over all items; tasks over different items are left out."""
    found = []
    for n, (name_a, a) in enumerate(results):
        for name_b, b in results[n + 1 :]:
            rows = [
                row
                for task in a.tasks
                if (other := b.task(task.task)) and same_items(task, other)
                for row in compare_tasks(task, other, groups=("all",))
            ]
            found.append((name_a, name_b, rows))
    return found


def sentences(results: Named, compared: Pairs) -> list[str]:
    """One per metric, for the first run against the others; then unigram and chance."""
    against_others = _against_others(results[0][0], compared)
    chances = (_chance(results, name, "choice") for name in ("choice_accuracy", "choice_likelihood"))
    return [*against_others, *_unigram(results), *chain.from_iterable(chances)]


def _against_others(first: str, compared: Pairs) -> Iterator[str]:
    for metric, task in COMPARED.items():
        said: dict[str, list[str]] = {"better": [], "worse": [], "no difference": [], "other items": []}
        measured = False
        for name_a, name_b, rows in compared:
            if name_a != first:
                continue
            row = next((row for row in rows if (row.task, row.metric) == (task, metric)), None)
            if row is None:
                said["other items"].append(name_b)
            else:
                measured = True
                delta = value(row.difference.value, row.difference.stderr)
                said[row.verdict].append(f"{name_b} ({delta})")
        forms = {
            "better": "better than",
            "worse": "worse than",
            "no difference": "not distinguishable from",
            "other items": "not measured on the same items as",
        }
        if measured:
            parts = [f"{forms[verdict]} {_join(names)}" for verdict, names in said.items() if names]
            yield f"**{METRICS[metric].title}** (95 %, paired): {first} is {'; '.join(parts)}."


def _unigram(results: Named) -> Iterator[str]:
    margins = [
        (metric.value, metric.stderr or 0.0, name, plain(metric.group))
        for name, task in done(results, "perplexity")
        for metric in task.metrics
        if metric.name == "unigram_margin" and metric.group != "all"
    ]
    if not margins:
        return
    low, stderr, run, domain = min(margins)
    margin = f"{value(low, stderr)} bits per byte ({run}, {domain})"
    clear = "every run beats it on every domain by more than three standard errors"
    said = clear if low > 3 * stderr else "not every run beats it clearly on every domain"
    yield f"**Unigram**: {said}; least margin {margin}."


def _chance(results: Named, metric: str, task: str) -> Iterator[str]:
    said: dict[bool, list[str]] = {True: [], False: []}
    chance = None
    for name, finished in done(results, task):
        found = finished.find(metric)
        chance = found.chance if found else None
        if found and chance is not None and found.stderr:
            errors = (found.value - chance) / found.stderr
            said[errors > 3].append(f"{name} ({errors:+.1f})")
    parts = [
        f"{'above' if clear else 'not clearly above'} chance ({chance:g}): {_join(names)}"
        for clear, names in said.items()
        if names
    ]
    if parts:
        title = METRICS[metric].title
        yield f"**{title} against chance**, in standard errors, three being clear: {'; '.join(parts)}."


def _join(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
