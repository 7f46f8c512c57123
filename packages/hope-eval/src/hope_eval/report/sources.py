"""Sections and pictures of where the loss comes from, and of adaptation at test time."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from hope_eval.report.looks import LEGEND, STYLE, WIDTH, Looks, save, tip
from hope_eval.report.select import Done, Named, plain
from hope_eval.report.suites import base
from hope_eval.report.tables import table
from hope_eval.results import TaskResult, value
from hope_eval.results.names import CLASSES, SHUFFLED
from hope_eval.results.names import PERPLEXITY as NAME

SOURCES = """\
Nats per token, by the token's place in its window and by what its window has shown of it before: nothing (`new`),
the token (`seen`), it after its predecessor (`bigram seen`), it after its two predecessors (`trigram seen`).
`shuffled`: the control, with blocks of tokens in places of other documents."""
ADAPTED = """\
The same items read by the model alone and with an adaptation at test time; 95 % bootstrap intervals, paired.
Operations per token and bytes of a sequence's state are what the adaptation adds."""
FILES = {NAME: "sources.png", SHUFFLED: "sources_shuffled.png"}
TITLES = {"position": "Loss by position in the window", "target": "Loss by class of target"}


def draw_all(named: Named, folder: Path) -> dict[str, str]:
    """Draw what the results allow: file names in `folder`, and what each shows."""
    captions = {}
    with mpl.rc_context(STYLE):
        for task, file in FILES.items():
            panels = {label: series for label in TITLES if (series := _series(named, f"{task}_{label}"))}
            if panels:
                save(_lines(panels, "shuffled" if task == SHUFFLED else ""), folder / file)
                note = ", blocks shuffled between documents" if task == SHUFFLED else ""
                captions[file] = (
                    f"Loss by position in the window and by class of target{note}, per run and adaptation"
                )
    return captions


def sections(named: Named, pictures: dict[str, str]) -> list[str]:
    """Markdown; `pictures` is Markdown by file name."""
    parts = []
    tasks = [f"{task}_{label}" for task in (NAME, SHUFFLED) for label in TITLES]
    shown = [task for task in tasks if _series(named, task)]
    if shown:
        parts += ["## Where the loss comes from", SOURCES]
        for task in shown:
            parts.append(_table(named, task))
        parts += [pictures[file] for file in FILES.values() if file in pictures]
    if rows := _adapted(named):
        header = ["run", "task", "adaptation", "metric", "plain", "adapted", "difference", "95 % interval"]
        header += ["operations/token", "bytes", "ms/token", "n"]
        parts += ["## Adaptation at test time", ADAPTED, table(header, rows)]
    return parts


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


def _lines(panels: dict[str, Done], note: str) -> Figure:
    """Nats per token: a line a run by position, on a logarithmic axis, and points by class of target."""
    figure = Figure(figsize=(WIDTH, 4.6), layout=ConstrainedLayoutEngine(wspace=0.06))
    look = Looks(name for series in panels.values() for name, _ in series)
    for axes, (label, series) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        shown = _groups(series, label)
        position = label == "position"
        # The middle of a bucket; numbers stand on a numeric axis.
        places = [2**0.5 * max(16, _start(group)) if position else n for n, group in enumerate(shown)]
        for n, (name, task) in enumerate(series):
            points = [
                (x, g, m) for x, g in zip(places, shown, strict=True) if (m := task.find("token_nats", g))
            ]
            aside = 0.7 * ((n + 0.5) / len(series) - 0.5)
            xs = [x if position else x + aside for x, *_ in points]
            if position:
                axes.plot(xs, [m.value for *_, m in points], color=look.of(name)["color"], linewidth=1)
            for x, (_, group, m) in zip(xs, points, strict=True):
                style = {**look.of(name), "markersize": 5, "capsize": 2, "linestyle": "", "label": name}
                bar = axes.errorbar([x], [m.value], [m.stderr or 0.0], **style)
                tip(bar.lines[0], f"{name}, {plain(group)}: {value(m.value, m.stderr)} nats per token")
        if position:
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        else:
            axes.set_xticks(places, [plain(group) for group in shown], fontsize=10)
        axes.set_title(TITLES[label], fontsize=11)
        axes.set_xlabel("tokens before" if position else "")
    figure.axes[0].set_ylabel("nats per token ± 1 s.e.")
    title = "Where the loss comes from (lower is better)" + (f", {note}" if note else "")
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    handles, names = figure.axes[0].get_legend_handles_labels()
    named = dict(zip(names, handles, strict=True))
    figure.legend(named.values(), named.keys(), **LEGEND)
    return figure


def _start(group: str) -> int:
    """First place of a bucket such as `position=32-63`."""
    return int(plain(group).split("-")[0])


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
