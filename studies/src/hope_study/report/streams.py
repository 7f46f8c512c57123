"""Studies that learn a stream of domains: how much of each is learned, kept and carried over, by way of learning."""

import math
from statistics import fmean

from matplotlib.figure import Figure

from hope_eval.report.looks import WIDTH, looks
from hope_eval.results import value
from hope_study.report.data import ArmResults, StudyResults, Verdict, cost, mean_error, paired

# In the order of the page: name, heading, whether less of it is better in bits per byte, and in accuracy.
MEASURES = {
    "before": ("{} before", True, False),
    "last": ("{} at the end", True, False),
    "change": ("change", True, False),
    "learned": ("learned of a domain, {}", False, False),
    "forgetting": ("average forgetting", True, True),
    "backward_transfer": ("backward transfer", False, False),
    "forward_transfer": ("forward transfer", False, False),
}
WAYS = {
    "memorize+off": "memories frozen",
    "memorize+on": "memories written",
    "memorize": "by its state",
    "cms": "by its CMS alone",
    "train": "by training",
    "replay": "by training with replay",
    "ewc": "by training with EWC",
}
TRAINED = ("train", "replay", "ewc")
EXPLAINED = """\
{score} of every domain's held-out {items}, before the stream and after each domain: R[i][j]. Before and at the
end: means of the first and of the last row; change: their difference. Learned: what a domain gained when it was
learned, averaged; whoever learns nothing forgets nothing. Average forgetting, backward and forward transfer as in
`hope-eval continual`. ± is one standard error over seeds."""


def _accuracy(study: StudyResults) -> bool:
    """Whether classes are picked, and not text measured in bits per byte."""
    return bool(study.definition.stream.classes)


def _title(study: StudyResults, measure: str) -> str:
    return MEASURES[measure][0].format("accuracy" if _accuracy(study) else "bits/byte")


def ways(arm: ArmResults) -> list[str]:
    """How an arm's models learned, in the page's order."""
    found = {v.group for t in arm.seeds.values() for v in t.metrics if v.group}
    return [way for way in WAYS if way in found]


def cells(arm: ArmResults, way: str, seed: int, domains: list[str]) -> list[list[float]]:
    """R [n + 1, n] in bits per byte."""
    found = {v.group: v.value for v in arm.seeds[seed].metrics}
    return [[found[f"{way} {i}>{name}"] for name in domains] for i in range(len(domains) + 1)]


def measured(study: StudyResults, arm: ArmResults, way: str, measure: str) -> dict[int, float]:
    """By seed."""
    made = {}
    for seed, training in arm.seeds.items():
        own = [v.value for v in training.metrics if (v.name, v.group) == (measure, way)]
        if own:
            made[seed] = own[0]
        elif any(v.group == way for v in training.metrics):
            R = cells(arm, way, seed, study.definition.stream.domains)
            made[seed] = _of(R, measure, gain=1 if _accuracy(study) else -1)
    return made


def _of(R: list[list[float]], measure: str, gain: int) -> float:
    before, last = fmean(R[0]), fmean(R[-1])
    learned = gain * fmean(R[j + 1][j] - R[0][j] for j in range(len(R[0])))
    return {"before": before, "last": last, "change": last - before, "learned": learned}[measure]


def compared(
    study: StudyResults, one: tuple[ArmResults, str], other: tuple[ArmResults, str], measure: str
) -> Verdict | None:
    """`one` minus `other`, paired over seeds; an arm and a way each."""
    ours, theirs = measured(study, *one, measure), measured(study, *other, measure)
    _, bits, accuracy = MEASURES[measure]
    return paired(ours, theirs, _documents(*one), lower_is_better=accuracy if _accuracy(study) else bits)


def _documents(arm: ArmResults, way: str) -> int:
    """Return how many held-out documents all domains have: those of the first row of R."""
    rows = [[v.n for v in r.metrics if v.group.startswith(f"{way} 0>")] for r in arm.seeds.values()]
    return min((sum(row) for row in rows if row), default=0)


def _guessing(study: StudyResults) -> str:
    """What to say where even the best arm is within two standard errors of a guess; else nothing."""
    if not _accuracy(study):
        return ""
    pairs = [(arm, way) for arm in study.arms for way in ways(arm)]
    best = max((fmean(measured(study, *pair, "last").values()) for pair in pairs), default=0.0)
    chance, asked = _chance(study), min((_documents(*pair) for pair in pairs), default=0)
    if not asked or best > chance + 2 * math.sqrt(chance * (1 - chance) / asked):
        return ""
    return f"every arm guesses (at most {best:.3f} right at the end, chance {chance:.3f}): nothing can be told apart"


def sentences(study: StudyResults) -> list[str]:
    """Written against frozen for each arm, then every arm against the first in the ways both have."""
    lines, first = [], study.arms[0]
    if guessing := _guessing(study):
        return [f"{guessing[0].upper()}{guessing[1:]}."]
    for arm in study.arms:
        if {"memorize+on", "memorize+off"} <= set(ways(arm)):
            said = _said(study, (arm, "memorize+on"), (arm, "memorize+off"))
            lines.append(f"`{arm.name}`, memories written against frozen: {said}.")
    for arm in study.arms[1:]:
        for way in ways(arm):
            # A state that cannot be frozen is set against memories that are written.
            theirs = "memorize+on" if way == "memorize" else way
            if theirs in ways(first):
                said = _said(study, (arm, way), (first, theirs))
                lines.append(f"`{arm.name}` ({WAYS[way]}) against `{first.name}` ({WAYS[theirs]}): {said}.")
    return lines


def _said(study: StudyResults, one: tuple[ArmResults, str], other: tuple[ArmResults, str]) -> str:
    parts = []
    # What is frozen learns nothing, and its differences in that are noise of rounding.
    frozen = one[1] == other[1] == "memorize+off"
    for measure in ("last",) if frozen else ("last", "change", "forgetting"):
        found, title = compared(study, one, other, measure), _title(study, measure)
        if found is None:
            parts.append(f"not decided in {title}")
        else:
            interval = f"{found.difference:+.4f}, 95 % [{found.low:+.4f}, {found.high:+.4f}], {found.n} seeds"
            parts.append(f"{found.word} in {title} ({interval})")
    return "; ".join(parts)


def short(study: StudyResults, arm: ArmResults) -> str:
    """An arm against the first in few words: by what is left at the end, and by what the stream changed."""
    first, words = study.arms[0], []
    if not arm.seeds:
        return f"{arm.name}: not run"
    if guessing := _guessing(study):
        return f"{arm.name}: {guessing}"
    for way in ways(arm):
        theirs = "memorize+on" if way == "memorize" else way
        if theirs not in ways(first):
            continue
        last, change = (
            compared(study, (arm, way), (first, theirs), measure) for measure in ("last", "change")
        )
        if last and change:
            rest = "" if way == "memorize+off" else f", {change.word} in change"
            words.append(f"{last.word} {WAYS[way]} ({last.difference:+.3f}{rest})")
    return f"{arm.name}: {', '.join(words) if words else 'not decided'}"


def table(study: StudyResults) -> str:
    """A row per arm and way, with what is measured of it and what its training cost."""
    stream = study.definition.stream
    columns = ["parameters", "tokens trained", "tokens/s", "FLOPs"]
    titles = [_title(study, measure) for measure in MEASURES]
    head = ["arm", "how", "learning rate", "seeds", *titles, *columns]
    counts = [v.n for arm in study.arms for t in arm.seeds.values() for v in t.metrics if ">" in v.group]
    n = f"n {min(counts)} to {max(counts)}"
    if _accuracy(study):
        explained = EXPLAINED.format(score="Accuracy", items="questions")
        explained += (
            f" Domains: groups of {stream.classes}, {', '.join(stream.domains)}; {n} questions of each. "
        )
        explained += f"Guessing among the classes met at the end: {_chance(study):.3f}."
    else:
        explained = EXPLAINED.format(score="Bits per byte", items="documents")
        explained += f" Domains: {', '.join(stream.domains)}; {stream.tokens:,} tokens learned and "
        explained += (
            f"{stream.held_out:,} measured of each, {n} documents. No chance line: these are no choices."
        )
    rows = [
        explained,
        "",
        "| " + " | ".join(head) + " |",
        "|---|---|" + "---:|" * (len(head) - 2),
    ]
    for arm in study.arms:
        whole = [t for t in arm.seeds.values() if not t.failed]
        if not whole:
            rows.append(f"| {arm.name} | not run |" + " - |" * (len(head) - 2))
            continue
        _, speed = cost(whole)
        costs = [f"{arm.composed.parameters:,}", f"{whole[0].tokens:,}", speed, f"{whole[0].flops:.2g}"]
        for way in ways(arm):
            found = [list(measured(study, arm, way, measure).values()) for measure in MEASURES]
            numbers = [value(*mean_error(values)) for values in found]
            cells_ = [arm.name, WAYS[way], f"{whole[0].lr:.2g}", str(len(found[0])), *numbers, *costs]
            rows.append("| " + " | ".join(cells_) + " |")
    return "\n".join(rows)


def _chance(study: StudyResults) -> float:
    """Chance in the last row of R."""
    last = f" {len(study.definition.stream.domains)}>"
    values = (v for arm in study.arms for t in arm.seeds.values() for v in t.metrics if last in v.group)
    return fmean(v.chance or 0.0 for v in values)


def draw(study: StudyResults) -> Figure:
    """What the stream changed, averaged over its domains, by stage: memories and state aside from training."""
    # A legend of one column stands under each panel.
    height = 5.0 + 0.15 * sum(len(ways(arm)) for arm in study.arms)
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    panels = figure.subplots(1, 2)
    look = looks(arm.name for arm in study.arms)
    stages = ["before", *study.definition.stream.domains]
    for axes, title in zip(panels, ("memories and state", "training"), strict=True):
        for n, arm in enumerate(study.arms):
            colour, marker = look[arm.name]
            for way in ways(arm):
                if (way in TRAINED) != (title == "training"):
                    continue
                seeds = measured(study, arm, way, "last")  # without those that diverged
                rows = [cells(arm, way, seed, study.definition.stream.domains) for seed in seeds]
                changes = [[fmean(row) - fmean(R[0]) for row in R] for R in rows]
                found = [mean_error([change[i] for change in changes]) for i in range(len(stages))]
                axes.errorbar(
                    [i + 0.04 * n for i in range(len(stages))],
                    [mean for mean, _ in found],
                    yerr=[error or 0.0 for _, error in found],
                    color=colour,
                    linestyle={"memorize+off": "--", "ewc": "--", "cms": ":", "replay": ":"}.get(way, "-"),
                    marker=marker,
                    capsize=2,
                    label=f"{arm.name}, {WAYS[way]}",
                )
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_xticks(range(len(stages)), stages, rotation=30, ha="right")
        score = "accuracy" if _accuracy(study) else "bits/byte"
        axes.set(title=title, ylabel=f"change in {score}, all domains")
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.25), handlelength=3.5)
    better = "more" if _accuracy(study) else "less"
    figure.suptitle(f"{study.name}: after each domain ({better} is better, ± 1 s.e. over seeds)")
    return figure
