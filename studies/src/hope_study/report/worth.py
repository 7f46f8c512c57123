"""What a memory is worth beside what could be had without training it: models x adaptations at test time.

For studies that measure `adapt`. Intervals cross seeds and documents (`hope_eval.results.statistics.crossed`).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import NamedTuple

import numpy as np

from hope_eval.results.names import CLASSES
from hope_eval.results.statistics import Difference, crossed
from hope_eval.scoring.adaptation import parse
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
CAPTION = """\
{seeds} seeds of models of {size:.2g} M parameters, trained and tested in windows of {length} tokens; nothing is carried
from one window to the next. By column:

- bits per byte of {documents} test documents, ± half of the 95 % interval over seeds and documents;
- nats a token where the token is new in its window; where the window has shown it, its bigram, its trigram;
- shuffled: bits per byte with blocks of 32 tokens moved between documents, so that little repeats;
- GFLOP/s: training FLOPs by CPU seconds. Where two models differ here, code and not arithmetic makes one slower;
- the last three: of reading a token, on a shared core (milliseconds are a rough guide), and the state after a window.
- *Memory off* has the same weights, trained to write, and writes nothing: no baseline, but what hangs on the writes.
- What is added at test time was tuned on 8,192 tokens of validation text for each training.{edges}
- Learning rates were chosen on validation text, {rates}."""
RULE = """\
A model is ahead by the rule where it is so in both comparisons of a row: with a neural cache on both sides, and against
the baseline whose MLPs are written at test time only. What a CMS is worth shows in `hope_deltanet` against
`gated_deltanet`, the same model without one; other rows compare whole models. Differences are in bits per byte, below
zero is better: bold where the 95 % interval says better, italic where it says worse, else undecided. Intervals cross
seeds and documents and are not corrected for their number; one seed has none."""


def adapted(studies: Sequence[StudyResults]) -> list[StudyResults]:
    """The studies that measured adaptations, by training tokens, in the setting that most of them share."""
    chosen = _measured(studies)
    settings = [_setting(study) for study in chosen]
    usual = max(settings, key=settings.count, default=())
    chosen = [study for study in chosen if _setting(study) == usual]
    return sorted(chosen, key=lambda study: (tokens(study), study.definition.order))


def elsewhere(studies: Sequence[StudyResults]) -> list[StudyResults]:
    """The others: of other text, read in another way, trained by another schedule, or of another size."""
    known = adapted(studies)
    return [study for study in _measured(studies) if study not in known]


def _measured(studies: Sequence[StudyResults]) -> list[StudyResults]:
    return [study for study in studies if study.definition.adapt and any(arm.seeds for arm in study.arms)]


def equal_cost(studies: Sequence[StudyResults]) -> list[StudyResults]:
    """Those whose arms took different numbers of steps."""
    return [one for one in studies if len({arm.composed.config.steps for arm in one.arms}) > 1]


def at_equal_tokens(studies: Sequence[StudyResults]) -> list[StudyResults]:
    """The others."""
    costly = equal_cost(studies)
    return [one for one in studies if one not in costly]


def longest(studies: Sequence[StudyResults]) -> StudyResults:
    """The one trained longest, of those that have a pair of `BASES`, if any has."""
    pairs = [study for study in studies if any(_pair(study, *names) for names in BASES.items())]
    return max(pairs or studies, key=tokens)


def _setting(study: StudyResults) -> tuple[object, ...]:
    """What is read, in which contexts, whether documents are read apart, how the rate falls, and the model's size."""
    config = study.arms[0].composed.config
    size = config.model.dim, config.model.layers
    return *config.data.corpora, config.data.reset, config.length, config.schedule.name, *size


def tokens(study: StudyResults) -> int:
    """Training tokens of its first arm."""
    return trained_on(study.arms[0])


def trained_on(arm: ArmResults) -> int:
    """Training tokens of an arm."""
    config = arm.composed.config
    return config.steps * config.batch_size * config.length


def millions(study: StudyResults) -> str:
    """Those of the first arm in words."""
    return f"{tokens(study) / 1e6:.2g} M"


def _both(*arms: ArmResults) -> str:
    """Training tokens of two arms in words, once where they are equal."""
    return " and ".join(dict.fromkeys(f"{trained_on(arm) / 1e6:.2g} M" for arm in arms))


def estimate(arm: ArmResults, condition: str = PLAIN) -> Difference | None:
    """Bits per byte over seeds and documents; None where it was not measured."""
    return _crossed([_bits(arm, seed, condition) for seed in sorted(arm.seeds)], arm)


def difference(ours: ArmResults, condition: str, theirs: ArmResults, other: str) -> Difference | None:
    """The first minus the second over their common seeds, paired by seed and document; one seed has no interval."""
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
    found = crossed(known, size, range(len(size)))
    # A seed alone decides nothing.
    return found if found.seeds > 1 else dataclasses.replace(found, low=None, high=None)


def section(study: StudyResults) -> str:
    """The table of models and adaptations, and the rule's comparisons of every model with a CMS."""
    seeds = {len(arm.seeds) for arm in study.arms if arm.seeds}
    counts = f"{min(seeds)} to {max(seeds)}" if len(seeds) > 1 else str(max(seeds))
    head = ["model", "at test time", "bits per byte", "new", *CLASSES[1:], "shuffled", "training FLOPs",
            "training CPU s", "GFLOP/s", "FLOPs a token", "ms a token", "state, kB"]  # fmt: skip
    several = len({record.machine for arm in study.arms for record in arm.seeds.values()}) > 1
    rows = [row for arm in study.arms if arm.seeds for row in _rows(arm, several=several)]
    first = study.arms[0].composed
    said = CAPTION.format(
        seeds=counts,
        size=first.parameters / 1e6,
        length=first.config.length,
        documents=documents(study),
        edges=_edges(study),
        rates=_rates(study),
    )
    if several:
        said += "\n- Seconds of two processors are not to be compared: family and model stand beside them."
    return "\n\n".join([said, _table(head, rows), RULE, *claims(study)])


def _rates(study: StudyResults) -> str:
    """By which study or how many seeds, and of which arms not every rate was tried."""
    if study.definition.rates_of:
        return f"by `{study.definition.rates_of}`"
    seeds = study.definition.rate_seeds
    known = [arm for arm in study.arms if arm.seeds]
    alone = [f"`{arm.name}`" for arm in known if len(arm.tuned) == 1]
    partly = [f"`{arm.name}`" for arm in known if 1 < len(arm.tuned) < arm.rates]
    said = f"at this budget, with {'one seed' if seeds == 1 else f'{seeds} seeds'}"
    said += f"; of {', '.join(alone)} one rate only was tried" if alone else ""
    return said + (f"; not all rates were tried of {', '.join(partly)}" if partly else "")


def _edges(study: StudyResults) -> str:
    """Which dials were found at an end of what was tried: the best one may lie beyond."""
    found: dict[str, None] = {}
    for arm in study.arms:
        tuned = dict(adapt.partition(" ")[::2] for adapt in arm.composed.adapt)
        asked = {start.partition(":")[0]: dials.split(",") if dials else [] for start, dials in tuned.items()}
        for text in [dials for record in arm.seeds.values() for dials in record.dials.values()]:
            chosen = parse(text)
            for dial in asked.get(chosen.name) or chosen.grids:
                ends = chosen.grids[dial][0], chosen.grids[dial][-1]
                if dial != "tokens" and (at := getattr(chosen, dial)) in ends:  # no window holds as many
                    found[f"{arm.name}, {chosen.name}: {dial} {at:g}"] = None
    return f" At an end of what was tried: {'; '.join(found)}." if found else ""


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
            "" if name == OFF else _shown(flops, ".2g"),
            "" if name == OFF else _shown(mean(arm, "ms_per_token", name), ".2f"),
            "" if name == OFF else f"{size / 1000:,.0f}",
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


RULE_HEAD = ["with a CMS", "baseline", "plain", "both + neural cache", "against baseline + writes"]

# No part of the rule, but what else a reader would set against it.
BESIDE = {
    "against baseline + neural cache": (PLAIN, CACHE),
    "against baseline + dynamic evaluation": (PLAIN, DYNAMIC),
    "both + dynamic evaluation": (DYNAMIC, DYNAMIC),
}


def _compared(study: StudyResults) -> list[tuple[ArmResults, ArmResults, list[Difference | None]]]:
    """Every arm with a CMS, every baseline, and the differences of the rule."""
    baselines = [arm for arm in study.arms if any(WRITES in r.documents for r in arm.seeds.values())]
    return [(arm, other, rule(arm, other)) for arm in writers(study) for other in baselines]


def rule(ours: ArmResults, theirs: ArmResults) -> list[Difference | None]:
    compared = ((PLAIN, PLAIN), (CACHE, CACHE), (PLAIN, WRITES))
    return [difference(ours, one, theirs, other) for one, other in compared]


def rule_table(studies: Sequence[StudyResults]) -> str:
    """The differences of the rule in several studies."""
    rows = [
        [study.name, _both(arm, other), arm.name, other.name, *map(_bounds, found)]
        for study in studies
        for arm, other, found in _compared(study)
    ]
    return _table(["study", "tokens", *RULE_HEAD], rows)


def claims(study: StudyResults) -> list[str]:
    """The table of the rule, and a sentence for each arm with a CMS."""
    compared = _compared(study)
    if not compared:
        return []
    beside = {
        title: [difference(arm, one, other, two) for arm, other, _ in compared]
        for title, (one, two) in BESIDE.items()
    }
    beside = {title: found for title, found in beside.items() if any(found)}
    rows = [
        [arm.name, other.name, *map(_bounds, [*found, *[column[n] for column in beside.values()]])]
        for n, (arm, other, found) in enumerate(compared)
    ]
    sentences = []
    for name in dict.fromkeys(arm.name for arm, _, _ in compared):
        places = [n for n, (arm, _, _) in enumerate(compared) if arm.name == name]
        beaten = [compared[n][1].name for n in places if all(map(_better, compared[n][2][1:]))]
        others = ", not of the others" if 0 < len(beaten) < len(places) else ""
        sentences.append(f"- `{name}`: by the rule ahead of {_names(beaten) or 'no baseline'}{others}.")
        for title, column in beside.items():
            ahead = [compared[n][1].name for n in places if _better(column[n])]
            behind = [compared[n][1].name for n in places if (one := column[n]) and one.low and one.low > 0]
            words = [
                f"{word} {_names(names)}"
                for word, names in (("ahead of", ahead), ("behind", behind))
                if names
            ]
            said = "; ".join(words) or "undecided against all"
            sentences[-1] += f" {title[0].upper()}{title[1:]}: {said}."
    return [_table([*RULE_HEAD, *beside], rows), "\n".join(sentences)]


def _bounds(found: Difference | None) -> str:
    if found is None:
        return "-"
    if found.low is None or found.high is None:
        return f"{found.value:+.3f}"
    text = f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
    return f"**{text}**" if found.high < 0 else f"*{text}*" if found.low > 0 else text


def _better(found: Difference | None) -> bool:
    return bool(found and found.high is not None and found.high < 0)


def _names(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


BY_TOKENS = """\
Does the lead end once a model has learned to copy? `hope_deltanet` against the same model without a CMS, `hope` and
`hope_paper` against Titans: bits per byte of each read with and without writes, the three differences of the rule, and
nats of targets whose trigram the window has shown."""
# A variant that writes its CMS, and the nearest baseline without: Titans do not modify themselves either.
BASES = {"hope_deltanet": "gated_deltanet", "hope": "titans", "hope_paper": "titans"}


class Budget(NamedTuple):
    """Two arms of a study that were trained on equally many tokens."""

    study: StudyResults
    ours: ArmResults
    theirs: ArmResults


def _pair(study: StudyResults, ours: str, theirs: str) -> Budget | None:
    """The arms of two variants, if the study trained both for as many steps."""
    arms = {arm.composed.config.model.variant: arm for arm in study.arms if arm.seeds}
    if not {ours, theirs} <= arms.keys():
        return None
    budget = Budget(study, arms[ours], arms[theirs])
    return budget if len({arm.composed.config.steps for arm in budget[1:]}) == 1 else None


def equal_tokens(studies: Sequence[StudyResults]) -> list[list[Budget]]:
    """For every pair of `BASES` the studies that trained both for as many steps, if there are two."""
    found = []
    for ours, theirs in BASES.items():
        budgets = [budget for study in studies if (budget := _pair(study, ours, theirs))]
        if len(budgets) > 1:
            found.append(budgets)
    return found


def by_tokens(studies: Sequence[StudyResults]) -> list[str]:
    """The table of one pair and budget a row."""
    head = ["with a CMS", "baseline", "training tokens", "seeds", "baseline, plain",
            "baseline + writes at test time", "with a CMS, memory off", "the same, plain", "lead, plain",
            "both + neural cache", "against baseline + writes", "trigram seen, baseline",
            "the same, with a CMS"]  # fmt: skip
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
