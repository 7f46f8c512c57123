"""A study with its records, and what follows from them by arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, stdev

from scipy.stats import t as student

from hope_eval.results import METRICS
from hope_eval.results.statistics import LEAST
from hope_model import counting
from hope_study.ledger import Ledger
from hope_study.records import Record, Value
from hope_study.store import Store
from hope_study.study import Arm, Study


@dataclass(frozen=True)
class ArmResults:
    """An arm with its records.

    Attributes:
        name: of the arm.
        arm: its definition, composed; None where only records are compared (`replication`).
        tuned: by learning-rate factor, with the first seed.
        again: of the other seeds that chose.
        seeds: by seed, of the rate that validated best.
        timed: at equal time, by seed.
        chosen: factor of the rate that validated best; None before any was tried.
        rates: learning rates that are to be tried.
        longer: trainings at equal time; None before it is known which.
    """

    name: str
    arm: Arm | None
    tuned: dict[float, Record]
    seeds: dict[int, Record]
    timed: dict[int, Record] = field(default_factory=dict)
    chosen: float | None = None
    rates: int = 0
    longer: int | None = 0
    again: list[Record] = field(default_factory=list)

    @property
    def composed(self) -> Arm:
        """The arm's definition."""
        assert self.arm is not None  # noqa: S101
        return self.arm

    @property
    def missing(self) -> str:
        """Why the arm cannot be run, or ''."""
        return self.composed.settings.missing

    @property
    def trainings(self) -> list[Record]:
        """All ordinary records; the one that both chose the rate and counts, once."""
        chose = [*self.tuned.values(), *self.again]
        return [*chose, *(record for record in self.seeds.values() if record not in chose)]

    def values(self, metric: str, length: int) -> dict[int, Value]:
        """Return a measured number by seed."""
        by_seed = {
            seed: [v for v in record.metrics if (v.name, v.length) == (metric, length)]
            for seed, record in self.seeds.items()
        }
        return {seed: values[0] for seed, values in by_seed.items() if values}


@dataclass(frozen=True)
class StudyResults:
    """A study with its results; the first arm is the one that the others are compared with."""

    name: str
    definition: Study
    arms: list[ArmResults]

    @property
    def metric(self) -> str:
        """What the study measures: accuracy of a task, or bits per byte of text."""
        return next((value.name for value in self._values()), "task_accuracy")

    @property
    def lengths(self) -> list[int]:
        """Measured lengths, ascending."""
        return sorted({value.length for value in self._values()})

    def _values(self) -> list[Value]:
        return [value for arm in self.arms for record in arm.seeds.values() for value in record.metrics]

    @property
    def chances(self) -> list[float]:
        """What guessing would give, wherever that exists."""
        return sorted({value.chance for value in self._values() if value.chance is not None})

    @property
    def counts(self) -> list[int]:
        """Items of the measured numbers."""
        return sorted(
            {value.n for value in self._values() if value.name == self.metric and "/" not in value.group}
        )

    @property
    def done(self) -> int:
        """Trainings that have a record."""
        return sum(len(arm.trainings) + len(arm.timed) for arm in self.arms)

    @property
    def planned(self) -> int:
        """Trainings there are to be, without arms that cannot be run."""
        wanted = [arm for arm in self.arms if not arm.missing]
        study = self.definition
        ordinary = len(study.seeds) - (0 if study.rates_of else study.rate_seeds)
        return sum(arm.rates * study.rate_seeds + ordinary + (arm.longer or 0) for arm in wanted)

    def at_equal_time(self) -> StudyResults | None:
        """Return the study with the trainings at equal time in the place of others; None where there are none.

        An arm with nothing to be trained at equal time costs as much as the reference, or is it.
        """
        if not any(arm.timed for arm in self.arms):
            return None
        arms = [
            replace(arm, tuned={}, again=[], seeds=arm.seeds if arm.longer == 0 else arm.timed)
            for arm in self.arms
        ]
        return replace(self, arms=arms)


def collect(ledger: Ledger) -> list[StudyResults]:
    """Return every study of a ledger with the records that are of its definition."""
    studies: dict[str, list[Arm]] = {}
    for arm in ledger.arms:
        studies.setdefault(arm.study, []).append(arm)
    return [
        StudyResults(name, arms[0].definition, [_arm(ledger, arm) for arm in arms])
        for name, arms in studies.items()
    ]


def on_locked(study: StudyResults, store: Store) -> StudyResults:
    """The trainings that were measured on the locked documents, also where another rate has been chosen since."""
    records = store.records(study.name).values()
    arms = [
        replace(arm, tuned={}, again=[], timed={}, seeds={r.seed: r for r in records if r.arm == arm.name})
        for arm in study.arms
    ]
    return replace(study, arms=arms)


def _arm(ledger: Ledger, arm: Arm) -> ArmResults:
    tuning, chosen = ledger.tuning(arm), ledger.chosen(arm)
    final = [] if chosen is None else ledger.final(arm)
    longer = ledger.at_equal_time(arm)
    tuned, seeds, timed = (
        [record for one in trainings if (record := ledger.result(one))]
        for trainings in (tuning, final, longer or [])
    )
    return ArmResults(
        arm.name,
        arm,
        {record.rate: record for record in tuned if record.seed == arm.definition.seeds[0]},
        {record.seed: record for record in seeds},
        {record.seed: record for record in timed},
        chosen,
        len({one.rate for one in tuning}),
        None if longer is None else len(longer),
        [record for record in tuned if record.seed != arm.definition.seeds[0]],
    )


def state_bytes(arm: Arm) -> int:
    """Bytes of one sequence's state after the training's length; 0 for text, where it is not the question."""
    return counting.state_bytes(arm.config.model, arm.config.length) if arm.config.data.task else 0


def mean_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean, and its standard error from two values on."""
    return fmean(values), stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def cost(records: Sequence[Record]) -> tuple[str, str]:
    """Return mean CPU seconds of the training steps, and tokens by it; '-' where none were measured."""
    timed = [record for record in records if record.step_seconds]
    if not timed:
        return "-", "-"
    seconds = fmean(record.step_seconds for record in timed)
    return f"{seconds:.0f}", f"{timed[0].tokens / seconds:,.0f}"


@dataclass(frozen=True)
class Verdict:
    """An arm minus the first one, paired over seeds: `low` and `high` bound Student's 95 % interval."""

    word: str
    difference: float
    low: float
    high: float
    n: int

    @property
    def half(self) -> float:
        """Half of the interval's width."""
        return (self.high - self.low) / 2


def verdict(study: StudyResults, arm: ArmResults, length: int) -> Verdict | None:
    """Compare an arm with the first; None as in `paired`."""
    metric, sides = study.metric, [one.values(study.metric, length) for one in (arm, study.arms[0])]
    asked = min((value.n for side in sides for value in side.values()), default=0)
    ours, theirs = ({seed: value.value for seed, value in side.items()} for side in sides)
    return paired(ours, theirs, asked, lower_is_better=METRICS[metric].lower_is_better)


def paired(
    ours: dict[int, float], theirs: dict[int, float], asked: int, *, lower_is_better: bool
) -> Verdict | None:
    """Return `better`, `worse` or `no difference` by seed.

    None with fewer than three seeds in common, or where each number is of fewer than ten documents or sequences
    (`asked`): seeds that agree on so few say little of others.
    """
    seeds = sorted(ours.keys() & theirs.keys())
    if len(seeds) < 3 or asked < LEAST:
        return None
    mean, error = mean_error([ours[seed] - theirs[seed] for seed in seeds])
    half = float(student.ppf(0.975, len(seeds) - 1)) * (error or 0.0)
    low, high = mean - half, mean + half
    up, down = ("worse", "better") if lower_is_better else ("better", "worse")
    word = up if low > 0 else down if high < 0 else "no difference"
    return Verdict(word, mean, low, high, len(seeds))
