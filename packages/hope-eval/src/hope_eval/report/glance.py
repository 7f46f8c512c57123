"""The first screen: models, and models with a baseline at test time, by quality and by what they cost.

Two pictures: cost against quality, and paired differences to the first run. Lower is better in both.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from hope_eval.report.looks import LEGEND, WIDTH, Looks, tip
from hope_eval.report.seeds import Seeds, interval
from hope_eval.report.select import Named, plain
from hope_eval.report.tables import table
from hope_eval.report.training import Curve
from hope_eval.report.verdicts import Compared, measured
from hope_eval.results import METRICS
from hope_eval.results.compare import Comparison
from hope_eval.results.names import PERPLEXITY as NAME
from hope_eval.results.statistics import Difference

# Column: task and group of bits per byte.
QUALITY = {
    "bits per byte": (NAME, "all"),
    "on new tokens": (f"{NAME}_source", "source=new"),
    "on repeated": (f"{NAME}_source", "source=repeated"),
}
BITS = "bits_per_byte"
TICKS = (1, 1.5, 2, 3, 5, 7)  # of a logarithmic axis, times powers of ten
BARS: dict[str, Any] = {"capsize": 2, "elinewidth": 1.2, "markersize": 7, "linestyle": ""}


@dataclass(frozen=True)
class Row:
    """A model, plain or adapted.

    Attributes:
        title: such as `titans + writes`.
        parameters: of the model.
        quality: bits per byte by column of `QUALITY`.
        flops: of one training; None without a log.
        seconds: of one training's steps, the processor's where they are known.
        ms: milliseconds for one token of text that is read, likewise.
    """

    title: str
    parameters: int
    quality: dict[str, Difference]
    flops: float | None
    seconds: float | None
    ms: float | None


def rows(named: Named, seeds: Seeds, curves: Sequence[Curve]) -> list[Row]:
    """Return a row for every run, and one for each of its adaptations that bits per byte were measured with."""
    listed = []
    for name, result in named:
        logs = [curve for curve in curves if curve.run == name]
        flops = [curve.flops for curve in logs if curve.flops is not None]
        for task in (one for one in result.tasks if one.task.split("+")[0] == NAME):
            suffix = task.task.removeprefix(NAME)
            quality = {
                column: estimate
                for column, (of, group) in QUALITY.items()
                if (estimate := interval(seeds[name], of + suffix, BITS, group))
            }
            listed.append(
                Row(
                    f"{name}{suffix.replace('+', ' + ').replace('_', ' ')}",
                    result.checkpoint.parameters,
                    quality,
                    fmean(flops) if flops else None,
                    fmean([curve.cost for curve in logs]) if logs else None,
                    task.ms_per_token if task.tokens else None,
                )
            )
    return listed


def summary(shown: Sequence[Row]) -> str:
    """The page's first table."""

    def bits(row: Row, column: str) -> str:
        estimate = row.quality.get(column)
        if estimate is None:
            return ""
        bounds = "" if estimate.low is None else f" ({estimate.low:.2f} to {estimate.high:.2f})"
        return f"{estimate.value:.3f}{bounds}"

    def cost(number: float | None, form: str) -> str:
        return "" if number is None else format(number, form)

    header = ["model", "parameters", *QUALITY, "training TFLOP", "training CPU s", "reading ms/token"]
    return table(
        header,
        [
            [
                row.title,
                f"{row.parameters / 1e6:.2f} M",
                *(bits(row, column) for column in QUALITY),
                cost(row.flops and row.flops / 1e12, ",.1f" if row.flops and row.flops >= 1e12 else ".2g"),
                cost(row.seconds, ",.0f"),
                cost(row.ms, ".2f"),
            ]
            for row in shown
        ],
    )


def cost(shown: Sequence[Row]) -> Figure | None:
    """Bits per byte against operations of training, and against time of reading; both axes of cost are logarithmic."""
    column = next(iter(QUALITY))
    known = [row for row in shown if column in row.quality]
    panels = {
        "training, TFLOP": [(row, row.flops / 1e12) for row in known if row.flops],
        "reading, ms per token": [(row, row.ms) for row in known if row.ms],
    }
    panels = {label: points for label, points in panels.items() if points}
    if not panels:
        return None
    look = Looks(row.title for row in shown)
    figure = Figure(figsize=(WIDTH, 4.4), layout=ConstrainedLayoutEngine(wspace=0.05))
    for axes, (label, points) in zip(
        figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels.items(), strict=True
    ):
        for n, (row, x) in enumerate(points):
            # Adaptations cost no training: a few per cent aside, else they would hide each other's intervals.
            estimate, aside = (
                row.quality[column],
                1.012 ** (n - len(points) / 2) if "training" in label else 1.0,
            )
            bar = axes.errorbar(
                [x * aside],
                [estimate.value],
                _errors([estimate]),
                label=row.title,
                **look.of(row.title),
                **BARS,
            )
            tip(bar.lines[0], f"{row.title}: {measured(estimate, sign='')} bits per byte, {label} {x:.3g}")
        axes.set_xscale("log")
        low, high = min(x for _, x in points) / 1.3, max(x for _, x in points) * 1.3
        axes.set_xlim(low, high)
        ticks = [x for power in range(-6, 13) for x in (m * 10.0**power for m in TICKS) if low <= x <= high]
        axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
        axes.minorticks_off()
        axes.grid(visible=True, axis="x")
        axes.set_xlabel(label)
    figure.axes[0].set_ylabel("bits per byte, 95 % interval")
    figure.suptitle("Cost against quality: lower and further left is better", x=0.01, ha="left", fontsize=12)
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, **LEGEND)
    return figure


def differences(first: str, compared: Compared) -> Figure | None:
    """The first run minus each other, with 95 % intervals: bits per byte by group, then accuracies that differ."""
    wide: dict[str, Callable[[Comparison], bool]] = {
        "bits per byte (left: {first} better)": lambda row: row.metric == BITS,
        "accuracy (right: {first} better)": lambda row: METRICS[row.metric].unit == "accuracy",
    }
    panels = []
    for title, chosen in wide.items():
        points = [
            (other, row)
            for other, of in compared
            for row in of
            if chosen(row) and row.difference.low is not None
        ]
        # Domains last.
        ordered = sorted(points, key=lambda point: point[1].group.startswith("domain="))
        labels = list(dict.fromkeys(_label(row.metric, row.group) for _, row in ordered))
        varied = {
            _label(row.metric, row.group) for _, row in points if row.difference.low != row.difference.high
        }
        if labels := [label for label in labels if label in varied]:
            panels.append((title.format(first=first), points, labels))
    if not panels:
        return None
    look = Looks(other for other, _ in compared)
    counts = [len(labels) for *_, labels in panels]
    figure = Figure(figsize=(WIDTH, 1.9 + 0.5 * max(counts)), layout=ConstrainedLayoutEngine(wspace=0.05))
    drawn = figure.subplots(1, len(panels), squeeze=False, width_ratios=[3, 2][: len(panels)])[0]
    named: dict[str, Any] = {}
    for axes, (title, points, labels) in zip(drawn, panels, strict=True):
        _forest(axes, points, labels, look, named)
        axes.set_title(title, fontsize=11)
    figure.suptitle(f"{first} minus each other run, 95 % intervals", x=0.01, ha="left", fontsize=12)
    figure.legend(list(named.values()), list(named), **LEGEND)
    return figure


def _forest(
    axes: Axes,
    points: Sequence[tuple[str, Comparison]],
    labels: Sequence[str],
    look: Looks,
    named: dict[str, Any],
) -> None:
    others = list(dict.fromkeys(other for other, _ in points))
    for other, row in points:
        label = _label(row.metric, row.group)
        if label not in labels:
            continue
        y = labels.index(label) + 0.75 * ((others.index(other) + 0.5) / len(others) - 0.5)
        bar = axes.errorbar(
            [row.difference.value],
            [y],
            xerr=_errors([row.difference]),
            **look.of(other),
            **{**BARS, "markersize": 5},
        )
        tip(bar.lines[0], f"{label}, minus {other}: {measured(row.difference)}")
        named.setdefault(other, bar)
    axes.axvline(0, color="black", linewidth=1)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    for place in range(1, len(labels)):
        axes.axhline(place - 0.5, color="#E3E3E3", linewidth=0.8)
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x")
    axes.tick_params(axis="y", length=0)


def _label(metric: str, group: str) -> str:
    if metric != BITS:
        return METRICS[metric].title.replace(" ", "\n", 1)
    return "all text" if group == "all" else plain(group)


def _errors(estimates: Sequence[Difference]) -> np.ndarray | None:
    """Half widths, down and up, as errorbar takes them; None where there are none."""
    if any(one.low is None or one.high is None for one in estimates):
        return None
    return np.array([[one.value - one.low, one.high - one.value] for one in estimates]).T  # type: ignore[operator]
