"""Documents that were locked away are opened once: the kept trainings of named studies are measured on them.

`reports/locked/opened.json` says when, and for which trainings; a second opening, for others, is refused. The records
are those of the trainings with what the locked documents say in the place of what was measured before.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hope_data.files import read_bytes
from hope_data.publishing import write_atomic
from hope_eval.tasks.locked import Locked
from hope_model.errors import InputError
from hope_study import measure
from hope_study.ledger import Ledger
from hope_study.records import Measured
from hope_study.store import Store
from hope_study.study import Training

OPENED = "opened.json"


def opened(folder: Path) -> dict[str, Any]:
    """When they were opened, of which list, for which trainings of which studies; empty before that."""
    path = folder / OPENED
    if not path.is_file():
        return {}
    values: dict[str, Any] = json.loads(read_bytes(path))
    return values


def trainings(ledger: Ledger, names: Sequence[str]) -> list[Training]:
    """Those that count in the studies, as far as they have records that did not fail.

    Raises:
        InputError: a study without adaptations, whose checkpoints are not kept.
    """
    found = []
    for arm in ledger.arms:
        if arm.study not in names:
            continue
        if not arm.definition.adapt:
            raise InputError(f"{arm.study}: measures no adaptations, so that its checkpoints are not kept")
        if ledger.chosen(arm) is not None:
            found += ledger.final(arm)
    return [one for one in found if (record := ledger.result(one)) and not record.failed]


def open_locked(
    ledger: Ledger,
    names: Sequence[str],
    locked: Path,
    folder: Path,
    work: Path,
    run: Callable[[list[str]], int],
    say: Callable[[str], None] = print,
) -> Store:
    """Measure every kept training of the studies on the locked documents; what is done is not done again.

    Args:
        ledger: of the studies' arms.
        names: of the studies.
        locked: the list, of `hope-eval lock`.
        folder: of the records, and of `OPENED`.
        work: of the trainings' checkpoints.
        run: `hope-eval` with arguments; returns its exit status.
        say: told after each training.

    Raises:
        InputError: opened before for other trainings, or a checkpoint that is not there; then nothing is opened.
    """
    listed, before = Locked.read(locked), opened(folder)
    chosen, store = trainings(ledger, names), Store(folder)
    wanted = {
        "list": listed.sha256,
        "studies": sorted(names),
        "trainings": sorted(one.sha256[:16] for one in chosen),
    }
    if before and {key: before.get(key) for key in wanted} != wanted:
        raise InputError(
            f"{folder / OPENED}: opened on {before.get('date')} for {len(before.get('trainings', []))} trainings of "
            f"{before.get('studies')}; once is all they are for"
        )
    missing = [one for one in chosen if not (work / one.config.run / "checkpoint").is_dir()]
    if missing or not chosen:
        which = missing[0].config.run if missing else ", ".join(names)
        raise InputError(
            f"{work}: no checkpoint of {which}; train it again there: hope-study run --only STUDY/ARM"
        )
    if not before:
        today = datetime.now(UTC).date().isoformat()
        write_atomic(folder / OPENED, (json.dumps({"date": today, **wanted}, indent=1) + "\n").encode())
    for number, one in enumerate(chosen, 1):
        if (one.arm.name, one.name) not in store.records(one.arm.study):
            measured = _measured(one, work / one.config.run, locked, run)
            record = ledger.result(one)
            assert record is not None  # noqa: S101 (`trainings` has looked)
            store.add(
                dataclasses.replace(
                    record, metrics=measured.metrics, documents=measured.documents, dials=measured.dials
                )
            )
        say(f"{number}/{len(chosen)} {one.config.run}")
    return store


def _measured(training: Training, folder: Path, locked: Path, run: Callable[[list[str]], int]) -> Measured:
    out = folder / "locked"
    out.mkdir(exist_ok=True)
    for tuned in folder.glob("tuned-*.json"):
        shutil.copy(tuned, out)
    for command in measure.commands(training, folder):
        if command[0] == "tune":
            continue  # dials are those of the validation text
        place = command.index("--json") + 1
        command[place] = str(out / Path(command[place]).name)
        command[command.index("--tasks") + 1] = "perplexity"
        if run([*command, "--documents", str(locked)]):
            raise InputError(f"{training.config.run}: not measured; the same command goes on here")
    return measure.read(training, out)
