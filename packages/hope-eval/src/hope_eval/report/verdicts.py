"""Sentences that the numbers themselves decide: of methods where there are several seeds, else of these weights."""

from collections.abc import Iterator, Sequence
from itertools import chain

from hope_eval.escape import markdown
from hope_eval.report.seeds import Seeds, compare
from hope_eval.report.select import Named, done, plain
from hope_eval.results import METRICS, value
from hope_eval.results.compare import Comparison
from hope_eval.results.statistics import LEAST, Difference

COMPARED = {
    "bits_per_byte": "perplexity",
    "choice_accuracy": "choice",
    "choice_likelihood": "choice",
    "passkey_choice": "passkey",
    "passkey_exact": "passkey",
}
# What the items of a task come from, each independent of the others.
UNITS = {"perplexity": "documents", "choice": "documents", "passkey": "prompts"}


# What is compared of the tasks over held-out text; of other tasks everything, over all items.
PARTS = ("_position", "_target", "_source")
GROUPS: dict[str, tuple[str, ...]] = {"perplexity_source": ("source=new", "source=repeated")}
Compared = Sequence[tuple[str, Sequence[Comparison]]]


def against_first(results: Named, seeds: Seeds) -> Compared:
    """The first run minus each other, and minus each model adapted at test time, over the same items.

    Bits per byte also by domain, and by whether the window has shown a token before.
    """
    first, mine = results[0]
    compared = []
    for name, result in results:
        for suffix in dict.fromkeys(_adaptation(task.task) for task in result.tasks):
            if (name, suffix) == (first, ""):
                continue
            rows: list[Comparison] = []
            for task in mine.tasks:
                parts = task.task.partition("+")[0].endswith(PARTS) and task.task not in GROUPS
                if parts or _adaptation(task.task) or (suffix and "+" in task.task):
                    continue
                groups: tuple[str, ...] = GROUPS.get(task.task, ("all",))
                if task.task == "perplexity":
                    groups += tuple(f"domain={one}" for one in dict.fromkeys(task.items.labels["domain"]))
                other = f"{task.task}+{suffix}" if suffix else task.task
                rows += compare(seeds[first], seeds[name], task.task, other, groups)
            compared.append((f"{name} + {suffix.replace('_', ' ')}" if suffix else name, rows))
    return compared


def _adaptation(task: str) -> str:
    """Name of the adaptation at test time, '' without one; memorising in another mode is a task of its own."""
    mode = task.partition("+")[2]
    return "" if mode in ("off", "on", "oracle") else mode


def sentences(results: Named, compared: Compared) -> list[str]:
    """One per metric, for the first run against the others; then unigram and chance."""
    against_others = _against_others(results[0][0], compared)
    chances = (_chance(results, name, "choice") for name in ("choice_accuracy", "choice_likelihood"))
    return [*against_others, *_unigram(results), *chain.from_iterable(chances)]


def _against_others(first: str, compared: Compared) -> Iterator[str]:
    for metric, task in COMPARED.items():
        rows = {
            name: next(
                (row for row in of if (row.task, row.metric, row.group) == (task, metric, "all")), None
            )
            for name, of in compared
        }
        compared_rows = {name: row for name, row in rows.items() if row}
        if not compared_rows or all(
            row.difference.low == row.difference.high == 0 for row in compared_rows.values()
        ):
            continue
        words = "; ".join(difference(first, name, row) for name, row in compared_rows.items())
        missing = [markdown(name) for name, row in rows.items() if row is None and "+" not in name]
        other = f"; not measured on the same items as {_join(missing)}" if missing else ""
        yield f"**{METRICS[metric].title}**: {words}{other}."


def difference(a: str, b: str, row: Comparison) -> str:
    """One comparison in words, such as `a - b -0.012 [-0.040, +0.016], 3 seeds x 106 documents: undecided`."""
    units, seeds = UNITS.get(row.task, "rows"), row.difference.seeds
    text = f"{markdown(a)} - {markdown(b)} {measured(row.difference)}"
    if seeds == 1:
        return f"{text}, these weights, {row.difference.clusters} {units}"
    return f"{text}, {seeds} seeds x {row.difference.clusters} {units}: {verdict(a, b, row)}"


def verdict(a: str, b: str, row: Comparison) -> str:
    """Which run is better, where the interval over seeds and documents excludes zero; else `undecided`."""
    low, high = row.difference.low, row.difference.high
    if row.difference.seeds == 1 or low is None or high is None or low <= 0 <= high:
        return "undecided"
    return f"{markdown(a if (high < 0) == METRICS[row.metric].lower_is_better else b)} better"


def measured(estimate: Difference, sign: str = "+") -> str:
    """A number with its interval, such as `-0.012 [-0.020, -0.004]`."""
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:{sign}.3f} (too few for an interval)"
    return f"{estimate.value:{sign}.3f} [{estimate.low:{sign}.3f}, {estimate.high:{sign}.3f}]"


def _unigram(results: Named) -> Iterator[str]:
    margins = [
        (metric.value, metric.stderr or 0.0, name, plain(metric.group))
        for name, task in done(results, "perplexity")
        for metric in task.metrics
        if metric.name == "unigram_margin" and metric.group != "all" and metric.clusters >= LEAST
    ]
    if not margins:
        return
    low, stderr, run, domain = min(margins)
    margin = f"{value(low, stderr)} bits per byte ({markdown(run)}, {markdown(domain)})"
    clear = all(size > 3 * error for size, error, *_ in margins)
    words = "more than" if clear else "not everywhere more than"
    yield (
        f"**Unigram**: every run is {words} three standard errors below it, on domains of {LEAST} documents "
        f"or more; least margin {margin}."
    )


def _chance(results: Named, metric: str, task: str) -> Iterator[str]:
    groups: dict[bool, list[str]] = {True: [], False: []}
    chance = None
    for name, finished in done(results, task):
        number = finished.find(metric)
        chance = number.chance if number else None
        if number and chance is not None and number.stderr and number.clusters >= LEAST:
            errors = (number.value - chance) / number.stderr
            groups[errors > 3].append(f"{markdown(name)} ({errors:+.1f})")
    parts = [
        f"{'above' if clear else 'not clearly above'} chance ({chance:g}): {_join(names)}"
        for clear, names in groups.items()
        if names
    ]
    if parts:
        title = METRICS[metric].title
        yield f"**{title} against chance**, in standard errors, three being clear: {'; '.join(parts)}."


def _join(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
