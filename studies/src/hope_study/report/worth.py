"""What a memory is worth beside what could be had without training it: models x adaptations at test time.

For studies that measure `adapt`. Intervals cross seeds and documents (`hope_eval.results.statistics.crossed`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hope_eval.report.looks import COLOURS, STYLE, WIDTH, looks, save
from hope_eval.results.names import CLASSES
from hope_eval.results.statistics import Difference, crossed
from hope_model import counting
from hope_study.measure import PLAIN
from hope_study.records import Record
from hope_study.report.data import ArmResults, StudyResults

CACHE, WRITES, OFF = "neural_cache", "writes", "off"
NAMES = {
    CACHE: "+ neural cache",
    WRITES: "+ writes at test time",
    "dynamic": "+ dynamic evaluation",
    OFF: "memory off",
}
RULE = """\
A claim that trained writes help needs both comparisons of a row: with a neural cache on both sides, and against the
baseline that only writes at test time, untrained. Differences are in bits per byte, below zero is better. Their 95 %
intervals cross seeds and documents and are not corrected for their number."""


def adapted(studies: Sequence[StudyResults]) -> list[StudyResults]:
    """The studies that measured adaptations, by training tokens, in the setting that most of them share."""
    chosen = [study for study in studies if study.definition.adapt and any(arm.seeds for arm in study.arms)]
    settings = [_setting(study) for study in chosen]
    usual = max(settings, key=settings.count, default=())
    chosen = [study for study in chosen if _setting(study) == usual]
    return sorted(chosen, key=lambda study: (_tokens(study), study.definition.order))


def elsewhere(studies: Sequence[StudyResults]) -> list[StudyResults]:
    """The others: of other text, read in another way, trained by another schedule, or of another size."""
    known = adapted(studies)
    measured = [study for study in studies if study.definition.adapt and any(arm.seeds for arm in study.arms)]
    return [study for study in measured if study not in known]


def widest(studies: Sequence[StudyResults]) -> StudyResults:
    """The one with the most models, of those the one trained longest."""
    return max(studies, key=lambda study: (sum(bool(arm.seeds) for arm in study.arms), _tokens(study)))


def _setting(study: StudyResults) -> tuple[object, ...]:
    """What is read, in which contexts, whether documents are read apart, how the rate falls, and the model's size."""
    config = study.arms[0].composed.config
    size = config.model.dim, config.model.layers
    return *config.data.corpora, config.data.reset, config.length, config.schedule.name, *size


def _tokens(study: StudyResults) -> int:
    config = study.arms[0].composed.config
    return config.steps * config.batch_size * config.length


def millions(study: StudyResults) -> str:
    """Training tokens of its first arm."""
    return f"{_tokens(study) / 1e6:.2g} M"


def estimate(arm: ArmResults, condition: str = PLAIN) -> Difference | None:
    """Bits per byte over seeds and documents; None where it was not measured."""
    return _crossed([_bits(arm, seed, condition) for seed in sorted(arm.seeds)], arm)


def difference(ours: ArmResults, condition: str, theirs: ArmResults, other: str) -> Difference | None:
    """The first minus the second over their common seeds, paired by seed and document."""
    seeds = sorted(ours.seeds.keys() & theirs.seeds.keys())
    pairs = [(_bits(ours, seed, condition), _bits(theirs, seed, other)) for seed in seeds]
    return _crossed([a - b if a is not None and b is not None else None for a, b in pairs], ours)


def _bits(arm: ArmResults, seed: int, condition: str) -> np.ndarray | None:
    bits = arm.seeds[seed].documents.get(condition)
    return None if bits is None else np.asarray(bits)


def _crossed(scores: Sequence[np.ndarray | None], arm: ArmResults) -> Difference | None:
    known = [row for row in scores if row is not None]
    if not known:
        return None
    size = next(record for record in arm.seeds.values() if record.documents).documents["bytes"]
    return crossed(known, size, range(len(size)))


def section(study: StudyResults) -> str:
    """The table of models and adaptations, and the rule's comparisons of every model that was trained with writes."""
    seeds = {len(arm.seeds) for arm in study.arms if arm.seeds}
    counts = f"{min(seeds)} to {max(seeds)}" if len(seeds) > 1 else str(max(seeds))
    head = ["model", "at test time", "bits per byte", "new", *CLASSES[1:], "shuffled", "training FLOPs",
            "training CPU s", "GFLOP/s", "FLOPs a token", "ms a token", "state, kB"]  # fmt: skip
    several = len({record.machine for arm in study.arms for record in arm.seeds.values()}) > 1
    rows = [row for arm in study.arms if arm.seeds for row in _rows(arm, several=several)]
    said = (
        f"{counts} seeds. Bits per byte of {documents(study)} test documents ± half of the 95 % interval over seeds "
        "and documents. Then nats a token by class of target: not yet in the document; seen; its bigram seen; its "
        "trigram seen. Then bits per byte with blocks of 32 tokens moved between documents. Dials were tuned on "
        "validation text, for each training. GFLOP/s are a training's products by its CPU seconds: how much of a "
        "difference in time is code. Costs are of reading a token, state after the training length; milliseconds are "
        "of a shared core, a rough guide."
    )
    if several:
        said += (
            " Seconds of two processors are not to be compared: their families and models stand beside them."
        )
    return "\n\n".join([said, _table(head, rows), RULE, *claims(study)])


def documents(study: StudyResults) -> int:
    """How many were scored."""
    return max(len(r.documents.get("bytes", [])) for arm in study.arms for r in arm.seeds.values())


def _rows(arm: ArmResults, *, several: bool) -> Iterator[list[str]]:
    """One for each adaptation; `several`: the study's arms were trained on more than one processor."""
    records = list(arm.seeds.values())
    conditions = [name for name in (PLAIN, *NAMES) if any(name in r.documents for r in records)]
    for name in conditions:
        found = estimate(arm, name)
        means = [_mean(arm, "token_nats", f"{name}/target={label}") for label in CLASSES]
        flops, size = _mean(arm, "flops_per_token", PLAIN), _own_state(arm)
        if name != PLAIN:
            flops = None if flops is None else flops + (_mean(arm, "flops_per_token", name) or 0.0)
            size += _mean(arm, "state_bytes", name) or 0.0
        trained = [f"{records[0].flops:.2g}", *_speed(records, several)] if name == PLAIN else ["", "", ""]
        yield [
            arm.name if name == PLAIN else "",
            NAMES.get(name, "plain"),
            _interval(found),
            *[_shown(value, ".2f") for value in means],
            _shown(_mean(arm, "bits_per_byte", f"{name}/shuffled"), ".3f"),
            *trained,
            _shown(flops, ".2g"),
            _shown(_mean(arm, "ms_per_token", name), ".2f"),
            f"{size / 1000:,.0f}",
        ]


def _speed(records: Sequence[Record], several: bool) -> tuple[str, str]:
    """CPU seconds and GFLOP/s of a training, with the processor where a table has more than one."""
    machines, seconds = {r.machine for r in records}, fmean(r.step_seconds for r in records)
    if len(machines) > 1 or not seconds:
        return "-", "-"
    where = f" ({machines.pop().rsplit('(', 1)[-1].rstrip(')')})" if several else ""
    return f"{seconds:.0f}{where}", f"{records[0].flops / seconds / 1e9:.0f}{where}"


def _own_state(arm: ArmResults) -> float:
    """Bytes that the model itself keeps of a sequence of the training length."""
    config = arm.composed.config
    return counting.state_bytes(config.model, config.length)


def _interval(found: Difference | None) -> str:
    if found is None:
        return "-"
    return f"{found.value:.3f}" + ("" if found.high is None else f" ± {found.high - found.value:.3f}")


def _mean(arm: ArmResults, name: str, group: str) -> float | None:
    values = [v.value for r in arm.seeds.values() for v in r.metrics if (v.name, v.group) == (name, group)]
    return fmean(values) if values else None


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _table(head: list[str], rows: Sequence[Sequence[str]]) -> str:
    aligned = ["---", "---", *["---:"] * (len(head) - 2)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, aligned, *rows])


def writers(study: StudyResults) -> list[ArmResults]:
    """Arms with a CMS that writes while training."""
    return [arm for arm in study.arms if arm.seeds and arm.composed.config.model.variant.startswith("hope")]


RULE_HEAD = ["trained with writes", "baseline", "plain", "both + neural cache", "against baseline + writes"]


def _compared(study: StudyResults) -> list[tuple[ArmResults, ArmResults, list[Difference | None]]]:
    """Every arm that was trained with writes, every baseline, and the differences of the rule."""
    baselines = [arm for arm in study.arms if any(WRITES in r.documents for r in arm.seeds.values())]
    return [(arm, other, _rule(arm, other)) for arm in writers(study) for other in baselines]


def _rule(ours: ArmResults, theirs: ArmResults) -> list[Difference | None]:
    compared = ((PLAIN, PLAIN), (CACHE, CACHE), (PLAIN, WRITES))
    return [difference(ours, one, theirs, other) for one, other in compared]


def rule_table(studies: Sequence[StudyResults]) -> str:
    """The differences of the rule in several studies."""
    rows = [
        [study.name, millions(study), arm.name, other.name, *map(_bounds, found)]
        for study in studies
        for arm, other, found in _compared(study)
    ]
    return _table(["study", "tokens", *RULE_HEAD], rows)


def claims(study: StudyResults) -> list[str]:
    """The table of the rule, and a sentence for each arm that was trained with writes."""
    compared = _compared(study)
    if not compared:
        return []
    rows = [[arm.name, other.name, *map(_bounds, found)] for arm, other, found in compared]
    sentences = []
    for name in dict.fromkeys(arm.name for arm, _, _ in compared):
        pairs = [(other.name, found[1:]) for arm, other, found in compared if arm.name == name]
        beaten = [
            f"`{other}`"
            for other, two in pairs
            if all(one and one.high is not None and one.high < 0 for one in two)
        ]
        rest = "." if len(beaten) == len(pairs) else ", not against the others."
        holds = (
            f"holds against {' and '.join(beaten)}{rest}" if beaten else "does not hold against any baseline."
        )
        sentences.append(f"- `{name}`: the claim {holds}")
    return [_table(RULE_HEAD, rows), "\n".join(sentences)]


def _bounds(found: Difference | None) -> str:
    if found is None:
        return "-"
    if found.low is None or found.high is None:
        return f"{found.value:+.3f}"
    text = f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
    return f"**{text}**" if found.high < 0 else text


BY_TOKENS = """\
Does the lead end once a model has learned to copy? `hope_deltanet`, trained with writes, against its mixer, and `hope`
against the nearest baseline: bits per byte of each read with and without writes, the three differences of the
rule, and nats of targets whose trigram the document has shown."""
# A variant that writes its CMS, and the baseline that it would be without.
BASES = {"hope_deltanet": "gated_deltanet", "hope": "titans"}


class Budget(NamedTuple):
    """Two arms of a study that were trained on equally many tokens."""

    study: StudyResults
    ours: ArmResults
    theirs: ArmResults


def equal_tokens(studies: Sequence[StudyResults]) -> list[list[Budget]]:
    """For every pair of `BASES` the studies that trained both for as many steps, if there are two."""
    found = []
    for ours, theirs in BASES.items():
        budgets = []
        for study in studies:
            arms = {arm.composed.config.model.variant: arm for arm in study.arms if arm.seeds}
            if {ours, theirs} <= arms.keys():
                budget = Budget(study, arms[ours], arms[theirs])
                if len({arm.composed.config.steps for arm in budget[1:]}) == 1:
                    budgets.append(budget)
        if len(budgets) > 1:
            found.append(budgets)
    return found


def by_tokens(studies: Sequence[StudyResults]) -> list[str]:
    """The table of one pair and budget a row."""
    head = ["trained with writes", "baseline", "training tokens", "seeds", "baseline, plain",
            "baseline + writes at test time", "memory off", "trained with writes, plain", "lead, plain",
            "both + neural cache", "against baseline + writes", "trigram seen, baseline",
            "trigram seen, trained with writes"]  # fmt: skip
    rows = []
    for study, ours, theirs in itertools.chain(*equal_tokens(studies)):
        cells = [(theirs, PLAIN), (theirs, WRITES), (ours, OFF), (ours, PLAIN)]
        rows.append(
            [
                *(ours.name, theirs.name, millions(study)),
                str(len(ours.seeds.keys() & theirs.seeds.keys())),
                *[_interval(estimate(*cell)) for cell in cells],
                *[_bounds(lead) for lead in _rule(ours, theirs)],
                *[
                    _shown(_mean(arm, "token_nats", f"{PLAIN}/target={CLASSES[-1]}"), ".2f")
                    for arm in (theirs, ours)
                ],
            ]
        )
    return [BY_TOKENS, _table(head, rows)] if rows else []


def draw(studies: Sequence[StudyResults], folder: Path, shown: Path) -> None:
    """Draw loss by class of target of the most models, and for the overview bits per byte by training FLOPs."""
    with mpl.rc_context(STYLE):
        save(by_flops(studies), shown / "worth.png")
        save(by_class(widest(studies)), folder / "worth_by_class.png")


def by_flops(studies: Sequence[StudyResults]) -> Figure:
    """Two panels, plain and with a neural cache; then the lead by training tokens, of every pair of `BASES`."""
    known = equal_tokens(studies)
    rows = 2 if len(known) > 1 else 1
    figure = Figure(figsize=(WIDTH * 1.5, 4.4 * rows), layout="constrained")
    panels = figure.subplots(rows, (2 + len(known)) // rows).flatten()
    panels[1].sharey(panels[0])
    names = list(dict.fromkeys(arm.name for study in studies for arm in study.arms if arm.seeds))
    for axes, condition in zip(panels, (PLAIN, CACHE), strict=False):
        for name, look in looks(names).items():
            _line(axes, [arm for study in studies for arm in study.arms if arm.name == name], condition, look)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:e}"[0] in "235" else "")  # others touch
        axes.set_title(NAMES.get(condition, "plain"))
        axes.set_xlabel("training, TFLOP")
    panels[0].set_ylabel("bits per byte (lower is better)")
    for axes, budgets in zip(panels[2:], known, strict=True):
        _draw_leads(axes, budgets)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def _draw_leads(axes: Axes, budgets: Sequence[Budget]) -> None:
    labels = ("plain", "both + neural cache", "against baseline + writes")
    for n, label in enumerate(labels):
        leads = [(_tokens(b.study) / 1e6 * 1.04**n, _rule(b.ours, b.theirs)[n]) for b in budgets]
        points = [(tokens, lead) for tokens, lead in leads if lead]
        axes.errorbar(
            [tokens for tokens, _ in points],
            [lead.value for _, lead in points],
            yerr=[0.0 if lead.high is None else lead.high - lead.value for _, lead in points],
            color=COLOURS[n],
            marker="os^"[n],
            capsize=3,
            label=label,
        )
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xticks([_tokens(b.study) / 1e6 for b in budgets], [millions(b.study) for b in budgets])
    axes.minorticks_off()
    title = f"{budgets[0].ours.name} minus {budgets[0].theirs.name}"
    axes.set(title=title, xlabel="training, tokens", ylabel="bits per byte (below 0: better)")
    axes.legend(fontsize=8)


def _line(axes: Axes, arms: Sequence[ArmResults], condition: str, look: tuple[str, str]) -> None:
    found = [(arm, value) for arm in arms if arm.seeds and (value := estimate(arm, condition))]
    # A training that several studies share is one point.
    points = sorted({next(iter(arm.seeds.values())).flops / 1e12: value for arm, value in found}.items())
    if not points:
        return
    axes.errorbar(
        [flops for flops, _ in points],
        [value.value for _, value in points],
        yerr=[0.0 if value.high is None else value.high - value.value for _, value in points],
        color=look[0],
        marker=look[1],
        capsize=3,
        label=found[0][0].name,
    )


def by_class(study: StudyResults) -> Figure:
    """A panel a class: nats a token of every model, plain, with a cache, with writes, and with its memory off."""
    arms = [arm for arm in study.arms if arm.seeds]
    shown = {PLAIN: "o", CACHE: "s", WRITES: "^", OFF: "x"}
    figure = Figure(figsize=(WIDTH * 1.25, 0.34 * len(arms) + 2.2), layout="constrained")
    panels = figure.subplots(1, len(CLASSES), sharey=True)
    for axes, label in zip(panels, CLASSES, strict=True):
        for n, (condition, marker) in enumerate(shown.items()):
            points = [
                (_mean(arm, "token_nats", f"{condition}/target={label}"), -k) for k, arm in enumerate(arms)
            ]
            known = [(x, y) for x, y in points if x is not None]
            axes.plot([x for x, _ in known], [y for _, y in known], marker, color=COLOURS[n], linestyle="")
        axes.set_title(f"target {label}" if label == CLASSES[0] else label)
        axes.set_xlabel("nats a token")
        axes.grid(axis="y", alpha=0.3)
    panels[0].set_yticks([-k for k in range(len(arms))], [arm.name for arm in arms])
    handles = [
        Line2D([], [], marker=marker, color=COLOURS[n], linestyle="", label=NAMES.get(condition, "plain"))
        for n, (condition, marker) in enumerate(shown.items())
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return figure
