"""Studies that learn a stream of domains: how much of each is learned, kept and carried over, by way of learning."""

from statistics import fmean

from matplotlib.figure import Figure

from hope_eval.report.looks import WIDTH, looks
from hope_eval.results import value
from hope_study.report.data import ArmResults, StudyResults, Verdict, cost, mean_error, paired

# In the order of the page: name, heading, whether less of it is better.
MEASURES = {
    "before": ("bits/byte before", True),
    "last": ("bits/byte at the end", True),
    "change": ("change", True),
    "learned": ("learned of a domain, bits/byte", False),
    "forgetting": ("average forgetting", True),
    "backward_transfer": ("backward transfer", False),
    "forward_transfer": ("forward transfer", False),
}
WAYS = {
    "memorize+off": "memories frozen",
    "memorize+on": "memories written",
    "memorize": "by its state",
    "train": "by training",
}
EXPLAINED = """\
Bits per byte of every domain's held-out documents, before the stream and after each domain: R[i][j]. Before and at the
end: means of the first and of the last row; change: their difference. Learned: R[before][j] - R[just after j], averaged
over j; whoever learns nothing forgets nothing. Average forgetting, backward and forward transfer as in `hope-eval
continual`. ± is one standard error over seeds."""


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
            made[seed] = _of(cells(arm, way, seed, study.definition.stream.domains), measure)
    return made


def _of(R: list[list[float]], measure: str) -> float:
    before, last = fmean(R[0]), fmean(R[-1])
    learned = fmean(R[0][j] - R[j + 1][j] for j in range(len(R[0])))
    return {"before": before, "last": last, "change": last - before, "learned": learned}[measure]


def compared(
    study: StudyResults, one: tuple[ArmResults, str], other: tuple[ArmResults, str], measure: str
) -> Verdict | None:
    """`one` minus `other`, paired over seeds; an arm and a way each."""
    ours, theirs = measured(study, *one, measure), measured(study, *other, measure)
    return paired(ours, theirs, _documents(*one), lower_is_better=MEASURES[measure][1])


def _documents(arm: ArmResults, way: str) -> int:
    """Return how many held-out documents all domains have: those of the first row of R."""
    rows = [[v.n for v in r.metrics if v.group.startswith(f"{way} 0>")] for r in arm.seeds.values()]
    return min((sum(row) for row in rows if row), default=0)


def sentences(study: StudyResults) -> list[str]:
    """Written against frozen for each arm, then every arm against the first in the ways both have."""
    lines, first = [], study.arms[0]
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
        found, title = compared(study, one, other, measure), MEASURES[measure][0]
        if found is None:
            parts.append(f"not decided in {title}")
        else:
            interval = f"{found.difference:+.4f}, 95 % [{found.low:+.4f}, {found.high:+.4f}], {found.n} seeds"
            parts.append(f"{found.word} in {title} ({interval})")
    return "; ".join(parts)


def short(study: StudyResults, arm: ArmResults) -> str:
    """An arm against the first in few words: by what is left at the end, and by what the stream changed."""
    first, words = study.arms[0], []
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
    head = ["arm", "how", "learning rate", "seeds", *(title for title, _ in MEASURES.values()), *columns]
    counts = [v.n for arm in study.arms for t in arm.seeds.values() for v in t.metrics if ">" in v.group]
    rows = [
        f"{EXPLAINED} Domains: {', '.join(stream.domains)}; {stream.tokens:,} tokens learned and {stream.held_out:,} "
        f"measured of each, n {min(counts)} to {max(counts)} documents. No chance line: these are no choices.",
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


def draw(study: StudyResults) -> Figure:
    """What the stream changed, averaged over its domains, by stage: memories and state aside from training."""
    figure = Figure(figsize=(WIDTH, 5.0), layout="constrained")
    panels = figure.subplots(1, 2)
    look = looks(arm.name for arm in study.arms)
    stages = ["before", *study.definition.stream.domains]
    for axes, title in zip(panels, ("memories and state", "training"), strict=True):
        for n, arm in enumerate(study.arms):
            colour, marker = look[arm.name]
            for way in ways(arm):
                if (way == "train") != (title == "training"):
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
                    linestyle="--" if way == "memorize+off" else "-",
                    marker=marker,
                    capsize=2,
                    label=f"{arm.name}, {WAYS[way]}",
                )
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_xticks(range(len(stages)), stages, rotation=30, ha="right")
        axes.set(title=title, ylabel="change in bits/byte, all domains")
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.25), ncols=2, handlelength=3.5)
    figure.suptitle(f"{study.name}: after each domain (less is better, ± 1 s.e. over seeds)")
    return figure
