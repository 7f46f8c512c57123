"""What `hope-train ablations` leaves, read strictly, and what follows from it by arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from hope_data.errors import InputError
from hope_eval.results import METRICS, STRICT

SCHEMA = 1
# 0.975 quantile of Student's t by degrees of freedom.
T975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True)
class ArmPlan:
    """An arm.

    Attributes:
        units: first digits of its trainings' SHA-256 by file name.
        timed: the same of those at equal time; None before it is known which.
        run: file of conf/run that it is made of.
        overrides: what it changes there.
        state_bytes: of one sequence after the training's length; 0 where not measured.
        chosen: the learning rate's factor that validated best; None before any was tried.
    """

    __pydantic_config__ = STRICT
    parameters: int
    missing: str
    variant: str
    length: int
    chunk: int
    segment: int
    units: dict[str, str]
    timed: dict[str, str] | None = None
    run: str = ""
    overrides: list[str] = field(default_factory=list)
    state_bytes: int = 0
    chosen: float | None = None

    def rates(self, seeds: list[int]) -> int:
        """Learning rates that are to be tried."""
        return len(self.units) // len(seeds)


@dataclass(frozen=True)
class Stream:
    """What is learned after training; without domains, nothing."""

    __pydantic_config__ = STRICT
    domains: list[str]
    tokens: int
    held_out: int
    lr: float


@dataclass(frozen=True)
class StudyPlan:
    """A study as `plan.json` tells it; the first arm is the one the others are compared with."""

    __pydantic_config__ = STRICT
    question: str
    order: int
    scale: str
    rates: list[float]
    seeds: list[int]
    lengths: list[str]
    arms: dict[str, ArmPlan]
    stream: Stream = Stream([], 0, 0, 0.0)
    equal_time: str = ""


@dataclass(frozen=True)
class Value:
    """One measured number; `stderr` is over sequences, windows or documents; `group` names a way through a stream."""

    __pydantic_config__ = STRICT
    name: str
    length: int
    n: int
    value: float
    stderr: float | None
    chance: float | None
    group: str = ""


@dataclass(frozen=True)
class Training:
    """One training; `failed` says how it ended where it diverged."""

    __pydantic_config__ = STRICT
    schema: int
    sha256: str
    study: str
    arm: str
    seed: int
    rate: float
    lr: float
    matrix_lr: float
    variant: str
    parameters: int
    steps: int
    tokens: int
    seconds: float
    wall_seconds: float
    flops: float
    revision: str
    failed: str
    validation: dict[str, float]
    curve: list[dict[str, float]]
    metrics: list[Value]
    machine: str = ""
    step_seconds: float = 0.0


@dataclass(frozen=True)
class Arm:
    """An arm with its results: `tuned` by rate, `seeds` by seed, of the rate that validated best; `timed` likewise."""

    name: str
    plan: ArmPlan
    tuned: dict[float, Training]
    seeds: dict[int, Training]
    timed: dict[int, Training] = field(default_factory=dict)

    @property
    def trainings(self) -> list[Training]:
        """All of them; the one that both chose and counts, once."""
        return [*self.tuned.values(), *(t for t in self.seeds.values() if t not in self.tuned.values())]

    def values(self, metric: str, length: int) -> dict[int, Value]:
        """By seed."""
        found = {
            s: [v for v in t.metrics if (v.name, v.length) == (metric, length)] for s, t in self.seeds.items()
        }
        return {seed: values[0] for seed, values in found.items() if values}


@dataclass(frozen=True)
class Study:
    """A study with its results."""

    name: str
    plan: StudyPlan
    arms: list[Arm]

    @property
    def metric(self) -> str:
        """What it measures: accuracy of a task, or bits per byte of text."""
        return next(
            (v.name for arm in self.arms for t in arm.seeds.values() for v in t.metrics), "task_accuracy"
        )

    @property
    def lengths(self) -> list[int]:
        """Measured, ascending."""
        return sorted({v.length for arm in self.arms for t in arm.seeds.values() for v in t.metrics})

    @property
    def done(self) -> int:
        """Trainings that are there."""
        return sum(len(arm.trainings) + len(arm.timed) for arm in self.arms)

    @property
    def planned(self) -> int:
        """Trainings there are to be, without what cannot be run."""
        seeds = self.plan.seeds
        wanted = [arm.plan for arm in self.arms if not arm.plan.missing]
        return sum(plan.rates(seeds) + len(seeds) - 1 + len(plan.timed or {}) for plan in wanted)

    def at_equal_time(self) -> Study | None:
        """The study with the runs at equal time in the place of others; None where nobody asked or has any.

        An arm with nothing to be trained at equal time costs as much as the reference, or is it.
        """
        if not any(arm.timed for arm in self.arms):
            return None
        arms = [
            replace(arm, tuned={}, seeds=arm.seeds if arm.plan.timed == {} else arm.timed)
            for arm in self.arms
        ]
        return replace(self, arms=arms)


def load(folder: Path) -> list[Study]:
    """Every study of the plan, with the results that are of its definition.

    Raises:
        InputError: no plan, or a file that is none of ours.
    """
    plan = _validated(folder / "plan.json", dict[str, StudyPlan])
    return [
        Study(name, study, [_arm(folder, name, study, a) for a in study.arms]) for name, study in plan.items()
    ]


def _arm(folder: Path, name: str, study: StudyPlan, arm: str) -> Arm:
    plan = study.arms[arm]
    found = _found(folder / name / arm, plan.units)
    tuned = {t.rate: t for t in found if t.seed == study.seeds[0]}
    seeds = {t.seed: t for t in found if t.seed in study.seeds and t.rate == plan.chosen}
    timed = {t.seed: t for t in _found(folder / name / arm, plan.timed or {}) if t.rate == plan.chosen}
    return Arm(arm, plan, tuned, seeds, timed)


def _found(folder: Path, units: dict[str, str]) -> list[Training]:
    paths = [(folder / f"{unit}.json", sha256) for unit, sha256 in units.items()]
    read = [(_validated(path, Training), sha256) for path, sha256 in paths if path.is_file()]
    return [training for training, sha256 in read if training.sha256.startswith(sha256)]


T = TypeVar("T")


def _validated(path: Path, kind: type[T]) -> T:
    try:
        text = path.read_text(encoding="utf-8")
        return TypeAdapter(kind).validate_json(text)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; run `hope-train ablations` first") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}: {where}: {first['msg'].lower()}; remove the file and run again") from None


def mean_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and its standard error from two values on."""
    return fmean(values), stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def spent(trainings: Sequence[Training]) -> tuple[str, str]:
    """Mean CPU seconds of their steps, and tokens by it; of those it was measured of."""
    found = [t for t in trainings if t.step_seconds]
    if not found:
        return "-", "-"
    seconds = fmean(t.step_seconds for t in found)
    return f"{seconds:.0f}", f"{found[0].tokens / seconds:,.0f}"


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


def verdict(study: Study, arm: Arm, length: int) -> Verdict | None:
    """An arm against the first; None with fewer than three seeds in common."""
    metric = study.metric
    ours, theirs = ({s: v.value for s, v in a.values(metric, length).items()} for a in (arm, study.arms[0]))
    return paired(ours, theirs, lower_is_better=METRICS[metric].lower_is_better)


def paired(ours: dict[int, float], theirs: dict[int, float], *, lower_is_better: bool) -> Verdict | None:
    """`better`, `worse` or `no difference` by seed; None with fewer than three seeds in common."""
    seeds = sorted(ours.keys() & theirs.keys())
    if len(seeds) < 3:
        return None
    mean, error = mean_error([ours[seed] - theirs[seed] for seed in seeds])
    half = T975[min(len(seeds) - 2, len(T975) - 1)] * (error or 0.0)
    low, high = mean - half, mean + half
    up, down = ("worse", "better") if lower_is_better else ("better", "worse")
    word = up if low > 0 else down if high < 0 else "no difference"
    return Verdict(word, mean, low, high, len(seeds))
