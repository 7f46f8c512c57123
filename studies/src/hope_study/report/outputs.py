"""The files of a study beside its records: page, metrics and curves for DVC, picture; and the overview of all."""

import csv
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

from hope_data.publishing import write_atomic
from hope_study.opening import opened
from hope_study.report import plots, streams, worth, worth_plots
from hope_study.report.data import ArmResults, StudyResults, mean_error, on_locked
from hope_study.report.page import overview, page
from hope_study.store import Store

CURVE = ("step", "tokens", "val_loss", "val_bpb", "val_accuracy")


def write(studies: Sequence[StudyResults], folder: Path) -> None:
    """Write `NAME.md`, `NAME.metrics.json`, `NAME.csv` and `plots/NAME.png` of each study."""
    for study in studies:
        write_atomic(folder / f"{study.name}.md", page(study).encode())
        text = json.dumps(metrics(study), indent=1) + "\n"
        write_atomic(folder / f"{study.name}.metrics.json", text.encode())
        write_atomic(folder / f"{study.name}.csv", curves(study).encode())
        plots.draw(study, folder / "plots" / f"{study.name}.png")


def write_overview(studies: Sequence[StudyResults], folder: Path, out: Path, locked: Path) -> None:
    """Write the page that lists every study, and the pictures of all budgets of a study with adaptations.

    Args:
        studies: with their results.
        folder: of their pages.
        out: the page.
        locked: what `hope-study open` has written; need not exist.
    """
    if adapted := worth.adapted(studies):
        worth_plots.draw(adapted, out.parent / "plots")
    store = Store(locked)
    reopened = [on_locked(study, store) for study in studies if study.name in store.studies()]
    pages = PurePath(os.path.relpath(folder, out.parent))
    write_atomic(out, overview(studies, pages, reopened, str(opened(locked).get("date", ""))).encode())


def metrics(study: StudyResults) -> dict[str, Any]:
    """Return by arm the mean over seeds, its standard error and the number of seeds, for `dvc metrics`.

    Of a task the accuracy is the mean over the measured lengths; of a stream the bits per byte after its last domain,
    each way of learning being an entry of its own.
    """
    entries: dict[str, Any] = {}
    for arm in study.arms:
        if study.definition.stream.domains:
            for way in streams.ways(arm):
                by_seed = streams.measured(study, arm, way, "last")
                entries |= _entry(f"{arm.name} {way}", by_seed)
        else:
            entries |= _entry(arm.name, _mean_over_lengths(study, arm))
    return {study.name: entries}


def _mean_over_lengths(study: StudyResults, arm: ArmResults) -> dict[int, float]:
    by_length = [arm.values(study.metric, length) for length in study.lengths]
    seeds = [seed for seed in arm.seeds if by_length and all(seed in values for values in by_length)]
    return {seed: sum(values[seed].value for values in by_length) / len(by_length) for seed in seeds}


def _entry(name: str, by_seed: dict[int, float]) -> dict[str, Any]:
    if not by_seed:
        return {}
    mean, error = mean_error(list(by_seed.values()))
    rounded = None if error is None else round(error, 4)
    return {name: {"mean": round(mean, 4), "stderr": rounded, "n": len(by_seed)}}


def curves(study: StudyResults) -> str:
    """Return validation by steps of every training that counts, as CSV."""
    text = io.StringIO()
    table = csv.DictWriter(text, ["arm", "seed", *CURVE], lineterminator="\n")
    table.writeheader()
    for arm in study.arms:
        for seed, record in sorted(arm.seeds.items()):
            for point in record.curve:
                whole = {key: int(point[key]) for key in ("step", "tokens")}
                rest = {key: round(point[key], 5) for key in CURVE[2:] if key in point}
                table.writerow({"arm": arm.name, "seed": seed, **whole, **rest})
    return text.getvalue()
