"""What a memory is worth beside what could be had without training it: models x adaptations at test time.

For studies that measure `adapt`. Intervals cross seeds and documents (`hope_eval.results.statistics.crossed`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import NamedTuple

import numpy as np

from hope_eval.results.names import CLASSES
from hope_eval.results.statistics import Difference, crossed
from hope_model import counting
from hope_study.measure import PLAIN
from hope_study.records import Record
from hope_study.report.data import ArmResults, StudyResults

CACHE, WRITES, DYNAMIC, OFF = "neural_cache", "writes", "dynamic", "off"
NAMES = {
    CACHE: "+ neural cache",
    WRITES: "+ writes at test time",
    DYNAMIC: "+ dynamic evaluation",
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
    return sorted(chosen, key=lambda study: (tokens(study), study.definition.order))


def elsewhere(studies: Sequence[StudyResults]) -> list[StudyResults]:
    """The others: of other text, read in another way, trained by another schedule, or of another size."""
    known = adapted(studies)
    measured = [study for study in studies if study.definition.adapt and any(arm.seeds for arm in study.arms)]
    return [study for study in measured if study not in known]


def widest(studies: Sequence[StudyResults]) -> StudyResults:
    """The one with the most models, of those the one trained longest."""
    return max(studies, key=lambda study: (sum(bool(arm.seeds) for arm in study.arms), tokens(study)))


def _setting(study: StudyResults) -> tuple[object, ...]:
    """What is read, in which contexts, whether documents are read apart, how the rate falls, and the model's size."""
    config = study.arms[0].composed.config
    size = config.model.dim, config.model.layers
    return *config.data.corpora, config.data.reset, config.length, config.schedule.name, *size


def tokens(study: StudyResults) -> int:
    """Training tokens of its first arm."""
    config = study.arms[0].composed.config
    return config.steps * config.batch_size * config.length


def millions(study: StudyResults) -> str:
    """The same in words."""
    return f"{tokens(study) / 1e6:.2g} M"


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
        means = [mean(arm, "token_nats", f"{name}/target={label}") for label in CLASSES]
        flops, size = mean(arm, "flops_per_token", PLAIN), _own_state(arm)
        if name != PLAIN:
            flops = None if flops is None else flops + (mean(arm, "flops_per_token", name) or 0.0)
            size += mean(arm, "state_bytes", name) or 0.0
        trained = [f"{records[0].flops:.2g}", *_speed(records, several)] if name == PLAIN else ["", "", ""]
        yield [
            arm.name if name == PLAIN else "",
            NAMES.get(name, "plain"),
            _interval(found),
            *[_shown(value, ".2f") for value in means],
            _shown(mean(arm, "bits_per_byte", f"{name}/shuffled"), ".3f"),
            *trained,
            _shown(flops, ".2g"),
            _shown(mean(arm, "ms_per_token", name), ".2f"),
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


def mean(arm: ArmResults, name: str, group: str) -> float | None:
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

# Beside the rule: how ours reads, and the baseline with dynamic evaluation.
LEARNING = {"against baseline + dynamic evaluation": PLAIN, "both + dynamic evaluation": DYNAMIC}


def _compared(study: StudyResults) -> list[tuple[ArmResults, ArmResults, list[Difference | None]]]:
    """Every arm that was trained with writes, every baseline, and the differences of the rule."""
    baselines = [arm for arm in study.arms if any(WRITES in r.documents for r in arm.seeds.values())]
    return [(arm, other, rule(arm, other)) for arm in writers(study) for other in baselines]


def rule(ours: ArmResults, theirs: ArmResults) -> list[Difference | None]:
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
    learning = LEARNING if any(estimate(arm, DYNAMIC) for arm in study.arms if arm.seeds) else {}
    rows, sentences = [], []
    for arm, other, found in compared:
        beside = [difference(arm, condition, other, DYNAMIC) for condition in learning.values()]
        rows.append([arm.name, other.name, *map(_bounds, [*found, *beside])])
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
    if learning:
        sentences.append("- Dynamic evaluation, training on what has been read, is no part of the rule.")
    return [_table([*RULE_HEAD, *learning], rows), "\n".join(sentences)]


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
                *[_bounds(lead) for lead in rule(ours, theirs)],
                *[
                    _shown(mean(arm, "token_nats", f"{PLAIN}/target={CLASSES[-1]}"), ".2f")
                    for arm in (theirs, ours)
                ],
            ]
        )
    return [BY_TOKENS, _table(head, rows)] if rows else []
