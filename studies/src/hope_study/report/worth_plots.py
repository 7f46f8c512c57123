"""The pictures of what a memory is worth: bits per byte by training FLOPs, leads by tokens, loss by class of target."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hope_eval.report.looks import COLOURS, STYLE, WIDTH, looks, save
from hope_eval.results.names import CLASSES
from hope_study.measure import PLAIN
from hope_study.report import worth
from hope_study.report.data import ArmResults, StudyResults


def draw(studies: Sequence[StudyResults], folder: Path) -> None:
    """Draw loss by class of target of the longest training, and for the overview bits per byte by training FLOPs."""
    with mpl.rc_context(STYLE):
        save(by_flops(studies), folder / "worth.png")
        save(by_class(worth.longest(studies)), folder / "worth_by_class.png")


def by_flops(studies: Sequence[StudyResults]) -> Figure:
    """Two panels, plain and with a neural cache; then the lead by training tokens, of every pair of `BASES`."""
    known = worth.equal_tokens(studies)
    figure = Figure(figsize=(WIDTH * 1.5, 4.4 * (1 + bool(known))), layout="constrained")
    leads = "cdefgh"[: len(known)]
    above = "".join(name * max(len(known), 1) for name in "ab")
    below = "".join(name * 2 for name in leads)
    drawn = figure.subplot_mosaic(f"{above};{below}" if below else above)
    panels = [drawn[name] for name in f"ab{leads}"]
    panels[1].sharey(panels[0])
    names = list(dict.fromkeys(arm.name for study in studies for arm in study.arms if arm.seeds))
    for axes, condition in zip(panels, (PLAIN, worth.CACHE), strict=False):
        for name, look in looks(names).items():
            _line(axes, [arm for study in studies for arm in study.arms if arm.name == name], condition, look)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:e}"[0] in "235" else "")  # others touch
        axes.set_title(worth.NAMES.get(condition, "plain"))
        axes.set_xlabel("training, TFLOP")
    panels[0].set_ylabel("bits per byte (lower is better)")
    for axes, budgets in zip(panels[2:], known, strict=True):
        axes.sharey(panels[2])  # before it is drawn: limits hold all
        _draw_leads(axes, budgets)
    if trained := [worth.tokens(budget.study) / 1e6 for budgets in known for budget in budgets]:
        for axes in panels[2:]:
            axes.set_xlim(min(trained) * 0.87, max(trained) * 1.25)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def _draw_leads(axes: Axes, budgets: Sequence[worth.Budget]) -> None:
    labels = ("plain", "both + neural cache", "against baseline + writes")
    for n, label in enumerate(labels):
        leads = [(worth.tokens(b.study) / 1e6 * 1.04**n, worth.rule(b.ours, b.theirs)[n]) for b in budgets]
        points = [(tokens, lead) for tokens, lead in leads if lead]
        axes.errorbar(
            [tokens for tokens, _ in points],
            [lead.value for _, lead in points],
            yerr=[nan if lead.high is None else lead.high - lead.value for _, lead in points],
            color=("black", "dimgrey", "darkgrey")[n],  # colours are those of models
            linestyle=("-", "--", ":")[n],
            marker="DX*"[n],
            capsize=3,
            label=label,
        )
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xticks(
        [worth.tokens(b.study) / 1e6 for b in budgets], [worth.millions(b.study) for b in budgets]
    )
    axes.minorticks_off()
    title = f"{budgets[0].ours.name} minus {budgets[0].theirs.name}"
    axes.set(title=title, xlabel="training, tokens", ylabel="bits per byte (below 0: better)")
    axes.legend(fontsize=8)


def _line(axes: Axes, arms: Sequence[ArmResults], condition: str, look: tuple[str, str]) -> None:
    found = [(arm, value) for arm in arms if arm.seeds and (value := worth.estimate(arm, condition))]
    # A training that several studies share is one point.
    points = sorted({next(iter(arm.seeds.values())).flops / 1e12: value for arm, value in found}.items())
    if not points:
        return
    axes.errorbar(
        [flops for flops, _ in points],
        [value.value for _, value in points],
        yerr=[nan if value.high is None else value.high - value.value for _, value in points],
        color=look[0],
        marker=look[1],
        capsize=3,
        label=found[0][0].name,
    )


def by_class(study: StudyResults) -> Figure:
    """A panel a class: nats a token of every model, plain, under each adaptation, and with its memory off."""
    arms = [arm for arm in study.arms if arm.seeds]
    shown = {PLAIN: "o", worth.CACHE: "s", worth.WRITES: "^", worth.DYNAMIC: "D", worth.OFF: "x"}
    figure = Figure(figsize=(WIDTH * 1.25, 0.34 * len(arms) + 2.4), layout="constrained")
    figure.suptitle(
        f"Loss by what the window has shown of a token, after {worth.millions(study)} tokens; means of seeds"
    )
    panels = figure.subplots(1, len(CLASSES), sharey=True)
    for axes, label in zip(panels, CLASSES, strict=True):
        for n, (condition, marker) in enumerate(shown.items()):
            points = [
                (worth.mean(arm, "token_nats", f"{condition}/target={label}"), -k)
                for k, arm in enumerate(arms)
            ]
            known = [(x, y) for x, y in points if x is not None]
            axes.plot([x for x, _ in known], [y for _, y in known], marker, color=COLOURS[n], linestyle="")
        axes.set_title(f"target {label}" if label == CLASSES[0] else label)
        axes.set_xlabel("nats a token")
        axes.grid(axis="y", alpha=0.3)
    panels[0].set_yticks([-k for k in range(len(arms))], [arm.name for arm in arms])
    handles = [
        Line2D(
            [], [], marker=marker, color=COLOURS[n], linestyle="", label=worth.NAMES.get(condition, "plain")
        )
        for n, (condition, marker) in enumerate(shown.items())
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure
