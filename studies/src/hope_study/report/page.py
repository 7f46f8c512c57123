"""The page of one study, and the overview of all: sentences, tables and verdicts that the numbers decide."""

from collections.abc import Iterable, Sequence
from pathlib import PurePath

from hope_eval.results import METRICS, value
from hope_study.records import Record
from hope_study.report import streams, worth
from hope_study.report.data import ArmResults, StudyResults, cost, mean_error, state_bytes, verdict

SOLVED = 0.99
WORDS = ("better", "worse", "no difference", "not decided")
OVERVIEW = """\
What the parts of HOPE are worth, measured by studies: arms that differ in one thing, each with a learning rate chosen
for it and three to five seeds where a page does not say otherwise. `hope-study report` writes this page and one for
every study from [reports/studies](studies); nothing here is typed by hand."""
EVERY = """\
Each cell says how the other arms do beside the arm named under *against* (**worse** titans: Titans is worse than that
arm): the difference of the means over seeds, paired, and whether Student's 95 % interval leaves zero out. Where it
does not, ± is half of the interval's width: a wide one says that these seeds cannot tell. Intervals are not corrected
for their number. At equal time, cheaper arms take as many more steps as their measured speed allows.
[docs/studies.md](../docs/studies.md) says how an arm is run."""


def overview(
    studies: Sequence[StudyResults],
    folder: PurePath,
    locked: Sequence[StudyResults] = (),
    opened: str = "",
) -> str:
    """Return the page that lists every study with its answer; `folder` leads to their pages.

    Args:
        studies: all of them.
        folder: from the page to theirs.
        locked: those that were measured on the locked documents, with what these say.
        opened: when.
    """
    done, planned = sum(study.done for study in studies), sum(study.planned for study in studies)
    rows = [
        "| study | question | measured | against | at equal tokens | at equal time |",
        "|---|---|---|---|---|---|",
    ]
    above = _worth(studies, folder, locked, opened)
    for study in studies:
        if study.done and not (above and study.definition.adapt):
            timed, link = study.at_equal_time(), f"[{study.name}]({folder / study.name}.md)"
            of = METRICS[study.metric].title
            cells = [link, study.definition.question, of, study.arms[0].name, _short(study)]
            rows.append(f"| {' | '.join([*cells, _short(timed) if timed else ''])} |")
    parts = [
        "# Studies",
        OVERVIEW,
        *above,
        f"## Every {'other ' if above else ''}study",
        EVERY,
        "\n".join(rows),
        f"**{done} of {planned} results exist**, of {len(_trainings(studies))} trainings, in {_hours(studies)}."
        + _untrained(studies),
    ]
    return "\n\n".join(parts) + "\n"


def _trainings(studies: Sequence[StudyResults]) -> dict[str, Record]:
    """Every training once, also where several studies count it."""
    arms = [arm for study in studies for arm in study.arms]
    return {one.sha256: one for arm in arms for one in (*arm.trainings, *arm.timed.values())}


def _hours(studies: Sequence[StudyResults]) -> str:
    """What their trainings and measurements took: each has a core."""
    seconds = sum(one.wall_seconds for one in _trainings(studies).values())
    return f"{seconds / 3600:.1f} core-hours with their measurements"


def _untrained(studies: Sequence[StudyResults]) -> str:
    """The arms that are defined and have no results."""
    found = []
    for study in studies:
        without = [arm.name for arm in study.arms if not (arm.seeds or arm.missing)]
        if without:
            every = len(without) == len(study.arms)
            found.append(f"{study.name} ({'all' if every else ', '.join(without)})")
    return f" Defined, but not trained: {'; '.join(found)}." if found else ""


LOCKED = """\
The rule once more, on {count} of the test documents that were locked away while all of this was written and tuned (as
many as the usual number of tokens takes). They were opened once, on {date}, by `hope-study open`: what was trained
later was not measured on them, and models have the learning rates that had been chosen by then."""


def _locked(studies: Sequence[StudyResults], opened: str) -> list[str]:
    """What the locked documents say, by study."""
    studies = [one for one in studies if any(arm.seeds for arm in one.arms)]
    if not studies:
        return []
    return [LOCKED.format(count=worth.documents(studies[0]), date=opened), worth.rule_table(studies)]


def _worth(
    studies: Sequence[StudyResults], folder: PurePath, locked: Sequence[StudyResults], opened: str
) -> list[str]:
    """The main table, of the longest training, and where the picture and the other budgets are."""
    adapted = worth.adapted(studies)
    if not adapted:
        return []
    main = worth.longest(adapted)
    links = ", ".join(f"[{study.name}]({folder / study.name}.md)" for study in adapted)
    pictures = (
        "![Bits per byte by training FLOPs, plain and with a neural cache; below, leads by training tokens]"
        "(plots/worth.png)\n"
        "![Nats a token by class of target](plots/worth_by_class.png)"
    )
    parts = [f"## What a memory is worth, after {worth.millions(main)} tokens", _definitions(main)]
    parts += [worth.section(main), pictures]
    parts += [f"All budgets: {links}, in {_hours(adapted)}.", *_locked(locked, opened)]
    if tokens := worth.by_tokens(adapted):
        parts += ["## By tokens trained", *tokens]
    if len(even := worth.at_equal_tokens(adapted)) > 1:
        parts += ["The rule with every baseline:", worth.rule_table(even)]
    if costly := worth.equal_cost(adapted):
        parts += ["## At equal cost", _asked(costly, folder), worth.rule_table(costly)]
    if others := worth.elsewhere(studies):
        parts += [
            "## With other text, contexts, schedule or size",
            _asked(others, folder),
            worth.rule_table(others),
        ]
    return parts


def _asked(studies: Sequence[StudyResults], folder: PurePath) -> str:
    """Links and questions, in one paragraph."""
    return " ".join(f"[{one.name}]({folder / one.name}.md): {one.definition.question}" for one in studies)


def page(study: StudyResults) -> str:
    """Return the page of a study."""
    parts = [f"# {study.name}", study.definition.question]
    if study.done:
        streamed = study.definition.stream.domains and study.lengths
        verdicts = "" if study.definition.adapt else _sentences(study)  # theirs cross documents, too: below
        parts += [verdicts, streams.table(study) if streamed else _table(study), _definitions(study)]
        if study.definition.adapt:
            parts.append(f"## Beside a cache and writes at test time\n\n{worth.section(study)}")
        parts += [_timed(study), _rates(study), _provenance(study)]
    else:
        parts.append(f"Not run ({study.planned} trainings).")
    parts.append("\n".join(f"- `{a.name}` cannot be run: {a.missing}." for a in study.arms if a.missing))
    return "\n\n".join(part for part in parts if part) + "\n"


def _timed(study: StudyResults) -> str:
    """The same question with every arm trained for as long as one of them."""
    timed, reference = study.at_equal_time(), study.definition.equal_time
    if timed is None:
        return ""
    said, verdicts = [], [_verdict(timed, arm) for arm in timed.arms[1:]]
    for arm in study.arms:
        if arm.timed:
            # What diverged has no steps.
            steps = max(t.steps for t in arm.timed.values())
            ordinary = max(t.steps for t in arm.trainings) or 1
            said.append(f"`{arm.name}` {steps} steps for {ordinary} ({steps / ordinary:.2g} times)")
    text = (
        f"At equal time: arms whose steps cost otherwise than `{reference}`'s (by over a tenth) were trained again "
        f"for as long as it was, by the least CPU time of a step: {', '.join(said)}."
    )
    there = next(_ran(arm.trainings) for arm in study.arms if arm.name == reference)
    elsewhere = [f"`{arm.name}`" for arm in study.arms if arm.timed and not _ran(arm.timed.values()) & there]
    if elsewhere:
        text += (
            f" The seconds below are not all of one machine: {', '.join(elsewhere)} took these steps on another than "
            f"`{reference}` ran on."
        )
    return "\n\n".join([text, "\n".join(f"- {line}" for line in verdicts if line), _table(timed)])


def _ran(trainings: Iterable[Record]) -> set[str]:
    """On which machines."""
    return {training.machine for training in trainings}


def _short(study: StudyResults) -> str:
    """Who is better and who worse than the first arm, and where; who is neither."""
    arms = [arm for arm in study.arms[1:] if not arm.missing]
    if study.definition.stream.domains:
        return "; ".join(streams.short(study, arm) for arm in arms)
    said: dict[str, list[str]] = {word: [] for word in WORDS}
    for arm in arms:
        found = {n: v for n in study.lengths if (v := verdict(study, arm, n))}
        if not found:
            said["not decided"].append(arm.name)
        elif {v.word for v in found.values()} == {"no difference"}:
            widest = max(v.half for v in found.values())
            said["no difference"].append(f"{arm.name} (±{widest:.2g})")
        for word in WORDS[:2]:
            where = [n for n, v in found.items() if v.word == word]
            if where:
                largest = max((found[n].difference for n in where), key=abs)
                at = "" if len(where) == len(study.lengths) else f" at {', '.join(map(str, where))}"
                said[word].append(f"{arm.name}{at} ({largest:+.3f})")
    return "; ".join(f"**{word}** {', '.join(names)}" for word, names in said.items() if names)


def _sentences(study: StudyResults) -> str:
    """Verdicts, what was solved, and facts of the definition that a reader has to know."""
    if study.definition.stream.domains:
        lines = streams.sentences(study)
    else:
        lines = [sentence for arm in study.arms[1:] for sentence in [_verdict(study, arm)] if sentence]
    if study.metric == "task_accuracy":
        lines += [_solved(study, arm) for arm in study.arms if arm.seeds]
    for arm in study.arms:
        config = arm.composed.config
        length, model = config.length, config.model
        chunk = min(config.memory_chunks or [model.memory.chunk])
        deep = model.variant.startswith(("hope", "self_modifying", "titans"))
        if deep and model.variant != "hope_attention" and length <= chunk:
            lines.append(
                f"`{arm.name}` was trained on {length} tokens, its memory's chunk is {chunk}: training never "
                "saw a chunk's boundary, longer tests do."
            )
        teaches = model.variant.startswith("hope") and model.cms.teach_scale > 0
        if teaches and length <= (segment := min(model.cms.chunks())):
            lines.append(
                f"`{arm.name}`: its fastest CMS level writes every {segment} tokens: never in training on "
                f"{length}, for the first time in longer tests."
            )
    return "\n".join(f"- {line}" for line in lines)


def _verdict(study: StudyResults, arm: ArmResults) -> str:
    first, parts = study.arms[0].name, []
    if not arm.seeds or not study.arms[0].seeds:
        return ""
    for length in study.lengths:
        found = verdict(study, arm, length)
        if found is None:
            common = len(
                arm.values(study.metric, length).keys() & study.arms[0].values(study.metric, length).keys()
            )
            parts.append(f"not decided at {length} ({common} seeds in common)")
        else:
            interval = f"{found.difference:+.3f}, 95 % [{found.low:+.3f}, {found.high:+.3f}], {found.n} seeds"
            parts.append(f"{found.word} at {length} ({interval})")
    for one in (arm, study.arms[0]):  # whoever is judged by its survivors is judged too well
        if failed := sum(bool(t.failed) for t in one.seeds.values()):
            parts.append(f"left out, diverged: {failed} of {len(one.seeds)} seeds of `{one.name}`")
    return f"`{arm.name}` against `{first}`: {'; '.join(parts)}."


def _solved(study: StudyResults, arm: ArmResults) -> str:
    means = {length: arm.values(study.metric, length) for length in study.lengths}
    whole = {n: vs for n, vs in means.items() if len(vs) == len(arm.seeds)}  # what diverged solves nothing
    solved = [n for n, vs in whole.items() if min(v.value for v in vs.values()) >= SOLVED]
    text = (
        f"solves it (≥ {SOLVED} with every seed, {len(arm.seeds)} of them) at {', '.join(map(str, solved))}"
    )
    return f"`{arm.name}` {text if solved else 'solves it at no length'}."


def _table(study: StudyResults) -> str:
    info = METRICS[study.metric]
    better = "lower" if info.lower_is_better else "higher"
    asked = f", n {study.counts[0]} each" if study.counts else ""
    chance = f", chance {study.chances[0]:.3g}" if study.chances else ""
    head = [f"{info.title} at {length}" for length in study.lengths]
    columns = ["parameters", "state, kB", "tokens", "seconds", "tokens/s", "FLOPs"]
    rows = [
        f"{info.title} by tokens of the sequence; {better} is better{asked}{chance}. Trained at "
        f"{study.arms[0].composed.config.length} tokens.",
        "",
        "| " + " | ".join(["arm", "learning rate", "seeds", *head, *columns]) + " |",
        "|---|" + "---:|" * (2 + len(head) + len(columns)),
    ]
    rows += ["| " + " | ".join(_cells(study, arm)) + " |" for arm in study.arms]
    return "\n".join(rows)


def _definitions(study: StudyResults) -> str:
    """What each arm is: a run, and what is changed there."""
    texts = []
    for arm in study.arms:
        settings = arm.composed.settings
        changes = [*settings.overrides, *(["writes=" + ",".join(settings.writes)] if settings.writes else [])]
        if changes or settings.run != arm.name:
            texts.append(
                f"`{arm.name}` is `{settings.run}`" + (f" with `{' '.join(changes)}`" if changes else "")
            )
    return f"{'; '.join(texts)}." if texts else ""


def _cells(study: StudyResults, arm: ArmResults) -> list[str]:
    size_of_state = state_bytes(arm.composed)
    state = f"{size_of_state / 1000:.1f}" if size_of_state else "-"
    size, cells = [f"{arm.composed.parameters:,}", state], [arm.name]
    trainings = list(arm.seeds.values())
    if not trainings:
        word = "cannot be run" if arm.missing else "not run"
        return [*cells, word, "0", *["-"] * len(study.lengths), *size, *["-"] * 4]
    failed = sum(bool(t.failed) for t in trainings)
    cells += [f"{trainings[0].lr:.2g}", str(len(trainings)) + (f", {failed} diverged" if failed else "")]
    for length in study.lengths:
        values = [v.value for v in arm.values(study.metric, length).values()]
        cells.append(value(*mean_error(values)) if values else "-")
    whole = [t for t in trainings if not t.failed]
    cells += size
    if not whole:
        return [*cells, *["-"] * 4]
    seconds, speed = cost(whole)
    return [*cells, f"{whole[0].tokens:,}", seconds, speed, f"{whole[0].flops:.2g}"]


def _rates(study: StudyResults) -> str:
    """What validation said of each learning rate; a choice at the end of what was tried may not be the best."""
    rows = []
    for arm in study.arms:
        tried = sorted(arm.tuned)
        if not tried:
            continue
        said = [_rate(arm, rate) for rate in tried]
        note = ""
        if len(tried) < arm.rates:
            note = " (not all tried yet)"
        elif arm.chosen in (tried[0], tried[-1]) and not _solves(arm.tuned[arm.chosen]):
            note = " (the best is at the end of what was tried)"
        rows.append(f"- {arm.name}: {'; '.join(said)}{note}")
    longer = " / at the longest validated length" if study.metric == "task_accuracy" else ""
    several = " and by seed; the mean decides" if study.definition.rate_seeds > 1 else ""
    head = f"Validation loss (nats per token){longer} by learning rate{several}:"
    return "\n".join([head, "", *rows]) if rows else ""


def _solves(training: Record) -> bool:
    return training.validation.get("val_accuracy", 0.0) >= SOLVED


def _rate(arm: ArmResults, rate: float) -> str:
    first = arm.tuned[rate]
    said = [_losses(one) for one in (first, *arm.again) if one.rate == rate]
    text = f"{first.lr:.2g}: {', '.join(said)}"
    return f"**{text}**" if rate == arm.chosen else text


def _losses(training: Record) -> str:
    found, prefix = training.validation, "val_loss_"
    longer = {int(key[len(prefix) :]): loss for key, loss in found.items() if key.startswith(prefix)}
    losses = [] if training.failed else [found["val_loss"], *([longer[max(longer)]] if longer else [])]
    return " / ".join(f"{loss:.4f}" for loss in losses) or "diverged"


def _provenance(study: StudyResults) -> str:
    trainings = [t for arm in study.arms for t in arm.trainings]
    revisions = sorted(
        {t.revision[:12] + ("-dirty" if t.revision.endswith("-dirty") else "") for t in trainings}
    )
    planned = study.definition.seeds
    seeds, machines = ", ".join(map(str, planned)), sorted({t.machine for t in trainings} - {""})
    where = f"; on {', '.join(machines)}" if machines else ""
    chose = study.definition.rates_of and f"by `{study.definition.rates_of}`"
    if not chose:
        number = study.definition.rate_seeds
        chose = f"with seed{'s' * (number > 1)} {', '.join(map(str, planned[:number]))}"
    return f"Seeds {seeds}, learning rates chosen {chose}; revision {', '.join(revisions)}{where}."
