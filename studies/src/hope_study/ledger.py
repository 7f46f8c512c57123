"""What a set of studies still needs: which trainings there are to be, which are done, and what the rest costs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from statistics import fmean

from hope_model.bench_settings import cpu_name
from hope_model.errors import InputError
from hope_study import equal_cost
from hope_study.choose_rate import extended, mean_score
from hope_study.records import Record
from hope_study.store import Store
from hope_study.study import Arm, Training

ASSUMED = 60.0  # seconds of a training that nobody has measured
_STEPS = re.compile(r"-steps(\d+)$")

Find = Callable[[Training], Record | None]


class Ledger:
    """Arms, and the records of their trainings.

    Args:
        arms: all arms of the studies concerned, in order.
        store: of the records.
        others: arms that those refer to.
        timed: records of another folder, which tell how long trainings take.
    """

    def __init__(
        self, arms: list[Arm], store: Store, others: Iterable[Arm] = (), timed: Iterable[Record] = ()
    ) -> None:
        self.arms, self.store = arms, store
        self._by_name = {(arm.study, arm.name): arm for arm in (*others, *arms)}
        # A training that several studies share is done once, so it is looked up by its definition, too.
        self._by_sha256: dict[str, Record] = {}
        records = list(store.all())
        self._durations = [*timed, *records]
        for record in records:
            self._by_sha256.setdefault(record.sha256, record)

    def runnable(self) -> list[Arm]:
        """Arms that can be trained."""
        return [arm for arm in self.arms if not arm.settings.missing]

    def result(self, training: Training) -> Record | None:
        """Return a training's record, if it is there and of this very definition."""
        record = self.store.records(training.arm.study).get((training.arm.name, training.name))
        return record if record and record.sha256 == training.sha256 else None

    def shared(self, training: Training) -> Record | None:
        """Return the record of an equal training, whichever study did it."""
        return self._by_sha256.get(training.sha256)

    def keep(self, record: Record) -> None:
        """Add a record to the store."""
        self._by_sha256[record.sha256] = record
        self._durations.append(record)
        self.store.add(record)

    def tuning(self, arm: Arm, find: Find | None = None) -> list[Training]:
        """Trainings that choose an arm's learning rate, as far as they are known."""
        study, find = arm.definition, find or self.result
        scores: dict[float, tuple[float, float]] = {}
        while not study.rates_of:
            grid = extended(study.rates, scores, study.widen)
            known = self._scores(arm, grid, find)
            if known == scores:
                return [arm.training(rate, seed) for rate in grid for seed in study.seeds[: study.rate_seeds]]
            scores = known
        return []

    @staticmethod
    def _scores(arm: Arm, grid: list[float], find: Find) -> dict[float, tuple[float, float]]:
        """Rank the rates that every choosing seed has tried, by their mean."""
        seeds = arm.definition.seeds[: arm.definition.rate_seeds]
        tried = {rate: [find(arm.training(rate, seed)) for seed in seeds] for rate in grid}
        return {
            rate: mean_score([record.validation for record in records if record])
            for rate, records in tried.items()
            if all(records)
        }

    def chosen(self, arm: Arm, find: Find | None = None) -> float | None:
        """Return the rate that validated best so far; None before any was tried. A diverged one never wins."""
        if arm.definition.rates_of:
            return self._elsewhere(arm)
        grid = list(dict.fromkeys(one.rate for one in self.tuning(arm, find)))
        scores = self._scores(arm, grid, find or self.result)
        return min(scores, key=lambda rate: scores[rate], default=None)

    def _elsewhere(self, arm: Arm) -> float | None:
        """The rate that this arm has chosen in the study that `rates_of` names; None before it is chosen."""
        other = self._by_name.get(arm.rates_from)
        if other is None:
            raise InputError(
                f"conf/study/{arm.study}.yaml: rates_of {arm.rates_from[0]} has no arm '{arm.rates_from[1]}'"
            )
        return self.chosen(other) if all(map(self.result, self.tuning(other))) else None

    def final(self, arm: Arm) -> list[Training]:
        """Trainings that count: the chosen rate with every seed.

        Raises:
            InputError: another study chooses the rate, and has not.
        """
        best = self.chosen(arm)
        if best is None:
            raise InputError(
                f"{arm.study}/{arm.name}: its rate is chosen by '{arm.definition.rates_of}', which has not ended; "
                f"hope-study run --only {'/'.join(arm.rates_from)}"
            )
        return [arm.training(best, seed) for seed in arm.definition.seeds]

    def complete(self, arm: Arm) -> list[Record]:
        """All ordinary records of an arm, if every one is there; before that the least seconds would wander."""
        tuned = [self.result(one) for one in self.tuning(arm)]
        ready = all(tuned) and self.chosen(arm) is not None
        final = [self.result(one) for one in self.final(arm)] if ready else [None]
        return [record for record in [*tuned, *final] if record] if all(final) else []

    def at_equal_time(self, arm: Arm) -> list[Training] | None:
        """Trainings at equal time: none where costs are equal, None before one machine has timed both arms."""
        study = arm.definition
        if study.equal_time in ("", arm.name) or arm.settings.missing:
            return []
        own = self.complete(arm)
        if not own:
            return None
        final = self.final(arm)

        def longer(steps: int) -> list[Training]:
            return [arm.training(one.rate, one.config.seed, steps) for one in final]

        # What was begun is finished: the seconds of another machine would ask for other steps.
        for steps in self._begun(arm):
            if any((record := self.result(one)) and record.step_seconds for one in longer(steps)):
                return longer(steps)
        costs = equal_cost.costs(self.complete(self.reference(arm)), own)
        if costs is None:
            return None
        steps = equal_cost.steps(arm.config.steps, *costs)
        return longer(steps) if steps != arm.config.steps else []

    def reference(self, arm: Arm) -> Arm:
        """The arm whose time the others of its study get."""
        return self._by_name[arm.study, arm.definition.equal_time]

    def _begun(self, arm: Arm) -> list[int]:
        """Steps of the records at equal time that an arm has, of whatever definition."""
        runs = [run for name, run in self.store.records(arm.study) if name == arm.name]
        return sorted({int(match[1]) for run in runs if (match := _STEPS.search(run))})

    def timed(self, arm: Arm) -> list[Training]:
        """Trainings at equal time, as far as they are known."""
        return self.at_equal_time(arm) or []

    def left(self, arm: Arm) -> int:
        """Count an arm's missing trainings, as far as they can be known before its rate is chosen."""
        missing = sum(self.result(one) is None for one in self.tuning(arm))
        if missing or self.chosen(arm) is None:
            return missing + self.others(arm)
        return sum(self.result(one) is None for one in [*self.final(arm), *self.timed(arm)])

    def total(self, arm: Arm) -> int:
        """Count an arm's trainings, those at equal time as soon as they are known."""
        return len(self.tuning(arm)) + self.others(arm) + len(self.timed(arm))

    @staticmethod
    def others(arm: Arm) -> int:
        """Count the final trainings that choose no rate."""
        study = arm.definition
        return len(study.seeds) - (0 if study.rates_of else study.rate_seeds)

    def digests(self, arm: Arm) -> list[str]:
        """Name an arm's trainings so that those shared by two arms have one name.

        Before a rate is chosen, the other seeds' trainings are named after the first rate's.
        """
        tuned, seeds = self.tuning(arm, self.shared), arm.definition.seeds
        seeds = seeds[len(seeds) - self.others(arm) :]
        best = self.chosen(arm, self.shared) if all(map(self.shared, tuned)) else None
        final = [
            f"{arm.training(1.0, seed).sha256} seed {seed}"
            if best is None
            else arm.training(best, seed).sha256
            for seed in seeds
        ]
        return [one.sha256 for one in [*tuned, *self.timed(arm)]] + final

    def hours(self, *, left: bool) -> float:
        """Estimate the hours of one process for all trainings, or those that are `left`; each counted once."""
        seconds = {
            key: self.seconds(arm)
            for arm in self.runnable()
            for key in self.digests(arm)
            if not (left and key in self._by_sha256)
        }
        return sum(seconds.values()) / 3600

    def seconds(self, arm: Arm) -> float:
        """Estimate a training of this arm: as measured, else as others of its variant, else as all."""
        records = list(self._durations)  # another thread may add one
        same = [
            one.wall_seconds
            for one in records
            if (one.study, one.arm) == (arm.study, arm.name) and one.steps in (0, arm.config.steps)
        ]
        alike = [one.wall_seconds for one in records if one.variant == arm.config.model.variant]
        every = [one.wall_seconds for one in records]
        return fmean(same or alike or every or [ASSUMED])

    def measured(self) -> int:
        """Count the arms of which a training's duration is known."""
        known = {(one.study, one.arm) for one in list(self._durations)}
        return sum((arm.study, arm.name) in known for arm in self.runnable())


def timed_here(record: Record) -> bool:
    """Return whether this machine timed a training, or saw it diverge."""
    return record.machine == cpu_name() and bool(record.step_seconds or record.failed)
