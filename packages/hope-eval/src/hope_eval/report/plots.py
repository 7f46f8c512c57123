"""The report's own pictures: cost against quality, differences, and the loss while training."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from hope_eval.report import glance
from hope_eval.report.inside import inside
from hope_eval.report.looks import LEGEND, STYLE, WIDTH, looks, save, tip
from hope_eval.report.training import Curve
from hope_eval.report.verdicts import Compared

CUT = 0.15  # share of a training whose losses, far above the rest, do not decide the axis


def draw_all(
    first: str, shown: Sequence[glance.Row], compared: Compared, curves: Sequence[Curve], folder: Path
) -> list[str]:
    """Draw every plot that the data allows.

    Returns:
        File names in `folder`, in the report's order.
    """
    look = looks([row.title.split(" + ")[0] for row in shown] + [curve.run for curve in curves])
    drawings: dict[str, Callable[[], Figure | None]] = {
        "cost.png": lambda: glance.cost(shown),
        "differences.png": lambda: glance.differences(first, compared),
        "loss.png": lambda: loss(curves, look),
        "inside.png": lambda: inside(list({c.run: c for c in reversed(curves)}.values())[::-1], look),
    }
    written = []
    with mpl.rc_context(STYLE):
        for name, draw in drawings.items():
            figure = draw()
            if figure is not None:
                save(figure, folder / name)
                written.append(name)
    return written


def loss(curves: Sequence[Curve], look: Mapping[str, tuple[str, str]]) -> Figure | None:
    """Training loss (smoothed) and validation, by tokens and by seconds: mean and range of the seeds."""
    if not curves:
        return None
    figure = Figure(figsize=(WIDTH, 3.9), layout=ConstrainedLayoutEngine(wspace=0.06))
    left, right = figure.subplots(1, 2, sharey=True)
    runs = {
        run: [curve for curve in curves if curve.run == run] for run in dict.fromkeys(c.run for c in curves)
    }
    for axes, label in ((left, "million tokens"), (right, "seconds of the steps")):
        for run, of in runs.items():
            _seeds(axes, run, of, look[run], by_tokens=axes is left)
        axes.set_xlabel(label)
        axes.set_xlim(left=0)
    left.set_ylim(_bounds(curves))
    left.set_ylabel("nats per token")
    left.set_title("Loss by tokens (lower is better; axis cut)")
    right.set_title("Loss by time")
    left.plot([], [], "o", color="#666666", label="validation")
    figure.legend(*left.get_legend_handles_labels(), **LEGEND)
    return figure


def _seeds(axes: Axes, run: str, curves: Sequence[Curve], look: tuple[str, str], *, by_tokens: bool) -> None:
    colour, marker = look
    rows = min(len(curve.loss) for curve in curves)
    # Seconds as `cost` counts them, which on CPUs is the processor's time.
    speed = [curve.cost / curve.seconds[-1] for curve in curves]
    x = np.mean(
        [
            np.array(curve.tokens[:rows] if by_tokens else curve.seconds[:rows]) * (1.0 if by_tokens else one)
            for curve, one in zip(curves, speed, strict=True)
        ],
        0,
    )
    y_SN = np.array([smooth(curve.loss)[:rows] for curve in curves])
    scale = 1e-6 if by_tokens else 1.0
    axes.fill_between(x * scale, y_SN.min(0), y_SN.max(0), color=colour, alpha=0.2, linewidth=0)
    (line,) = axes.plot(x * scale, y_SN.mean(0), color=colour, linewidth=1.8, label=run)
    tip(
        line,
        f"{run}: {y_SN.mean(0)[-1]:.3f} nats at the end, seeds {y_SN.min(0)[-1]:.3f} to {y_SN.max(0)[-1]:.3f}",
    )
    for points in zip(*(curve.validation for curve in curves), strict=False):
        tokens, seconds, nats = np.mean(points, 0)
        at = tokens * scale if by_tokens else seconds * float(np.mean(speed))
        (point,) = axes.plot([at], [nats], marker, color=colour, markeredgecolor="white")
        tip(point, f"{run}, validation after {tokens:,.0f} tokens: {nats:.3f} nats")


def _bounds(curves: Sequence[Curve]) -> tuple[float, float]:
    """The axis without the steep beginning."""
    late = [
        y for c in curves for x, y in zip(c.tokens, smooth(c.loss), strict=True) if x > CUT * c.tokens[-1]
    ]
    late += [nats for curve in curves for _, _, nats in curve.validation]
    room = 0.05 * (max(late) - min(late)) + 1e-3
    return min(late) - room, max(late) + room


def smooth(values: Sequence[float]) -> list[float]:
    """Exponential mean with a memory of a twentieth of the run, without bias at its start."""
    keep = 1 - 1 / max(1.0, len(values) / 20)
    mean = weight = 0.0
    smoothed = []
    for value in values:
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + 1 - keep
        smoothed.append(mean / weight)
    return smoothed


def turn_long_labels(axes: Axes) -> None:
    """Labels of places along x that would meet are turned."""
    labels = [text.get_text() for text in axes.get_xticklabels()]
    if max(map(len, labels)) * len(labels) > 90:
        axes.tick_params(axis="x", labelrotation=30)
        for text in axes.get_xticklabels():
            text.set_horizontalalignment("right")
