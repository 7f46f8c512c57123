"""What went on inside during training: gradients, updates, and the memories' own learning, from the trainer's log."""

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from hope_eval.report.looks import LEGEND
from hope_eval.report.training import Curve

# Title, and whether its axis is logarithmic; a panel shows every key of the log that begins with the name.
PANELS = {
    "grad_norm": ("Gradient norm before clipping", True),
    "update_rms_": ("Update rms by optimiser", True),
    "teach_norm": ("Teach signal's norm per token", False),
    "gate_hit_rate_": ("Gate hit rate per CMS level", False),
    "eta": ("Mean inner learning rate η", False),
    "alpha": ("Mean retention α", False),
    "memory_norm": ("Norm of the fast weights", False),
    "delta_norm_": ("Norm of the CMS deltas per level", False),
}
LINES = ("-", "--", ":", "-.")
COLUMNS, WIDTH, ROW = 2, 9.0, 2.1


def inside(curves: Sequence[Curve], look: Mapping[str, tuple[str, str]]) -> Figure | None:
    """One panel per quantity that any log holds and that is not constant, by tokens; None where there is none."""
    shown = [name for name in PANELS if _varies(curves, name)]
    if not shown:
        return None
    rows = -(-len(shown) // COLUMNS)
    figure = Figure(figsize=(WIDTH, ROW * rows + 0.5), layout="constrained")
    panels = figure.subplots(rows, COLUMNS, squeeze=False, sharex=True).flatten()
    labels: dict[str, Line2D] = {}
    for axes, name in zip(panels, shown, strict=False):
        labels |= _panel(axes, name, curves, look)
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    for axes in panels[-COLUMNS:]:
        axes.set_xlabel("million tokens")
        axes.locator_params(axis="x", nbins=5)
    figure.legend(list(labels.values()), list(labels), **LEGEND)
    return figure


def _panel(
    axes: Axes, name: str, curves: Sequence[Curve], look: Mapping[str, tuple[str, str]]
) -> dict[str, Line2D]:
    """One quantity; returns a line of each run for the legend."""
    title, logarithmic = PANELS[name]
    axes.set_title(title, fontsize=10)
    if logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda x, _: f"{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    if name == "gate_hit_rate_":
        axes.set_ylim(0, 1.05)
    lines: dict[str, Line2D] = {}
    for curve in curves:
        for number, key in enumerate(_keys(curve, name)):
            points = [
                (row["tokens"] / 1e6, row[key]) for row in curve.rows if math.isfinite(row.get(key, math.nan))
            ] or [(math.nan, math.nan)]
            style = LINES[number % len(LINES)]
            (line,) = axes.plot(*zip(*points, strict=True), style, color=look[curve.run][0], linewidth=1.4)
            lines.setdefault(curve.run, line)
    if name.endswith("_"):
        most: list[str] = max((_keys(curve, name) for curve in curves), key=len)
        for number, key in enumerate(most):
            style = LINES[number % len(LINES)]
            axes.plot([], [], style, color="#666666", label=key.removeprefix(name))
        axes.legend(fontsize=8)
    return lines


def _varies(curves: Sequence[Curve], name: str) -> bool:
    """Whether a quantity changes while training, in any run."""
    series = (
        [row[key] for row in curve.rows if key in row] for curve in curves for key in _keys(curve, name)
    )
    return any(max(values) - min(values) > 1e-3 * abs(max(values)) for values in series)


def _keys(curve: Curve, name: str) -> list[str]:
    keys = {
        key for row in curve.rows for key in row if key == name or (name[-1] == "_" and key.startswith(name))
    }
    return sorted(keys)
