"""Studies that were trained twice, on two machines say: which numbers and which verdicts came again."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from hope_data.errors import InputError
from hope_eval.report.ablation_data import Arm, Study, load, mean_error, verdict
from hope_eval.report.tables import table
from hope_eval.results import METRICS, value

NONE = "no difference"
EXPLAINED = """\
Means over the seeds that both have and that diverged in neither, ± one standard error over seeds, each with the
learning rate that its own validation chose; verdicts against a study's first arm, at equal tokens. Streams and equal
time are left out: the latter's steps follow a machine's speed."""


@dataclass(frozen=True)
class Row:
    """An arm at one length in both folders.

    Attributes:
        study: its name.
        arm: its name.
        metric: what was measured.
        length: tokens of the sequence.
        n: seeds in common, without those that diverged.
        pair: mean and standard error in each folder.
        words: verdict in each folder; empty for the first arm and below three seeds.
    """

    study: str
    arm: str
    metric: str
    length: int
    n: int
    pair: tuple[tuple[float, float | None], tuple[float, float | None]]
    words: tuple[str, ...]

    @property
    def apart(self) -> float:
        """Difference of the means, without its sign."""
        return abs(self.pair[0][0] - self.pair[1][0])

    @property
    def changed(self) -> bool:
        """Whether the verdicts differ."""
        return len(set(self.words)) > 1

    @property
    def reversed(self) -> bool:
        """Whether a better became a worse, or a worse a better."""
        return self.changed and NONE not in self.words


def compare(a: Path, b: Path) -> tuple[list[Row], list[str]]:
    """Rows of what both folders have, and `study/arm` of what is defined otherwise in the second.

    Raises:
        InputError: a folder without `plan.json`, or nothing in common.
    """
    others = {study.name: study for study in load(b)}
    made: list[Row] = []
    otherwise: list[str] = []
    for study in load(a):
        if study.name in others and not study.plan.stream.domains:
            other = others[study.name]
            otherwise += [f"{study.name}/{name}" for name in _otherwise(study, other)]
            made += _rows(study, other)
    if not made:
        raise InputError(f"{a}, {b}: no arm of one definition has results in both")
    return made, otherwise


def _otherwise(study: Study, other: Study) -> list[str]:
    """Arms of both whose trainings are of another definition: other equations, steps or overrides."""
    theirs = {arm.name: arm.plan.units for arm in other.arms}
    return [
        arm.name
        for arm in study.arms
        if arm.name in theirs
        and any(theirs[arm.name].get(unit, sha256) != sha256 for unit, sha256 in arm.plan.units.items())
    ]


def _rows(study: Study, other: Study) -> Iterator[Row]:
    theirs = {arm.name: arm for arm in other.arms}
    left_out = _otherwise(study, other)
    pairs = [
        _common(arm, theirs[arm.name])
        for arm in study.arms
        if arm.name in theirs and arm.name not in left_out
    ]
    # Verdicts are against the first arm, so both must have it.
    judged = bool(pairs) and pairs[0][0].name == study.arms[0].name
    sides = [replace(s, arms=[pair[n] for pair in pairs]) for n, s in enumerate((study, other))]
    for number, pair in enumerate(pairs):
        for length in study.lengths:
            ours, others = ([v.value for v in arm.values(study.metric, length).values()] for arm in pair)
            if not ours or not others:
                continue
            found = [verdict(side, arm, length) for side, arm in zip(sides, pair, strict=True)]
            words = tuple(v.word for v in found if v) if judged and number and all(found) else ()
            means = mean_error(ours), mean_error(others)
            yield Row(study.name, pair[0].name, study.metric, length, len(ours), means, words)


def _common(arm: Arm, other: Arm) -> tuple[Arm, Arm]:
    """Both with the seeds that both have; what diverged in one counts in neither."""
    seeds = [
        seed
        for seed in sorted(arm.seeds.keys() & other.seeds.keys())
        if not (arm.seeds[seed].failed or other.seeds[seed].failed)
    ]
    ours, theirs = (replace(x, seeds={s: x.seeds[s] for s in seeds}) for x in (arm, other))
    return ours, theirs


def page(a: Path, b: Path, *, whole: bool) -> str:
    """Sentences, and a table of the rows whose verdict changed, or of all (`whole`)."""
    rows, otherwise = compare(a, b)
    lines = [EXPLAINED, ""]
    for metric in dict.fromkeys(row.metric for row in rows):
        of = [row for row in rows if row.metric == metric]
        worst = max(of, key=lambda row: row.apart)
        arms = len({(row.study, row.arm) for row in of})
        lines.append(
            f"- {METRICS[metric].title}: {arms} arms, {len(of)} means; they differ by "
            f"{median(row.apart for row in of):.3f} (median) and at most {worst.apart:.3f} "
            f"({worst.study}/{worst.arm} at {worst.length})."
        )
    judged = [row for row in rows if row.words]
    changed, turned = [row for row in judged if row.changed], [row for row in judged if row.reversed]
    lines.append(
        f"- Verdicts: of {len(judged)} in both {len(judged) - len(changed)} are the same, "
        f"{len(changed) - len(turned)} went between a difference and none, {len(turned)} reversed."
    )
    if otherwise:
        lines.append(f"- Defined otherwise and left out: {', '.join(otherwise)}.")
    shown = rows if whole else changed
    if shown:
        cells = [
            [
                f"{r.study}/{r.arm}",
                *(str(r.length), str(r.n)),
                *(value(*mean) for mean in r.pair),
                *(r.words or ("", "")),
            ]
            for r in shown
        ]
        head = ["arm", "length", "seeds", "first", "second", "verdict of the first", "of the second"]
        lines += ["", table(head, cells)]
    return "\n".join(lines)
