"""The picture of a study: accuracy by length with chance, or one measure by arm."""

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from hope_eval.report.looks import COLOURS, STYLE, WIDTH, looks, save
from hope_eval.report.plots import turn_long_labels
from hope_eval.results import METRICS
from hope_study.report import streams
from hope_study.report.data import ArmResults, StudyResults, mean_error

LEAST = 0.1  # height of a picture by arm, in its unit


def draw(study: StudyResults, path: Path) -> bool:
    """Draw a study that has results; return whether it has."""
    if not study.lengths:
        return False
    with mpl.rc_context(STYLE):
        if study.definition.stream.domains:
            figure = streams.draw(study)
        else:
            figure = by_length(study) if len(study.lengths) > 1 else by_arm(study)
        save(figure, path)
    return True


def by_length(study: StudyResults) -> Figure:
    """Lines over tokens; bars are one standard error over seeds, small dots are seeds.

    Hollow and dashed: as long trained as the arm that costs are compared with.
    """
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    axes = figure.subplots()
    shown = [arm for arm in study.arms if arm.seeds]
    look = looks(arm.name for arm in study.arms)
    for place, arm in enumerate(shown):
        # A few per cent aside, so that equal values do not hide each other.
        shift = 1.03 ** (place - (len(shown) - 1) / 2)
        points = [
            (length, [v.value for v in arm.values(study.metric, length).values()]) for length in study.lengths
        ]
        points = [(length, values) for length, values in points if values]
        found = [mean_error(values) for _, values in points]
        colour, marker = look[arm.name]
        axes.errorbar(
            [length * shift for length, _ in points],
            [mean for mean, _ in found],
            yerr=[error or 0.0 for _, error in found],
            color=colour,
            marker=marker,
            capsize=3,
            label=f"{arm.name} ({len(arm.seeds)} seed{'s' if len(arm.seeds) > 1 else ''})",
        )
        dots = [(length * shift, value) for length, values in points for value in values]
        xs, ys = [x for x, _ in dots], [y for _, y in dots]
        axes.plot(xs, ys, ".", color=colour, alpha=0.4, markersize=5)
        timed = replace(arm, seeds=arm.timed)
        longer = [
            (length * shift, mean_error([v.value for v in values.values()])[0])
            for length in study.lengths
            if (values := timed.values(study.metric, length))
        ]
        if longer:
            label = f"{arm.name}, equal time"
            axes.plot(*zip(*longer, strict=True), "--", color=colour, marker=marker, mfc="white", label=label)
    if study.chances:
        axes.axhline(study.chances[0], color="black", linestyle="--", linewidth=1.2, label="chance")
    trained = study.arms[0].composed.config.length
    axes.axvline(trained, color="#888888", linestyle=":", linewidth=1.2, label="trained at")
    axes.set_xscale("log", base=2)
    axes.set_xticks(study.lengths, [str(length) for length in study.lengths])
    axes.minorticks_off()
    axes.set_xlabel("tokens of the sequence")
    axes.set_ylabel(_unit(study))
    if study.metric == "task_accuracy":
        axes.set_ylim(0, 1.03)
    axes.set_title(f"{study.name}: {study.definition.question}")
    longest = max(len(name) for name in axes.get_legend_handles_labels()[1])
    figure.legend(loc="outside lower center", ncols=4 if longest < 28 else 3)  # four long names would be cut
    return figure


def _unit(study: StudyResults) -> str:
    info = METRICS[study.metric]
    return f"{info.unit} ± 1 s.e. over seeds; {'lower' if info.lower_is_better else 'higher'} is better"


def _number(arm: ArmResults) -> float | None:
    """The number that an arm is named by."""
    found = re.findall(r"\d+(?:\.\d+)?", arm.name)
    return float(found[0]) if len(found) == 1 and re.search(r"^\d|_\d", arm.name) else None


def _places(arms: Sequence[ArmResults]) -> tuple[list[float], list[str]]:
    """Where arms stand, at least 1 apart, and their labels: on an axis of numbers where all are named by one."""
    numbers = [number for arm in arms if (number := _number(arm)) is not None]
    if len(numbers) < len(arms) or len(set(numbers)) < max(2, len(arms)):
        return [float(n) for n in range(len(arms))], [arm.name for arm in arms]
    logarithmic = min(numbers) > 0 and max(numbers) >= 8 * min(numbers)
    raw = [math.log2(number) if logarithmic else number for number in numbers]
    gap = min(b - a for a, b in itertools.pairwise(sorted(raw)))
    return [(x - min(raw)) / gap for x in raw], [f"{number:g}" for number in numbers]


def by_arm(study: StudyResults) -> Figure:
    """One place per arm: dots are seeds, the bar is the mean with its standard error, the line the first arm's mean.

    Hollow: as long trained as the arm that costs are compared with.
    """
    figure = Figure(figsize=(WIDTH, 3.9), layout="constrained")
    axes = figure.subplots()
    shown = sorted((arm for arm in study.arms if arm.seeds), key=lambda arm: _number(arm) or 0.0)
    length, (places, labels) = study.lengths[0], _places(shown)
    axes.set_xlim(-0.5, max(places) + 0.5)
    for place, arm in zip(places, shown, strict=True):
        values = [v.value for v in arm.values(study.metric, length).values()]
        if failed := sum(bool(t.failed) for t in arm.seeds.values()):
            text = f"{failed} of {len(arm.seeds)} diverged"
            at = (place, 0.02)
            axes.annotate(text, at, xycoords=("data", "axes fraction"), ha="center", va="bottom", fontsize=8)
        if not values:
            continue
        mean, error = mean_error(values)
        if arm is study.arms[0]:
            axes.axhline(mean, color="#888888", linestyle=":", linewidth=1.2, label=f"mean of {arm.name}")
        axes.plot([place] * len(values), values, ".", color=COLOURS[0], alpha=0.5)
        axes.errorbar([place + 0.12], [mean], yerr=[error or 0.0], color="black", marker="_", capsize=3)
        longer = [v.value for v in replace(arm, seeds=arm.timed).values(study.metric, length).values()]
        if longer:
            mean, error = mean_error(longer)
            axes.errorbar([place + 0.24], [mean], yerr=[error or 0.0], color=COLOURS[1], marker="o", mfc="white",
                          capsize=3, label="at equal time")  # fmt: skip
    axes.set_xticks(places, labels)
    # A difference of nothing must not fill the picture.
    low, high = axes.get_ylim()
    room = max(0.0, LEAST - (high - low)) / 2
    axes.set_ylim(low - room, high + room)
    turn_long_labels(axes)
    axes.set_ylabel(_unit(study))
    axes.set_title(f"{study.name}: {study.definition.question}")
    named = {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    axes.legend(named.values(), named.keys(), loc="best", fontsize=8)
    return figure
