"""Runs the studies in a fixed order: skips what is done, keeps a record of each training as it finishes.

The records are the whole memory: with them (in git, say) another machine resumes where this one stopped.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from threading import Event, Lock

from hope_data.publishing import write_atomic
from hope_model.errors import InputError
from hope_study import measure
from hope_study.ledger import Ledger, timed_here
from hope_study.locks import StoppedError, locked
from hope_study.progress import Display
from hope_study.records import Measured, Record, invalid_reason, record_of
from hope_study.study import Arm, Training
from hope_study.worker import Workers, last_line
from hope_train import config as configuration
from hope_train import state
from hope_train.provenance import revision
from hope_train.run import RESUMABLE
from hope_train.tracking import LOG

GRACE = 60.0  # seconds that a training has to save
DIVERGED = re.compile(r"loss is .* and gradient norm")


class Runner:
    """Runs the missing trainings of some arms.

    Args:
        ledger: of all arms that the comparisons need.
        work: folder of unfinished trainings.
        jobs: trainings at a time, one thread each.
        chosen: arms to train; None for all of the ledger's.
    """

    def __init__(self, ledger: Ledger, work: Path, jobs: int = 1, chosen: list[Arm] | None = None) -> None:
        self.ledger, self.work, self.jobs = ledger, work, jobs
        runnable = ledger.runnable()
        self.arms = runnable if chosen is None else [arm for arm in chosen if arm in runnable]
        self.stop = Event()
        self.display: Display
        self._revision = revision(ledger.store.folder)
        self._workers = Workers({"OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"})
        self._running: set[ForkServerProcess] = set()
        self._guard = Lock()

    def run(self) -> bool:
        """Train everything that is missing; return whether it is complete."""
        self.display = Display(self.ledger, self.jobs, self.arms)
        with self.display, ThreadPoolExecutor(self.jobs) as pool:
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            try:
                choosing = [arm for arm in self.arms if not arm.definition.rates_of]
                given = [arm for arm in self.arms if arm.definition.rates_of]
                # Equal time comes last: it needs the reference's seconds, and is the less urgent answer.
                for part, arms in (
                    (self._ordinary, choosing),
                    (self._ordinary, given),
                    (self._timed, self.arms),
                ):
                    for future in [pool.submit(part, arm) for arm in arms]:
                        future.result()
            except StoppedError:
                return False
            except KeyboardInterrupt:
                self.display.say("stopping: running trainings save; the same command resumes")
                return False
            finally:
                self._end()
        return True

    def _end(self) -> None:
        """Begin no new training; have the running ones save."""
        self.stop.set()
        with self._guard:
            running = list(self._running)
        for process in running:
            process.terminate()
        deadline = time.monotonic() + GRACE
        for process in running:  # looked at only: the thread that started it reads how it ended
            if not wait([process.sentinel], max(0.0, deadline - time.monotonic())):
                process.kill()

    def _ordinary(self, arm: Arm) -> None:
        while missing := [one for one in self.ledger.tuning(arm) if not self.ledger.result(one)]:
            self._do(missing[0])  # its result may extend the grid
        for training in self.ledger.final(arm):
            self._do(training)

    def _timed(self, arm: Arm) -> None:
        if self.ledger.at_equal_time(arm) is None:
            self._time(arm)
        for training in self.ledger.timed(arm):
            self._do(training)

    def _time(self, arm: Arm) -> None:
        """Train this arm and the reference once more, here: records from elsewhere have other seconds."""
        both = self.ledger.reference(arm), arm
        if all(self.ledger.complete(one) for one in both):
            for one in both:
                self._do(self.ledger.final(one)[0], here=True)

    def _do(self, training: Training, *, here: bool = False) -> None:
        if self._done(training, here):
            return
        if self.stop.is_set():
            raise StoppedError
        # One lock for equal trainings of all studies; the record is there before another runner gets it.
        with locked(self.work / "locks" / training.sha256[:16], self.stop) as lock:
            if self._done(training, here):  # another runner finished it while this one waited
                return
            known = self.ledger.shared(training)
            record = known if known and (timed_here(known) or not here) else self._train(training, lock)
            record = dataclasses.replace(
                record,
                study=training.arm.study,
                arm=training.arm.name,
                run=training.name,
                rate=training.rate,
            )
            self.ledger.keep(record)
            if not training.arm.adapt:  # those stay for what is measured once, at the very end
                shutil.rmtree(self._folder(training), ignore_errors=True)
        self.display.finished(record)

    def _done(self, training: Training, here: bool) -> bool:
        record = self.ledger.result(training)
        return record is not None and (timed_here(record) or not here)

    def _folder(self, training: Training) -> Path:
        return self.work / training.config.run

    def _train(self, training: Training, lock: int) -> Record:
        start, folder = time.monotonic(), self._folder(training)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "config.yaml", configuration.dump(training.config).encode())
        command = [
            "hope-train",
            "run",
            str(folder / "config.yaml"),
            "--fresh-on-mismatch",
            "--out",
            str(folder),
        ]
        output = folder / "output.txt"
        if training.constant:
            self._trunk(training, command, output, lock)
        status = self._call([*command, "--json", str(folder / "train.json")], output, lock)
        failed = last_line(output) if status else invalid_reason(folder)
        if status and not DIVERGED.search(failed):
            raise InputError(f"{training.config.run}: {failed}")
        measured = Measured() if failed else self._evaluate(training, folder, lock)
        return record_of(training, folder, measured, failed, self._revision, time.monotonic() - start)

    def _trunk(self, training: Training, command: list[str], output: Path, lock: int) -> None:
        """Train the steps before a decay on from those of a shorter training, and leave them for a longer one.

        A training of its own would have the same bits: its rates are the same so far, and the trainer compares them.
        """
        folder, trunk, end = self._folder(training), self.work / "trunks" / training.trunk, training.constant
        kept = {int(path.name): path for path in trunk.glob("[0-9]*") if int(path.name) <= end}
        if kept and not (folder / "checkpoint").exists():
            shutil.copytree(kept[max(kept)], folder, dirs_exist_ok=True)
        if end in kept or self._call([*command, "--until", str(end)], output, lock, wanted=RESUMABLE):
            return
        saved = state.read(folder / "checkpoint")
        if saved is None or saved.progress.step < end:
            raise StoppedError
        if saved.progress.step == end:
            partial = trunk / f"partial-{training.sha256[:16]}"
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(folder / "checkpoint", partial / "checkpoint")
            shutil.copy(folder / LOG, partial)
            with suppress(OSError):  # another training of the same beginning was faster
                partial.rename(trunk / str(end))

    def _evaluate(self, training: Training, folder: Path, lock: int) -> Measured:
        output = folder / "output.txt"
        for command in measure.commands(training, folder):
            if self._call(["hope-eval", *command], output, lock):
                raise InputError(f"{training.config.run}: {last_line(output)}")
        return measure.read(training, folder)

    def _call(self, command: list[str], output: Path, lock: int, wanted: int = 0) -> int:
        """Run a script; return 0 for the status that is wanted, else its own.

        Raises:
            StoppedError: it saved at the one SIGTERM that it gets.
        """
        with self._guard:
            if self.stop.is_set():
                raise StoppedError
            process = self._workers.start(command, output, lock)
            self._running.add(process)
        wait([process.sentinel])
        # Starting one asks all others whether they ended: two that read a status would each get a half.
        with self._guard:
            process.join()
            self._running.discard(process)
        status = process.exitcode or 0
        if self.stop.is_set() or (status == RESUMABLE and status != wanted):
            raise StoppedError
        return 0 if status == wanted else status
