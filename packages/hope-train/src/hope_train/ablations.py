"""Runs the studies: in a fixed order, skipping what is done, a small JSON for each training as it finishes.

The JSONs are the whole memory: with them (in git, say) another machine goes on where this one stopped.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from statistics import fmean
from threading import Event, Lock
from typing import Any

from hope_data.publishing import write_atomic
from hope_model import counting
from hope_model.bench import cpu_name
from hope_model.errors import InputError
from hope_train import config as configuration
from hope_train import equal_time, measure
from hope_train.progress import ASSUMED, Display
from hope_train.provenance import revision
from hope_train.records import StoppedError, ill, last_line, locked, read, write_down
from hope_train.run import RESUMABLE
from hope_train.study import Chain, Unit, score
from hope_train.warm import Warm

GRACE = 60.0  # seconds that a training has to save
DIVERGED = re.compile(r"loss is .* and gradient norm")
# What a training or an evaluation would import; torch's optimisers ask for its compiler.
IMPORTED = (
    "torch._dynamo",
    "hope_train.run",
    "hope_eval.cli",
    "hope_eval.evaluate",
    "hope_eval.tasks.synthetic",
)


Find = Callable[[Unit], dict[str, Any] | None]  # a training's result


@dataclass
class Suite:
    """Studies, and where they are run.

    Attributes:
        chains: arms in order.
        results: folder of the JSONs.
        work: folder of unfinished trainings.
        jobs: trainings at a time, one thread each.
        known: names of all studies there are; the plan forgets others. None given: it forgets none.
    """

    chains: list[Chain]
    results: Path
    work: Path
    jobs: int = 1
    known: list[str] = field(default_factory=list)
    stop: Event = field(default_factory=Event)
    display: Display = field(init=False)
    _running: set[ForkServerProcess] = field(default_factory=set)
    _guard: Lock = field(default_factory=Lock)
    _found: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Read what is there."""
        for path in sorted(self.results.glob("*/*/*.json")):
            record = read(path)
            if record and record["sha256"] not in self._found:
                self._found[record["sha256"]] = record
        self._revision = revision(self.results)
        self._warm = Warm(IMPORTED, {"OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"})
        self._all = {(chain.study, chain.arm): chain for chain in self.chains}

    def run(self) -> bool:
        """Everything that is not done; whether it came to the end."""
        todo = [chain for chain in self.chains if not chain.missing]
        with Display(self, todo) as self.display, ThreadPoolExecutor(self.jobs) as pool:
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            try:
                # At equal time afterwards: it needs the reference's seconds, and is the less urgent answer.
                for part in (self._chain, self._timed):
                    for future in [pool.submit(part, chain) for chain in todo]:
                        future.result()
            except StoppedError:
                return False
            except KeyboardInterrupt:
                self.display.say("stopping: running trainings save; the same command goes on")
                return False
            finally:
                self._end()
                self.write_plan()  # equal time is known only now
        return True

    def _end(self) -> None:
        """No new training; running ones save."""
        self.stop.set()
        with self._guard:
            running = list(self._running)
        for process in running:
            process.terminate()
        deadline = time.monotonic() + GRACE
        for process in running:  # looked at only: the thread that started it reads how it ended
            if not wait([process.sentinel], max(0.0, deadline - time.monotonic())):
                process.kill()

    def write_plan(self) -> None:
        """`plan.json`: what there is to be known, done or not; reports read it."""
        path = self.results / "plan.json"
        with locked(self.work / "plan.lock"):  # other runners have other studies
            former = {
                name: study
                for name, study in equal_time.described(path).items()
                if not self.known or name in self.known
            }
            merged = sorted((former | self._studies()).items(), key=lambda item: (item[1]["order"], item[0]))
            write_atomic(path, (json.dumps(dict(merged), indent=1) + "\n").encode())

    def _studies(self) -> dict[str, Any]:
        studies: dict[str, Any] = {}
        for chain in self._all.values():
            study = chain.definition
            known = (
                "question",
                "order",
                "scale",
                "rates",
                "seeds",
                "lengths",
                "stream",
                "equal_time",
            )
            entry = studies.setdefault(chain.study, {key: asdict(study)[key] for key in known} | {"arms": {}})
            entry["arms"][chain.arm] = self._planned(chain)
        return studies

    def _planned(self, chain: Chain) -> dict[str, Any]:
        model, study = chain.config.model, chain.definition
        arm, timed = study.arms[chain.arm], self.at_equal_time(chain)
        units = [chain.unit(one.rate, seed) for one in self.tuning(chain) for seed in study.seeds]
        teaches = model.variant.startswith("hope") and model.cms.teach_scale > 0
        return {
            "parameters": chain.parameters,
            # Recall is a question of size; studies of text may be of any scale, and are not measured here.
            "state_bytes": counting.state_bytes(model, chain.config.length) if chain.config.data.task else 0,
            "missing": chain.missing,
            "run": arm.run,
            "overrides": [*arm.overrides, *(["writes=" + ",".join(arm.writes)] if arm.writes else [])],
            "variant": model.variant,
            "length": chain.config.length,
            "chunk": min(chain.config.memory_chunks or [model.memory.chunk]),
            "segment": min(model.cms.chunks()) if teaches else 0,
            "chosen": self.chosen(chain),
            "units": {Path(unit.config.run).name: unit.sha256[:16] for unit in units},
            "timed": None
            if timed is None
            else {Path(unit.config.run).name: unit.sha256[:16] for unit in timed},
        }

    def path(self, unit: Unit) -> Path:
        """Where a training's result lies."""
        return self.results / f"{unit.config.run}.json"

    def result(self, unit: Unit) -> dict[str, Any] | None:
        """A training's result, if it is there and of this very definition."""
        record = read(self.path(unit))
        return record if record and record["sha256"] == unit.sha256 else None

    def seconds(self, chain: Chain) -> float:
        """What a training of this arm takes: measured, else as others of its variant, else of all."""
        found = list(self._found.values())  # another thread may be adding one
        same = [
            r["wall_seconds"]
            for r in found
            if (r["study"], r["arm"]) == (chain.study, chain.arm) and r["steps"] in (0, chain.config.steps)
        ]
        alike = [r["wall_seconds"] for r in found if r["variant"] == chain.config.model.variant]
        every = [r["wall_seconds"] for r in found]
        return fmean(same or alike or every or [ASSUMED])

    def measured(self) -> int:
        """Arms that have a result."""
        known = {(r["study"], r["arm"]) for r in list(self._found.values())}
        return sum((c.study, c.arm) in known for c in self.chains if not c.missing)

    def tuning(self, chain: Chain, found: Find | None = None) -> list[Unit]:
        """The runs that choose an arm's learning rate, as far as can be known."""

        def validated(unit: Unit) -> dict[str, float] | None:
            record = (found or self.result)(unit)
            return record["validation"] if record else None

        return chain.tuning(validated)

    def left(self, chain: Chain) -> int:
        """Trainings of an arm that are to be done, as far as can be known before a learning rate is chosen."""
        tuned = [self.result(unit) for unit in self.tuning(chain)]
        missing = sum(record is None for record in tuned)
        if missing:
            return missing + len(chain.definition.seeds) - 1
        return sum(self.result(unit) is None for unit in [*self._final(chain), *self.timed(chain)])

    def trainings(self, chain: Chain) -> list[str]:
        """What an arm is trained for, done or not; arms of two studies may share it, and then it is done once.

        Seeds of a learning rate that is not chosen yet stand by the first one's.
        """
        found = self._shared
        tuned, later = self.tuning(chain, found), chain.definition.seeds[1:]
        best = self.chosen(chain, found) if all(map(found, tuned)) else None
        finals = [
            f"{tuned[0].sha256} seed {seed}" if best is None else chain.unit(best, seed).sha256
            for seed in later
        ]
        return [unit.sha256 for unit in [*tuned, *self.timed(chain)]] + finals

    def _shared(self, unit: Unit) -> dict[str, Any] | None:
        """A training's result, whichever study did it."""
        return self._found.get(unit.sha256)

    def untrained(self, chain: Chain) -> list[str]:
        """Those of `trainings` that nobody has done."""
        return [sha256 for sha256 in self.trainings(chain) if sha256 not in self._found]

    def timed(self, chain: Chain) -> list[Unit]:
        """The runs at equal time, as far as they are known."""
        return self.at_equal_time(chain) or []

    def at_equal_time(self, chain: Chain) -> list[Unit] | None:
        """The runs at equal time: none where none are wanted or costs are equal, None before one machine timed both."""
        study = chain.definition
        if study.equal_time in ("", chain.arm) or chain.missing:
            return []
        ordinary, reference = chain.config.steps, self._all[chain.study, study.equal_time]
        own = self._whole(chain)
        if not own:
            return None
        finals = self._final(chain)

        def longer(steps: int) -> list[Unit]:
            return [chain.longer(unit.rate, unit.config.seed, steps) for unit in finals]

        # What was begun is gone on with: another machine's seconds would ask for other steps.
        for steps in equal_time.begun(self.path(finals[0]).parent):
            if any((self.result(unit) or {}).get("step_seconds") for unit in longer(steps)):
                return longer(steps)
        costs = equal_time.costs(self._whole(reference), own)
        if costs is None:
            return None
        steps = equal_time.steps(ordinary, *costs)
        return longer(steps) if steps != ordinary else []

    def total(self, chain: Chain) -> int:
        """Trainings of an arm, those at equal time as soon as they are known."""
        return len(self.tuning(chain)) + len(chain.definition.seeds) - 1 + len(self.timed(chain))

    def _whole(self, chain: Chain) -> list[dict[str, Any]]:
        """All ordinary runs of an arm, if they are done; before, the least seconds would wander."""
        tuned = [self.result(unit) for unit in self.tuning(chain)]
        whole = [self.result(unit) for unit in self._final(chain)] if all(tuned) else [None]
        return [r for r in [*tuned, *whole] if r] if all(whole) else []

    def _final(self, chain: Chain) -> list[Unit]:
        """The runs that count, with the learning rate that validated best; a run that diverged never does."""
        best = self.chosen(chain)
        assert best is not None  # noqa: S101
        return [chain.unit(best, seed) for seed in chain.definition.seeds]

    def chosen(self, chain: Chain, found: Find | None = None) -> float | None:
        """The learning rate's factor that validated best so far; None before any was tried."""
        tuned = {unit.rate: (found or self.result)(unit) for unit in self.tuning(chain, found)}
        scores = {rate: score(r["validation"]) for rate, r in tuned.items() if r}
        return min(scores, key=lambda rate: scores[rate], default=None)

    def _chain(self, chain: Chain) -> None:
        while waiting := [unit for unit in self.tuning(chain) if not self.result(unit)]:
            self._unit(waiting[0])  # what it finds may ask for a rate beyond
        for unit in self._final(chain):
            self._unit(unit)
        self.write_plan()  # a kill must not leave the page without the rate that was chosen

    def _timed(self, chain: Chain) -> None:
        if self.at_equal_time(chain) is None:
            self._time(chain)
        for unit in self.timed(chain):
            self._unit(unit)

    def _time(self, chain: Chain) -> None:
        """Train this arm and the reference once more, here: what was shared or begun elsewhere has other seconds."""
        arms = self._all[chain.study, chain.definition.equal_time], chain
        if all(self._whole(arm) for arm in arms):
            for arm in arms:
                self._unit(self._final(arm)[0], here=True)

    def _unit(self, unit: Unit, *, here: bool = False) -> None:
        if _serves(self.result(unit), here):
            return
        if self.stop.is_set():
            raise StoppedError
        # One lock for equal trainings of all studies; the result is there before another gets it.
        with locked(self.work / "locks" / unit.sha256[:16], self.stop) as lock:
            if _serves(self.result(unit), here):  # another runner made it while this one waited
                return
            known = self._found.get(unit.sha256)
            record = dict(known if known and _serves(known, here) else self._train(unit, lock))
            record |= {"study": unit.chain.study, "arm": unit.chain.arm, "rate": unit.rate}
            self._found[unit.sha256] = record
            write_atomic(self.path(unit), (json.dumps(record, indent=1) + "\n").encode())
            shutil.rmtree(self.work / unit.config.run, ignore_errors=True)
        self.display.finished(unit, record)

    def _train(self, unit: Unit, lock: int) -> dict[str, Any]:
        start, folder = time.monotonic(), self.work / unit.config.run
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "config.yaml", configuration.dump(unit.config).encode())
        command = ["hope-train", "run", str(folder / "config.yaml"), "--fresh-on-mismatch"]
        command += ["--out", str(folder), "--json", str(folder / "train.json")]
        status = self._call(unit, lock, command)
        failed = last_line(folder) if status else ill(folder)
        if status and not DIVERGED.search(failed):
            raise InputError(f"{unit.config.run}: {failed}")
        metrics = [] if failed else self._evaluate(unit, folder, lock)
        record = write_down(unit, folder, metrics, failed, self._revision)
        return record | {"wall_seconds": max(round(time.monotonic() - start, 1), record["seconds"])}

    def _evaluate(self, unit: Unit, folder: Path, lock: int) -> list[dict[str, Any]]:
        out = folder / "measured.json"
        if self._call(unit, lock, ["hope-eval", *measure.command(unit, folder, out)]):
            raise InputError(f"{unit.config.run}: {last_line(folder)}")
        return measure.read(unit, out)

    def _call(self, unit: Unit, lock: int, command: list[str]) -> int:
        """Run a script, its words into a file; raises `StoppedError` where the one SIGTERM it gets made it save."""
        with self._guard:
            if self.stop.is_set():
                raise StoppedError
            said = self.work / unit.config.run / "said.txt"
            process = self._warm.start(command, said, lock)
            self._running.add(process)
        wait([process.sentinel])
        # Starting one asks all others whether they ended: two that read a status would each get a half.
        with self._guard:
            process.join()
            self._running.discard(process)
        if process.exitcode == RESUMABLE or self.stop.is_set():
            raise StoppedError
        return process.exitcode or 0


def _serves(record: dict[str, Any] | None, here: bool) -> bool:
    """Whether a result is there; where `here` is asked, whether this machine timed it, or saw it diverge."""
    if record is None or not here:
        return record is not None
    return record.get("machine") == cpu_name() and bool(record.get("step_seconds") or record["failed"])
