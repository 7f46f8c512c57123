"""Pictures of the suites: depth x length heat maps, loss by position, forgetting matrices, zero-shot bars."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from hope_eval.escape import printable
from hope_eval.report.plots import COLOURS, STYLE, WIDTH, save
from hope_eval.report.select import Named
from hope_eval.report.suites import base
from hope_eval.results import TaskResult
from hope_eval.tasks.needle import KINDS

Grid = Sequence[Sequence[float]]


def draw_all(named: Named, folder: Path) -> dict[str, str]:
    """Draw what the results allow: file names in `folder`, and what each shows."""
    made: dict[str, str] = {}
    with mpl.rc_context(STYLE):
        for name, result in named:
            needles = [task for task in result.tasks if base(task.task) in KINDS]
            if needles:
                file = f"needles_{name}.png"
                save(heat_maps(name, needles), folder / file)
                made[file] = f"{name}: needles found by depth and length"
            for task in (task for task in result.tasks if task.task.startswith("continual_")):
                file = f"{task.task}_{name}.png"
                save(matrix(name, task), folder / file)
                made[file] = f"{name}: {task.task}, R by stage and domain"
        if any(result.task("books_position") for _, result in named):
            save(positions(named), folder / "books.png")
            made["books.png"] = "Loss by position in whole texts, per run"
    return made


def heat_maps(name: str, tasks: Sequence[TaskResult]) -> Figure:
    """One map per task, depth down and length across."""
    figure = _figure(len(tasks), 2.6)
    for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        lengths = sorted({int(x) for x in task.items.labels["length"]})
        depths = sorted({float(x) for x in task.items.labels["depth"]})
        cells = [[_value(task, "needle_match", f"cell={x}@{d:g}") for x in lengths] for d in depths]
        _map(axes, cells, [_short(x) for x in lengths], [f"{d:g}" for d in depths], "viridis", (0.0, 1.0))
        axes.set(title=f"{task.task} ({name})", xlabel="tokens", ylabel="depth")
    return figure


def matrix(name: str, task: TaskResult) -> Figure:
    """R[i][j]: after stage i, on domain j."""
    metric = next(iter(task.items.scores))
    stages = list(dict.fromkeys(task.items.labels["stage"]))
    domains = list(dict.fromkeys(task.items.labels["domain"]))
    cells = [[_value(task, metric, f"cell={i}>{j}") for j in domains] for i in stages]
    rows = ["before", *(f"after {domain}" for domain in domains)]
    figure = _figure(1, 1.4 + 0.45 * len(rows))
    axes = figure.subplots()
    low = metric == "bits_per_byte"
    _map(
        axes,
        cells,
        list(map(printable, domains)),
        list(map(printable, rows)),
        "viridis_r" if low else "viridis",
        (float(np.min(cells)), float(np.max(cells))),
    )
    axes.set(title=f"{task.task} ({name}): {metric}")
    axes.tick_params(axis="x", labelrotation=30)
    return figure


def positions(named: Named) -> Figure:
    """Nats per token against position, one line per run."""
    figure = _figure(1, 3.6)
    axes = figure.subplots()
    for n, (name, result) in enumerate(named):
        task = result.task("books_position")
        if task is None:
            continue
        places = list(dict.fromkeys(task.items.labels["position"]))
        found = [(int(place.split("-")[0]), task.find("token_nats", f"position={place}")) for place in places]
        at = [max(1, start) for start, _ in found]
        y = [metric.value if metric else np.nan for _, metric in found]
        error = [metric.stderr or 0.0 if metric else 0.0 for _, metric in found]
        axes.errorbar(at, y, error, marker="o", color=COLOURS[n % len(COLOURS)], label=name, capsize=2)
    axes.set_xscale("symlog", base=2, linthresh=128)
    axes.set(title="Loss by position in whole texts", xlabel="tokens read before", ylabel="nats/token")
    axes.legend()
    return figure


def _map(
    axes: Any,
    cells: Grid,
    across: Sequence[str],
    down: Sequence[str],
    colours: str,
    bounds: tuple[float, float],
) -> None:
    values = np.array(cells)
    axes.imshow(values, aspect="auto", cmap=colours, vmin=bounds[0], vmax=bounds[1])
    axes.grid(visible=False)
    axes.set_xticks(range(len(across)), across)
    axes.set_yticks(range(len(down)), down)
    middle = (bounds[0] + bounds[1]) / 2
    for i, j in np.ndindex(values.shape):
        dark = (values[i, j] < middle) != colours.endswith("_r")
        axes.text(
            j, i, f"{values[i, j]:.2f}", ha="center", va="center", color="w" if dark else "k", fontsize=9
        )


def _value(task: TaskResult, metric: str, group: str) -> float:
    found = task.find(metric, group)
    return found.value if found else float("nan")


def _short(tokens: int) -> str:
    return f"{tokens // 1024}k" if tokens >= 1024 and tokens % 1024 == 0 else str(tokens)


def _figure(count: int, height: float) -> Figure:
    return Figure(figsize=(max(WIDTH, 3.2 * count), height), layout=ConstrainedLayoutEngine())
