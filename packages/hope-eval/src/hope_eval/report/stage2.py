"""Our checkpoints beside their baselines and beside the paper's rows: the same tasks, whatever the scale."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from hope_data.errors import InputError
from hope_data.publishing import exclusive, write_atomic
from hope_eval import results as schema
from hope_eval.escape import markdown, printable
from hope_eval.files import read_json
from hope_eval.report import verdicts
from hope_eval.report.select import Named
from hope_eval.report.tables import short, table
from hope_eval.results import METRICS, Metric, value
from hope_eval.results.statistics import LEAST

INTRODUCTION = """\
Written by `hope-eval stage2` from the packs of `hope-eval suite` and the metrics of training. ± is one standard error
over items; published numbers come without errors. **Rows of other sizes and token counts answer other questions**: the
paper's models saw 30 and 100 billion tokens, ours what the last table says. Only rows of one table can be compared."""
SAID = """\
Differences with 95 % intervals, paired over the same items, not corrected for their number; in brackets documents or
rows (fewer than ten have no interval). They are of these weights: one training each says nothing of another seed."""
AVERAGED = (
    "Accuracies in %, HellaSwag and ARC-c by likelihood per character, as in the paper; average of the eight."
)


@dataclass(frozen=True)
class Column:
    """A column of the paper's table, and where ours comes from.

    Attributes:
        title: as the table's head says it.
        task: of the pack.
        metric: of the task.
        percent: accuracies are printed in %.
    """

    title: str
    task: str
    metric: str
    percent: bool = True


COLUMNS = {
    "wikitext": Column("Wiki ppl", "wikitext", "word_perplexity", percent=False),
    "lambada_ppl": Column("LMB ppl", "lambada_openai", "perplexity", percent=False),
    "lambada": Column("LMB", "lambada_openai", "acc"),
    "piqa": Column("PIQA", "piqa", "acc"),
    "hellaswag": Column("Hella", "hellaswag", "acc_norm"),
    "winogrande": Column("Wino", "winogrande", "acc"),
    "arc_easy": Column("ARC-e", "arc_easy", "acc"),
    "arc_challenge": Column("ARC-c", "arc_challenge", "acc_norm"),
    "social_iqa": Column("SIQA", "social_iqa", "acc"),
    "boolq": Column("BoolQ", "boolq", "acc"),
}
# Perplexities are no means over items; what they are made of is, and can be paired.
PAIRED = {
    ("wikitext", "bits_per_byte"): "WikiText, bits per byte",
    ("lambada_openai", "target_nats"): "LAMBADA, nats of the last word",
}


def write(packs: Sequence[Path], training: Path, out: Path) -> None:
    """Write the page.

    Args:
        packs: results of `hope-eval suite`, the first being compared with the others.
        training: folder with `train_RUN.json`; a run without one has no speed.
        out: Markdown file.

    Raises:
        InputError: no packs, or a file that is none.
    """
    if not packs:
        raise InputError("no packs given; make them with `hope-eval suite`")
    named = [(printable(path.stem), schema.load(path)) for path in packs]
    trained = {printable(path.stem): _training(training, path.stem) for path in packs}
    with exclusive(out):
        write_atomic(out, page(named, trained).encode())


def page(named: Named, trained: Mapping[str, Mapping[str, float]]) -> str:
    """The Markdown page; `trained` has flat numbers of training by run."""
    published = json.loads(files("hope_eval.report").joinpath("published.json").read_text(encoding="utf-8"))
    head = ["", *(COLUMNS[name].title for name in COLUMNS), "average"]
    theirs = [[row[0], *(f"{x:.2f}" for x in row[1:])] for row in published["rows"]]
    columns = list(COLUMNS.values())
    parts = [
        "# Stage 2: our checkpoints against baselines and against the paper",
        INTRODUCTION,
        "## What the numbers say",
        SAID,
        "\n".join(f"- {text}" for text in _sentences(named)),
        "## Ours",
        AVERAGED,
        table(
            head, [*(_ours(name, result, columns) for name, result in named), _chances(named), _counts(named)]
        ),
        "## The paper",
        published["source"] + ".",
        table(head, theirs),
        "## What ours cost",
        table(
            ["run", "variant", "parameters", "tokens seen", "tokens/s", "FLOPs a token", "seed", "revision"],
            [_cost(name, result, trained[name]) for name, result in named],
        ),
        "tokens/s: tokens of training by the CPU time of its steps (on an accelerator, their time), on whatever "
        "machine it was; of older runs, by all seconds. FLOPs of forward and backward, counted.",
    ]
    return "\n\n".join(parts) + "\n"


def _found(result: schema.Results, column: Column) -> Metric | None:
    task = result.task(column.task)
    return task.find(column.metric) if task else None


def _cell(metric: Metric | None, column: Column) -> str:
    if metric is None:
        return "not run"
    if not column.percent:
        return value(metric.value, metric.stderr)
    error = "" if metric.stderr is None else f" ± {100 * metric.stderr:.1f}"
    return f"{100 * metric.value:.1f}{error}"


def _ours(name: str, result: schema.Results, columns: Sequence[Column]) -> list[str]:
    accuracies = [m.value for column in columns if column.percent and (m := _found(result, column))]
    whole = len(accuracies) == sum(column.percent for column in columns)
    average = f"{100 * sum(accuracies) / len(accuracies):.1f}" if whole else "-"
    return [name, *(_cell(_found(result, column), column) for column in columns), average]


def _chances(named: Named) -> list[str]:
    cells, accuracies = ["chance"], []
    for column in COLUMNS.values():
        metric = _any(named, column)
        if not column.percent or metric is None:
            cells.append("-")
            continue
        accuracies.append(100 * (metric.chance or 0.0))  # a word out of a whole vocabulary: as good as none
        cells.append(f"{accuracies[-1]:.1f}")
    whole = len(accuracies) == sum(column.percent for column in COLUMNS.values())
    return [*cells, f"{sum(accuracies) / len(accuracies):.1f}" if whole else "-"]


def _counts(named: Named) -> list[str]:
    metrics = [_any(named, column) for column in COLUMNS.values()]
    return ["n", *("-" if m is None else f"{m.n:,}" for m in metrics), "-"]


def _any(named: Named, column: Column) -> Metric | None:
    return next((m for _, result in named if (m := _found(result, column))), None)


def _sentences(named: Named) -> Iterator[str]:
    """The first run against each other one on every task of the table; then which runs are above chance."""
    wanted = {(c.task, c.metric): c.title for c in COLUMNS.values()}
    wanted |= {("perplexity", "bits_per_byte"): METRICS["bits_per_byte"].title}
    wanted |= PAIRED
    a = named[0][0]
    for b, rows in verdicts.against_first(named, {name: [result] for name, result in named}):
        parts = [
            f"{title} {verdicts.measured(row.difference)} ({row.difference.clusters})"
            for row in rows
            if (title := wanted.get((row.task, row.metric)))
        ]
        if parts:
            yield f"{markdown(a)} - {markdown(b)}, these weights: {'; '.join(parts)}."
    for name, result in named:
        above = [
            column.title
            for column in COLUMNS.values()
            if (m := _found(result, column))
            and m.chance is not None
            and m.stderr
            and m.clusters >= LEAST
            and m.value - m.chance > 3 * m.stderr
        ]
        where = ", ".join(above) or "none of these tasks"
        yield f"{markdown(name)} is more than three standard errors above chance at {where}."


def _cost(name: str, result: schema.Results, trained: Mapping[str, float]) -> list[str]:
    about = result.checkpoint
    tokens = "-" if about.tokens is None else f"{about.tokens:,}"
    spent, flops = trained.get("step_seconds"), trained.get("flops_per_token")
    speed = trained.get("tokens", 0.0) / spent if spent else trained.get("tokens_per_s")
    return [
        name,
        about.variant,
        f"{about.parameters:,}",
        tokens,
        "-" if speed is None else f"{speed:,.0f}",
        "-" if flops is None else f"{flops:.2g}",
        str(about.seed),
        short(about.revision),
    ]


def _training(folder: Path, name: str) -> dict[str, float]:
    """Finite numbers of a training's metrics."""
    path = folder / f"train_{name}.json"
    record = read_json(path, "train again, or move it away") if path.is_file() else {}
    record = record.get(name, record)  # as the pipeline writes it, by run
    return {k: float(v) for k, v in record.items() if type(v) in (int, float) and -1e300 < v < 1e300}
