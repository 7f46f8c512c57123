"""Pictures of the suites: depth x length heat maps, loss by position, forgetting matrices."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from hope_eval.escape import printable
from hope_eval.report.looks import LEGEND, STYLE, WIDTH, Looks, ink, save, tip
from hope_eval.report.select import Named
from hope_eval.report.suites import base
from hope_eval.results import TaskResult
from hope_eval.results.names import NEEDLES

Grid = Sequence[Sequence[float]]


def draw_all(named: Named, folder: Path) -> dict[str, str]:
    """Draw what the results allow: file names in `folder`, and what each shows."""
    captions: dict[str, str] = {}
    with mpl.rc_context(STYLE):
        if maps := _needles(named):
            save(heat_maps(maps), folder / "needles.png")
            captions["needles.png"] = (
                "Hidden values found, by their depth and the length of the text, per run"
            )
        for name, result in named:
            for task in (task for task in result.tasks if task.task.startswith("continual_")):
                file = f"{task.task}_{name}.png"
                save(matrix(name, task), folder / file)
                captions[file] = f"{name}: {task.task}, R by stage and domain"
        if any(result.task("books_position") for _, result in named):
            save(positions(named), folder / "books.png")
            captions["books.png"] = "Loss by position in whole texts, per run"
    return captions


def _needles(named: Named) -> dict[str, list[tuple[str, TaskResult, str]]]:
    """By task: runs whose results hold a value other than that of all cells."""
    maps: dict[str, list[tuple[str, TaskResult, str]]] = {}
    for name, result in named:
        for task in result.tasks:
            metric = "passkey_choice" if base(task.task) == "passkey" else "needle_match"
            if base(task.task).startswith((NEEDLES, "passkey")) and metric in task.items.scores:
                maps.setdefault(task.task, []).append((name, task, metric))
    return {
        task: of
        for task, of in maps.items()
        if len({x for _, one, key in of for x in one.items.scores[key]}) > 1
    }


def heat_maps(maps: dict[str, list[tuple[str, TaskResult, str]]]) -> Figure:
    """A row per task, a map per run: depth down, length across, the share that was found in every cell."""
    across = max(map(len, maps.values()))
    size = (max(WIDTH, 2.3 * across), 0.4 + 2.4 * len(maps))
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(wspace=0.03))
    panels = figure.subplots(len(maps), across, squeeze=False)
    for row, (title, of) in zip(panels, maps.items(), strict=True):
        for axes in row[len(of) :]:
            axes.set_axis_off()
        for axes, (name, task, metric) in zip(row, of, strict=False):
            labels = task.items.labels
            lengths, depths = (
                sorted(set(map(int, labels["length"]))),
                sorted(set(map(float, labels["depth"]))),
            )
            cells = np.zeros((len(depths), len(lengths), 2))
            for length, depth, hit, weight in zip(
                labels["length"], labels["depth"], task.items.scores[metric], task.items.weight, strict=True
            ):
                cells[depths.index(float(depth)), lengths.index(int(length))] += hit, weight
            share = np.divide(
                cells[..., 0], cells[..., 1], where=cells[..., 1] > 0, out=np.full(cells.shape[:2], np.nan)
            )
            shown = [_short(x) for x in lengths], [f"{d:g}" for d in depths]
            _map(axes, share.tolist(), *shown, "viridis", (0.0, 1.0), f"{name}, {title}")
            axes.set_title(name, fontsize=11)
            axes.set_xlabel("tokens")
        row[0].set_ylabel(f"{title}\ndepth of the needle")
    figure.suptitle("Share of hidden values found (higher is better)", x=0.01, ha="left", fontsize=12)
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
    look = Looks(name for name, _ in named)
    for name, result in named:
        task = result.task("books_position")
        if task is None:
            continue
        places = list(dict.fromkeys(task.items.labels["position"]))
        metrics = [
            (int(place.split("-")[0]), task.find("token_nats", f"position={place}")) for place in places
        ]
        at = [max(1, start) for start, _ in metrics]
        y = [metric.value if metric else np.nan for _, metric in metrics]
        error = [metric.stderr or 0.0 if metric else 0.0 for _, metric in metrics]
        bar = axes.errorbar(at, y, error, **look.of(name), label=name, capsize=2)
        tip(bar.lines[0], f"{name}: {y[0]:.3f} nats per token at the beginning, {y[-1]:.3f} at the end")
    axes.set_xscale("symlog", base=2, linthresh=128)
    axes.set(
        title="Loss by position in whole texts (lower is better)",
        xlabel="tokens read before",
        ylabel="nats/token",
    )
    figure.legend(**LEGEND)
    return figure


def _map(
    axes: Any,
    cells: Grid,
    across: Sequence[str],
    down: Sequence[str],
    colours: str,
    bounds: tuple[float, float],
    title: str = "",
) -> None:
    values = np.array(cells)
    image = axes.imshow(values, aspect="auto", cmap=colours, vmin=bounds[0], vmax=bounds[1])
    axes.grid(visible=False)
    axes.set_xticks(range(len(across)), across)
    axes.set_yticks(range(len(down)), down)
    for i, j in np.ndindex(values.shape):
        colour = ink(image.to_rgba(values[i, j])[:3])
        text = axes.text(j, i, f"{values[i, j]:.2f}", ha="center", va="center", color=colour, fontsize=9)
        tip(text, f"{title}: {down[i]}, {across[j]}: {values[i, j]:.3f}")


def _value(task: TaskResult, metric: str, group: str) -> float:
    number = task.find(metric, group)
    return number.value if number else float("nan")


def _short(tokens: int) -> str:
    return f"{tokens // 1024}k" if tokens >= 1024 and tokens % 1024 == 0 else str(tokens)


def _figure(count: int, height: float) -> Figure:
    return Figure(figsize=(max(WIDTH, 3.2 * count), height), layout=ConstrainedLayoutEngine())
