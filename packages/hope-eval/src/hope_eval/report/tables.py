"""Markdown tables of results."""

from collections.abc import Callable, Sequence

from hope_eval.escape import inline, printable
from hope_eval.report.seeds import Seeds
from hope_eval.report.select import Named, any_of, done, groups, plain
from hope_eval.report.training import Curve
from hope_eval.results import METRICS, value
from hope_eval.results.compare import Comparison


def table(header: Sequence[str], rows: Sequence[Sequence[str]], escape: Callable[[str], str] = inline) -> str:
    """A Markdown table of plain texts; every column but the first is aligned to the right."""
    header, rows = [escape(c) for c in header], [[escape(c) for c in row] for row in rows]
    # Two at least: a rule of one character is no table to Markdown.
    widths = [max(2, *(len(row[n]) for row in [header, *rows])) for n in range(len(header))]

    def text(cells: Sequence[str]) -> str:
        padded = (
            c.ljust(w) if n == 0 else c.rjust(w) for n, (c, w) in enumerate(zip(cells, widths, strict=True))
        )
        return f"| {' | '.join(padded)} |"

    rule = [("-" * w) if n == 0 else "-" * (w - 1) + ":" for n, w in enumerate(widths)]
    return "\n".join([text(header), text(rule), *(text(row) for row in rows)])


def runs_table(results: Named, curves: Sequence[Curve], seeds: Seeds) -> str:
    """What was trained, and how fast; of several seeds the mean."""
    logs = _by_run(curves)
    rows = []
    for name, result in results:
        checkpoint, of = result.checkpoint, logs.get(name, [])
        rows.append(
            [
                name,
                checkpoint.variant,
                f"{checkpoint.parameters:,}",
                _count(checkpoint.tokens),
                _count(checkpoint.step),
                f"{_mean([curve.tokens_per_s for curve in of]):,.0f}" if of else "",
                ", ".join(_count(seed.checkpoint.seed) for seed in seeds[name]),
                short(checkpoint.revision),
            ]
        )
    header = ["run", "variant", "parameters", "tokens", "steps", "tokens/s", "seeds", "revision"]
    return table(header, rows)


def _by_run(curves: Sequence[Curve]) -> dict[str, list[Curve]]:
    runs: dict[str, list[Curve]] = {}
    for curve in curves:
        runs.setdefault(curve.run, []).append(curve)
    return runs


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def metric_table(results: Named, task: str, names: Sequence[str], label: str, against: str = "") -> str:
    """One row per group and metric, one column per run.

    Args:
        results: of all runs.
        task: whose metrics.
        names: metrics to show.
        label: groups to show, beside `all`.
        against: a metric that is the same for every run, such as the unigram model's, as a column of its own.
    """
    runs = done(results, task)
    rows = []
    for metric in names:
        for group in groups(runs, label):
            metrics = [finished.find(metric, group) for _, finished in runs]
            common = any_of(runs, against or metric, group)
            reference = common.value if common and against else common.chance if common else None
            title = f"{METRICS[metric].title}: " if len(names) > 1 else ""
            rows.append(
                [
                    title + plain(group),
                    *(value(m.value, m.stderr) if m else "" for m in metrics),
                    ""
                    if reference is None
                    else f"{reference:.3g}"
                    if not against
                    else value(reference, None),
                    f"{common.n:,}" if common else "",
                ]
            )
    return table([label, *(name for name, _ in runs), "unigram" if against else "chance", "n"], rows)


def comparison_table(a: str, b: str, rows: Sequence[Comparison]) -> str:
    """Differences of two runs, for a terminal."""
    return table(
        ["metric", "group", a, b, f"{a} - {b}", "95 % interval", "n", "documents"],
        [[_title(row), row.group, f"{row.a:.3f}", f"{row.b:.3f}", *_difference(row)] for row in rows],
        printable,
    )


def compared_table(first: str, compared: Sequence[tuple[str, Sequence[Comparison]]]) -> str:
    """The first run minus every other."""
    return table(
        ["metric", f"{first} minus", "difference", "95 % interval", "n", "documents"],
        [
            [_title(row), other, *_difference(row)]
            for metric in METRICS
            for other, rows in compared
            for row in rows
            if row.metric == metric and not row.group.startswith("domain=")
        ],
    )


def provenance_table(results: Named) -> str:
    """What was evaluated, with what, for how long."""
    rows = [
        [
            name,
            result.checkpoint.sha256[:12],
            result.checkpoint.config_sha256[:12],
            result.checkpoint.tokenizer_sha256[:12],
            ", ".join(f"{task.task} v{task.version}" for task in result.tasks),
            ", ".join(sorted({str(task.seed) for task in result.tasks})),
            f"{sum(task.tokens for task in result.tasks):,}",
            f"{result.seconds:.0f}",
            short(result.evaluator.revision),
        ]
        for name, result in results
    ]
    header = [
        "run",
        "weights",
        "config",
        "tokenizer",
        "tasks",
        "item seed",
        "tokens scored",
        "seconds",
        "evaluated by",
    ]
    return table(header, rows)


def _title(row: Comparison) -> str:
    """The metric's, with the task where its name does not say it."""
    title = METRICS[row.metric].title + ("" if row.group == "all" else f", {_group(row.group)}")
    ours = ("perplexity", "perplexity_source", "choice", "passkey")
    return title if row.task in ours else f"{row.task}: {title.lower()}"


def _group(group: str) -> str:
    """`source=new` as new tokens, `depth=0.5` as depth 0.5, `domain=code` as code."""
    key, label = group.partition("=")[0], plain(group)
    if key in ("source", "target", "length"):
        return f"{label} tokens"
    return label if key == "domain" else f"{key} {label}"


def short(revision: str) -> str:
    """Twelve digits of a revision, and whether it was changed."""
    return revision[:12] + ("-dirty" if revision.endswith("-dirty") else "")


def _difference(row: Comparison) -> list[str]:
    estimate = row.difference
    return [value(estimate.value, estimate.stderr), row.interval, f"{estimate.n:,}", f"{estimate.clusters:,}"]


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"
