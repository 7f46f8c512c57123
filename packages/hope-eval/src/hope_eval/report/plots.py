"""The report's pictures. Same numbers, same bytes: no dates, no software names in the files."""

from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from hope_data.publishing import write_atomic
from hope_eval.report.inside import inside
from hope_eval.report.select import Done, Named, any_of, done, groups, plain
from hope_eval.report.training import Curve
from hope_eval.results import Metric

# Okabe and Ito (2008): told apart with every kind of colour vision.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#E3E3E3",
    "legend.frameon": False,
    "legend.fontsize": 10,
    # A dollar in a name is no mathematics.
    "text.parse_math": False,
}
WIDTH, DPI = 9.0, 110


def draw_all(results: Named, curves: Sequence[Curve], folder: Path) -> list[str]:
    """Draw every plot that the data allows.

    Returns:
        File names in `folder`, in the report's order.
    """
    names = [name for name, _ in results] + [curve.run for curve in curves]
    colour = {name: COLOURS[n % len(COLOURS)] for n, name in enumerate(dict.fromkeys(names))}
    drawings: dict[str, Callable[[], Figure | None]] = {
        "loss.png": lambda: loss(curves, colour),
        "inside.png": lambda: inside(list({c.run: c for c in reversed(curves)}.values())[::-1], colour),
        "perplexity.png": lambda: bits_per_byte(results, colour),
        "choice.png": lambda: choice(results, colour),
        "passkey.png": lambda: passkey(results, colour),
    }
    written = []
    with mpl.rc_context(STYLE):
        for name, draw in drawings.items():
            figure = draw()
            if figure is not None:
                save(figure, folder / name)
                written.append(name)
    return written


def loss(curves: Sequence[Curve], colour: dict[str, str]) -> Figure | None:
    """Training loss (smoothed) and validation points, by tokens and by seconds."""
    if not curves:
        return None
    figure = Figure(figsize=(WIDTH, 3.8), layout=ConstrainedLayoutEngine(wspace=0.06))
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, label in ((left, "million tokens"), (right, "seconds of training")):
        for curve in curves:
            x = np.array(curve.tokens) / 1e6 if axes is left else np.array(curve.seconds)
            axes.plot(x, curve.loss, color=colour[curve.run], alpha=0.25, linewidth=0.8)
            known = curve.run in axes.get_legend_handles_labels()[1]
            axes.plot(
                x,
                smooth(curve.loss),
                color=colour[curve.run],
                linewidth=1.8,
                label=None if known else curve.run,
            )
            points = [(tokens / 1e6 if axes is left else at, nats) for tokens, at, nats in curve.validation]
            if points:
                axes.plot(*zip(*points, strict=True), "o", color=colour[curve.run], markeredgecolor="white")
        axes.set_xlabel(label)
        axes.set_xlim(left=0)
    left.set_ylabel("nats per token")
    left.set_title("Loss by tokens")
    right.set_title("Loss by time")
    left.plot([], [], "o", color="#666666", label="validation")
    right.legend(*left.get_legend_handles_labels(), loc="upper right")
    return figure


def smooth(values: Sequence[float]) -> list[float]:
    """Exponential mean with a memory of a twentieth of the run, without bias at its start."""
    keep = 1 - 1 / max(1.0, len(values) / 20)
    mean = weight = 0.0
    smoothed = []
    for value in values:
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + 1 - keep
        smoothed.append(mean / weight)
    return smoothed


def bits_per_byte(results: Named, colour: dict[str, str]) -> Figure | None:
    """Bars per domain and run; a line per domain shows the unigram model."""
    runs = done(results, "perplexity")
    if not runs:
        return None
    figure = Figure(figsize=(WIDTH, 3.9), layout="constrained")
    axes = figure.subplots()
    shown = groups(runs, "domain")
    _bars(axes, runs, colour, "bits_per_byte", shown)
    places = np.arange(len(shown))
    unigram = [m.value if (m := any_of(runs, "unigram_bits_per_byte", g)) else np.nan for g in shown]
    axes.hlines(unigram, places - 0.44, places + 0.44, color="black", linestyle="--", label="unigram")
    axes.set_title("Bits per byte of held-out documents (lower is better)")
    axes.set_ylabel("bits per byte ± 1 s.e.")
    _legend(figure, axes)
    return figure


def choice(results: Named, colour: dict[str, str]) -> Figure | None:
    """Accuracy of continuation choice per domain and run, with chance."""
    runs = done(results, "choice")
    if not runs:
        return None
    figure = Figure(figsize=(WIDTH, 6.2), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True, sharey=True)
    titles = {"choice_accuracy": "gains most from the prefix", "choice_likelihood": "is most likely"}
    for axes, (name, title) in zip(panels, titles.items(), strict=True):
        _bars(axes, runs, colour, name, groups(runs, "domain"))
        _chance(axes, any_of(runs, name, "all"))
        axes.set_ylabel("accuracy ± 1 s.e.")
        axes.set_title(f"Continuation among four: the one that {title} (higher is better)")
    panels[0].set_ylim(0, min(1.0, panels[0].get_ylim()[1]))
    _legend(figure, panels[1])
    return figure


def passkey(results: Named, colour: dict[str, str]) -> Figure | None:
    """Passkey retrieval by length, among candidates and by generation."""
    runs = done(results, "passkey")
    if not runs:
        return None
    figure = Figure(figsize=(WIDTH, 3.9), layout=ConstrainedLayoutEngine(wspace=0.06))
    panels = figure.subplots(1, 2, sharey=True)
    titles = {"passkey_choice": "Passkey chosen among candidates", "passkey_exact": "Passkey written out"}
    for axes, (name, title) in zip(panels, titles.items(), strict=True):
        _bars(axes, runs, colour, name, groups(runs, "length"))
        _chance(axes, any_of(runs, name, "all"))
        axes.set_xlabel("tokens of the prompt")
        axes.set_ylim(0, 1)
        axes.set_title(title)
        if not any(m.value for _, task in runs if (m := task.find(name))):
            axes.text(0.5, 0.5, "none", color="#666666", ha="center", transform=axes.transAxes)
    panels[0].set_ylabel("accuracy ± 1 s.e.")
    _legend(figure, panels[0])
    return figure


def _bars(axes: Axes, runs: Done, colour: dict[str, str], name: str, shown: Sequence[str]) -> None:
    """One bar per group and run, with one standard error up and down."""
    width = 0.8 / len(runs)
    for n, (run, task) in enumerate(runs):
        found = [(place, m) for place, group in enumerate(shown) if (m := task.find(name, group))]
        axes.bar(
            [place - 0.4 + (n + 0.5) * width for place, _ in found],
            [m.value for _, m in found],
            width * 0.92,
            yerr=[m.stderr or 0.0 for _, m in found],
            color=colour[run],
            error_kw={"elinewidth": 1.2, "capsize": 2, "ecolor": "#333333"},
            label=run,
        )
    axes.set_xticks(range(len(shown)), [plain(group) for group in shown])
    axes.tick_params(axis="x", length=0)


def _chance(axes: Axes, metric: Metric | None) -> None:
    if metric and metric.chance is not None:
        axes.axhline(metric.chance, color="black", linestyle="--", linewidth=1.2, label="chance")


def turn_long_labels(axes: Axes) -> None:
    """Labels of places along x that would meet are turned."""
    labels = [text.get_text() for text in axes.get_xticklabels()]
    if max(map(len, labels)) * len(labels) > 90:
        axes.tick_params(axis="x", labelrotation=30)
        for text in axes.get_xticklabels():
            text.set_horizontalalignment("right")


def _legend(figure: Figure, axes: Axes) -> None:
    """Names of the runs below the figure."""
    turn_long_labels(axes)
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(6, len(names)))


def save(figure: Figure, path: Path) -> None:
    """Write a picture without anything that changes from day to day."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    write_atomic(path, buffer.getvalue())
