"""Sections and pictures of where the loss comes from, and of adaptation at test time."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from hope_eval.report.plots import COLOURS, STYLE, WIDTH, save
from hope_eval.report.select import Done, Named, plain
from hope_eval.report.suites import base
from hope_eval.report.tables import table
from hope_eval.results import TaskResult, value
from hope_eval.tasks.perplexity import NAME, SHUFFLED
from hope_eval.tasks.sources import CLASSES

SOURCES = """\
Nats per token, by the token's place in its window and by what its window has shown of it before: nothing (`new`),
the token (`seen`), it after its predecessor (`bigram seen`), it after its two predecessors (`trigram seen`).
`shuffled`: the control, with blocks of tokens in places of other documents."""
ADAPTED = """\
The same items read by the model alone and with an adaptation at test time; 95 % bootstrap intervals, paired.
Operations per token and bytes of a sequence's state are what the adaptation adds."""
TITLES = {"position": "Loss by position in the window", "target": "Loss by class of target"}


def draw_all(named: Named, folder: Path) -> dict[str, str]:
    """Draw what the results allow: file names in `folder`, and what each shows."""
    made = {}
    with mpl.rc_context(STYLE):
        for task in (NAME, SHUFFLED):
            for label, title in TITLES.items():
                series = _series(named, f"{task}_{label}")
                if series:
                    file = f"{task}_{label}.png"
                    note = ", blocks shuffled between documents" if task == SHUFFLED else ""
                    save(_lines(series, label, title + note), folder / file)
                    made[file] = f"{title}{note}, per run and adaptation"
    return made


def sections(named: Named, pictures: dict[str, str]) -> list[str]:
    """Markdown; `pictures` is Markdown by file name."""
    made = []
    tasks = [f"{task}_{label}" for task in (NAME, SHUFFLED) for label in TITLES]
    shown = [task for task in tasks if _series(named, task)]
    if shown:
        made += ["## Where the loss comes from", SOURCES]
        for task in shown:
            made += [_table(named, task), pictures.get(f"{task}.png", "")]
    if rows := _adapted(named):
        header = ["run", "task", "adaptation", "metric", "plain", "adapted", "difference", "95 % interval"]
        header += ["operations/token", "bytes", "ms/token", "n"]
        made += ["## Adaptation at test time", ADAPTED, table(header, rows)]
    return made


def _series(named: Named, task: str) -> Done:
    """Results of a task by run, plain and with every adaptation."""
    return [
        (f"{name}{one.task.removeprefix(task).replace('+', ' + ')}", one)
        for name, result in named
        for one in result.tasks
        if base(one.task) == task
    ]


def _groups(series: Done, label: str) -> list[str]:
    values = list(dict.fromkeys(v for _, task in series for v in task.items.labels[label]))
    order = CLASSES.index if label == "target" else (lambda text: int(text.split("-")[0]))
    return [f"{label}={text}" for text in sorted(values, key=order)]


def _lines(series: Done, label: str, title: str) -> Figure:
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    axes, shown = figure.subplots(), _groups(series, label)
    for n, (name, task) in enumerate(series):
        found = [(x, m) for x, group in enumerate(shown) if (m := task.find("token_nats", group))]
        places = np.array([x for x, _ in found]) + 0.08 * (n - (len(series) - 1) / 2)
        axes.errorbar(
            places,
            [m.value for _, m in found],
            [m.stderr or 0.0 for _, m in found],
            marker="o",
            linestyle="-" if label == "position" else "",
            color=COLOURS[n % len(COLOURS)],
            capsize=2,
            label=name,
        )
    axes.set_xticks(range(len(shown)), [plain(group) for group in shown])
    axes.set_title(f"{title} (lower is better)")
    axes.set_xlabel("tokens before" if label == "position" else "")
    axes.set_ylabel("nats per token ± 1 s.e.")
    figure.legend(loc="outside lower center", ncols=min(4, len(series)))
    return figure


def _table(named: Named, task: str) -> str:
    series, label = _series(named, task), task.rsplit("_", 1)[1]
    shown = _groups(series, label)

    def cell(one: TaskResult, group: str) -> str:
        metric = one.find("token_nats", group)
        return value(metric.value, metric.stderr) if metric else ""

    rows = [[name, *(cell(one, group) for group in shown)] for name, one in series]
    note = "shuffled, " if task.startswith(SHUFFLED) else ""
    return table([f"{note}{label}", *map(plain, shown)], rows)


def _adapted(named: Named) -> Sequence[Sequence[str]]:
    rows = []
    for name, result in named:
        for row in result.memorized:
            task = result.task(f"{row.task}+{row.mode}")
            if row.group != "all" or task is None or "adapt_flops_per_token" not in task.settings:
                continue
            low, high = row.low, row.high
            costs = [f"{task.settings[key]:,}" for key in ("adapt_flops_per_token", "adapt_state_bytes")]
            rows.append(
                [
                    *(name, row.task, row.mode, row.metric, f"{row.frozen:.3f}", f"{row.written:.3f}"),
                    value(row.difference, row.stderr),
                    "" if low is None or high is None else f"{low:+.3f} to {high:+.3f}",
                    *costs,
                    f"{task.settings['ms_per_token']:.3g}",
                    f"{row.n:,}",
                ]
            )
    return rows
