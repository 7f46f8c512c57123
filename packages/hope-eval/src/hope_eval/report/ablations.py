"""The ablations' page: a question each, its table and picture, and sentences that the numbers decide."""

import os
from collections.abc import Iterable
from pathlib import Path

from hope_data.publishing import write_atomic
from hope_eval.report import ablation_plots, ablation_streams
from hope_eval.report.ablation_data import Arm, Study, Training, load, mean_error, spent, verdict
from hope_eval.results import METRICS, value

SOLVED = 0.99
INTRODUCTION = """\
Written by `hope-eval ablations` from the JSON files of `hope-train ablations`; nothing here is typed by hand. Every arm
gets its own learning rate: the best of several on validation with the first seed; then come the other seeds. Of rates
that solve a task (a loss of at most 0.001) the one whose loss is lowest at the longest validated length counts. Numbers
are means over seeds ± one standard error over seeds. A verdict compares an arm with the first one, paired over seeds,
by Student's 95 % interval; intervals are not corrected for their number. Such an interval is 4.3 standard errors wide
on each side with three seeds, 2.8 with five: "no difference" says that these numbers show none, not that there is none;
"not decided", that fewer than three seeds are in common. All arms of a study see equally many tokens, except in the
tables at equal time: there cheaper arms take as many more steps as their measured speed allows. Learning rates are
AdamW's; Muon's follow from them by the scale's fixed factor. Seconds are the CPU time of training steps, one thread, on
whatever machine it was, "-" where only the wall's clock was read (memories with the paper's gates or rules run in
torch, the others as C++ kernels); FLOPs are counted."""
WORDS = ("better", "worse", "no difference", "not decided")


def write(results: Path, out: Path, plots: Path) -> None:
    """Draw the pictures and write the page.

    Args:
        results: folder with `plan.json` and a folder per study.
        out: Markdown file.
        plots: folder for the pictures.
    """
    studies = load(results)
    images = {
        name: os.path.relpath(plots / file, out.parent) for name, file in ablation_plots.draw(studies, plots)
    }
    write_atomic(out, page(studies, images).encode())


def page(studies: list[Study], images: dict[str, str]) -> str:
    """The Markdown page; `images` by study."""
    done, planned = sum(s.done for s in studies), sum(s.planned for s in studies)
    parts = ["# Ablations", INTRODUCTION, f"**{done} of {planned} trainings are done.**", _overview(studies)]
    waiting = [f"{study.name} ({study.planned} trainings)" for study in studies if not study.done]
    if waiting:
        parts.append(f"Not run: {', '.join(waiting)}.")
    for study in studies:
        if study.done:
            parts += [f"## {study.name}", study.plan.question]
            streamed = study.plan.stream.domains and study.lengths
            parts += [_sentences(study), ablation_streams.table(study) if streamed else _table(study)]
            if study.name in images:
                parts.append(f"![{study.plan.question}]({images[study.name]})")
            parts.append(_definitions(study))
            parts += [_timed(study), _rates(study), _provenance(study)]
        missing = [
            f"- `{arm.name}` cannot be run: {arm.plan.missing}." for arm in study.arms if arm.plan.missing
        ]
        parts.append("\n".join(missing))
    return "\n\n".join(part for part in parts if part) + "\n"


def _timed(study: Study) -> str:
    """The same question where all arms trained for as long as one of them."""
    timed, reference = study.at_equal_time(), study.plan.equal_time
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


def _ran(trainings: Iterable[Training]) -> set[str]:
    """On which machines."""
    return {training.machine for training in trainings}


def _overview(studies: list[Study]) -> str:
    rows = [
        "In brackets: the largest difference, or where there is none the half width of the widest 95 % interval: "
        "a wide one says that these seeds cannot tell.",
        "",
        "| study | against | at equal tokens | at equal time | trainings |",
        "|---|---|---|---|---|",
    ]
    for study in studies:
        if study.done:
            timed, link = study.at_equal_time(), f"[{study.name}](#{study.name})"
            cells = [link, study.arms[0].name, _short(study), _short(timed) if timed else ""]
            rows.append(f"| {' | '.join(cells)} | {study.done} of {study.planned} |")
    return "\n".join(rows)


def _short(study: Study) -> str:
    """Who is better and who worse than the first arm, and where; who is neither."""
    arms = [arm for arm in study.arms[1:] if not arm.plan.missing]
    if study.plan.stream.domains:
        return "; ".join(ablation_streams.short(study, arm) for arm in arms)
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


def _sentences(study: Study) -> str:
    """Verdicts, what was solved, and facts of the definition that a reader has to know."""
    if study.plan.stream.domains:
        lines = ablation_streams.sentences(study)
    else:
        lines = [sentence for arm in study.arms[1:] for sentence in [_verdict(study, arm)] if sentence]
    if study.metric == "task_accuracy":
        lines += [_solved(study, arm) for arm in study.arms if arm.seeds]
    for arm in study.arms:
        plan, deep = arm.plan, arm.plan.variant.startswith(("hope", "self_modifying", "titans"))
        if deep and arm.plan.variant != "hope_attention" and plan.length <= plan.chunk:
            lines.append(
                f"`{arm.name}` was trained on {plan.length} tokens, its memory's chunk is {plan.chunk}: training never "
                "saw a chunk's boundary, longer tests do."
            )
        if plan.segment and plan.length <= plan.segment:
            lines.append(
                f"`{arm.name}`: its fastest CMS level writes every {plan.segment} tokens: never in training on "
                f"{plan.length}, for the first time in longer tests."
            )
    return "\n".join(f"- {line}" for line in lines)


def _verdict(study: Study, arm: Arm) -> str:
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


def _solved(study: Study, arm: Arm) -> str:
    means = {length: arm.values(study.metric, length) for length in study.lengths}
    whole = {n: vs for n, vs in means.items() if len(vs) == len(arm.seeds)}  # what diverged solves nothing
    solved = [n for n, vs in whole.items() if min(v.value for v in vs.values()) >= SOLVED]
    text = (
        f"solves it (≥ {SOLVED} with every seed, {len(arm.seeds)} of them) at {', '.join(map(str, solved))}"
    )
    return f"`{arm.name}` {text if solved else 'solves it at no length'}."


def _table(study: Study) -> str:
    chances = {
        v.chance for arm in study.arms for t in arm.seeds.values() for v in t.metrics if v.chance is not None
    }
    info = METRICS[study.metric]
    better = "lower" if info.lower_is_better else "higher"
    counts = {v.n for arm in study.arms for t in arm.seeds.values() for v in t.metrics}
    asked = f", n {min(counts)} each" if counts else ""
    chance = f", chance {min(chances):.3g}" if chances else ""
    head = [f"{info.title} at {length}" for length in study.lengths]
    cost = ["parameters", "state, kB", "tokens", "seconds", "tokens/s", "FLOPs"]
    rows = [
        f"{info.title} by tokens of the sequence; {better} is better{asked}{chance}. Trained at "
        f"{study.arms[0].plan.length} tokens.",
        "",
        "| " + " | ".join(["arm", "learning rate", "seeds", *head, *cost]) + " |",
        "|---|" + "---:|" * (2 + len(head) + len(cost)),
    ]
    rows += ["| " + " | ".join(_cells(study, arm)) + " |" for arm in study.arms]
    return "\n".join(rows)


def _definitions(study: Study) -> str:
    """What each arm is: a run, and what is changed there."""
    said = [
        f"`{arm.name}` is `{arm.plan.run}`"
        + (f" with `{' '.join(arm.plan.overrides)}`" if arm.plan.overrides else "")
        for arm in study.arms
        if arm.plan.overrides or arm.plan.run not in ("", arm.name)
    ]
    return f"{'; '.join(said)}." if said else ""


def _cells(study: Study, arm: Arm) -> list[str]:
    state = f"{arm.plan.state_bytes / 1000:.1f}" if arm.plan.state_bytes else "-"
    size, cells = [f"{arm.plan.parameters:,}", state], [arm.name]
    trainings = list(arm.seeds.values())
    if not trainings:
        word = "cannot be run" if arm.plan.missing else "not run"
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
    seconds, speed = spent(whole)
    return [*cells, f"{whole[0].tokens:,}", seconds, speed, f"{whole[0].flops:.2g}"]


def _rates(study: Study) -> str:
    """What validation said of each learning rate; a choice at the end of what was tried may not be the best."""
    rows = []
    for arm in study.arms:
        tried = sorted(arm.tuned)
        if not tried:
            continue
        said = [_rate(arm.tuned[rate], chosen=rate == arm.plan.chosen) for rate in tried]
        note = ""
        if len(tried) < arm.plan.rates(study.plan.seeds):
            note = " (not all tried yet)"
        elif arm.plan.chosen in (tried[0], tried[-1]) and not _solves(arm.tuned[arm.plan.chosen]):
            note = " (the best is at the end of what was tried)"
        rows.append(f"- {arm.name}: {'; '.join(said)}{note}")
    longer = " / at the longest validated length" if study.metric == "task_accuracy" else ""
    return "\n".join([f"Validation loss (nats per token){longer} by learning rate:", "", *rows])


def _solves(training: Training) -> bool:
    return training.validation.get("val_accuracy", 0.0) >= SOLVED


def _rate(training: Training, *, chosen: bool) -> str:
    found, prefix = training.validation, "val_loss_"
    longer = {int(key[len(prefix) :]): loss for key, loss in found.items() if key.startswith(prefix)}
    losses = [] if training.failed else [found["val_loss"], *([longer[max(longer)]] if longer else [])]
    text = f"{training.lr:.2g}: " + (" / ".join(f"{loss:.4f}" for loss in losses) or "diverged")
    return f"**{text}**" if chosen else text


def _provenance(study: Study) -> str:
    trainings = [t for arm in study.arms for t in arm.trainings]
    revisions = sorted(
        {t.revision[:12] + ("-dirty" if t.revision.endswith("-dirty") else "") for t in trainings}
    )
    plan = study.plan
    seeds, machines = ", ".join(map(str, plan.seeds)), sorted({t.machine for t in trainings} - {""})
    where = f"; on {', '.join(machines)}" if machines else ""
    return f"Seeds {seeds}, learning rates chosen with seed {plan.seeds[0]}; revision {', '.join(revisions)}{where}."
