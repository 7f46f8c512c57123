"""Studies that were trained twice, on two machines say: which numbers and which verdicts replicate."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from hope_eval.report.tables import table
from hope_eval.results import METRICS, value
from hope_model.errors import InputError
from hope_study import study as definitions
from hope_study.choose_rate import score
from hope_study.records import Record
from hope_study.report.data import ArmResults, StudyResults, mean_error, verdict
from hope_study.store import Store

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
        """Absolute difference of the means."""
        return abs(self.pair[0][0] - self.pair[1][0])

    @property
    def changed(self) -> bool:
        """Whether the verdicts differ."""
        return len(set(self.words)) > 1

    @property
    def reversed(self) -> bool:
        """Whether a better became a worse, or a worse a better."""
        return self.changed and NONE not in self.words


def compare(a: Path, b: Path, conf: Path) -> tuple[list[Row], list[str]]:
    """Return rows of what both folders have, and `study/arm` of what is defined otherwise in the second.

    Args:
        a: folder of records.
        b: another.
        conf: with the studies, for the order of their arms and seeds.

    Raises:
        InputError: a spoilt record, or nothing in common.
    """
    rows: list[Row] = []
    otherwise: list[str] = []
    stores = Store(a), Store(b)
    for name, definition in definitions.load(conf, []).items():
        if definition.stream.domains or not all(store.records(name) for store in stores):
            continue
        pairs = []
        for arm in definition.arms:
            ours, theirs = (_records(store, name, arm) for store in stores)
            if any(ours[run].sha256 != theirs[run].sha256 for run in ours.keys() & theirs.keys()):
                otherwise.append(f"{name}/{arm}")
            elif ours and theirs:
                pairs.append(_common(_arm(definition, arm, ours), _arm(definition, arm, theirs)))
        rows += _rows(name, definition, pairs)
    if not rows:
        raise InputError(f"{a}, {b}: no arm of one definition has records in both; name folders of *.jsonl")
    return rows, otherwise


def _records(store: Store, study: str, arm: str) -> dict[str, Record]:
    """An arm's records at equal tokens, by run."""
    return {
        run: record
        for (name, run), record in store.records(study).items()
        if name == arm and "-steps" not in run
    }


def _arm(definition: definitions.Study, name: str, records: dict[str, Record]) -> ArmResults:
    first = definition.seeds[0]
    tuned = {record.rate: record for record in records.values() if record.seed == first}
    chosen = min(sorted(tuned), key=lambda rate: score(tuned[rate].validation), default=None)
    seeds = {r.seed: r for r in records.values() if r.rate == chosen and r.seed in definition.seeds}
    return ArmResults(name, None, tuned, seeds, chosen=chosen)


def _common(arm: ArmResults, other: ArmResults) -> tuple[ArmResults, ArmResults]:
    """Both with the seeds that both have; what diverged in one counts in neither."""
    seeds = [
        seed
        for seed in sorted(arm.seeds.keys() & other.seeds.keys())
        if not (arm.seeds[seed].failed or other.seeds[seed].failed)
    ]
    ours, theirs = (replace(x, seeds={s: x.seeds[s] for s in seeds}) for x in (arm, other))
    return ours, theirs


def _rows(
    name: str, definition: definitions.Study, pairs: list[tuple[ArmResults, ArmResults]]
) -> Iterator[Row]:
    # Verdicts are against the first arm, so both must have it.
    judged = bool(pairs) and pairs[0][0].name == next(iter(definition.arms))
    sides = [StudyResults(name, definition, [pair[n] for pair in pairs]) for n in range(2)]
    for number, pair in enumerate(pairs):
        for length in sides[0].lengths:
            metric = sides[0].metric
            ours, others = ([v.value for v in arm.values(metric, length).values()] for arm in pair)
            if not ours or not others:
                continue
            verdicts = [verdict(side, arm, length) for side, arm in zip(sides, pair, strict=True)]
            words = tuple(v.word for v in verdicts if v) if judged and number and all(verdicts) else ()
            means = mean_error(ours), mean_error(others)
            yield Row(name, pair[0].name, metric, length, len(ours), means, words)


def page(a: Path, b: Path, conf: Path, *, whole: bool) -> str:
    """Return sentences, and a table of the rows whose verdict changed, or of all (`whole`)."""
    rows, otherwise = compare(a, b, conf)
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
                f"{row.study}/{row.arm}",
                *(str(row.length), str(row.n)),
                *(value(*mean) for mean in row.pair),
                *(row.words or ("", "")),
            ]
            for row in shown
        ]
        head = ["arm", "length", "seeds", "first", "second", "verdict of the first", "of the second"]
        lines += ["", table(head, cells)]
    return "\n".join(lines)
