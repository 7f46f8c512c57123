"""Experiments of DVC as a table that a person reads, and sweeps over parameters one experiment after the other.

`dvc exp show` prints every parameter, every dependency and every leaf of a metrics file. This table has only what
differs between experiments, bits per byte of every run and its difference to the first, and a number for every arm of a
study.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from hope_data.publishing import write_atomic
from hope_model.errors import InputError

DIFFERENCES = "reports/differences.json"


@dataclass(frozen=True)
class Row:
    """The workspace, a commit or an experiment.

    Attributes:
        name: as DVC shows it.
        revision: the commit, or `workspace`.
        baseline: the commit that an experiment starts from; its own of a commit.
        params: by file, as DVC gives them, flat.
        metrics: number with interval by what it measures.
    """

    name: str
    revision: str
    baseline: str
    params: dict[str, Any]
    metrics: dict[str, str]


def rows() -> list[Row]:
    """Read every experiment of the present commit.

    Raises:
        InputError: DVC fails.
    """
    done = subprocess.run(["dvc", "exp", "show", "--json"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"dvc exp show: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
    return list(_rows(json.loads(done.stdout)))


def _rows(states: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    for state in states:
        yield _row(state, state["rev"])
        for experiment in state.get("experiments") or ():
            for revision in experiment["revs"][:1]:  # the last checkpoint
                yield _row(revision, state["rev"])


def _row(state: Mapping[str, Any], baseline: str) -> Row:
    data = state.get("data") or {}
    params: dict[str, Any] = {}
    for file, content in (data.get("params") or {}).items():
        prefix = "" if file == "params.yaml" else f"{file}:"
        params |= {prefix + key: value for key, value in _flat(content.get("data") or {})}
    metrics: dict[str, str] = {}
    for file, content in (data.get("metrics") or {}).items():
        metrics |= _cells(file, content.get("data") or {})
    return Row(
        state.get("name") or (state["rev"] if state["rev"] == "workspace" else state["rev"][:7]),
        state["rev"],
        baseline,
        params,
        metrics,
    )


def _cells(file: str, content: Mapping[str, Any]) -> dict[str, str]:
    """What is shown of one file: bits per byte of runs and their differences, or the arms of a study."""
    if file == DIFFERENCES:  # in commits of before, differences were objects
        return {
            key: number if isinstance(number, str) else f"{number:.3f}"
            for key, number in content.items()
            if isinstance(number, str | float)
        }
    if not file.startswith("reports/studies/"):
        return {}
    return {
        f"{study}.{arm}": f"{one['mean']:.3f}" + (f" ± {one['stderr']:.3f}" if one.get("stderr") else "")
        for study, arms in content.items()
        for arm, one in arms.items()
    }


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def table(shown: Sequence[Row], *, everything: bool = False) -> Table:
    """Return the table: parameters that differ between its rows, and metrics.

    Args:
        shown: what has a row.
        everything: also arms of studies that are the same in all rows.
    """
    keys = [
        key
        for key in _keys(row.params for row in shown)
        if len({_text(r.params.get(key)) for r in shown}) > 1
    ]
    names = _keys(row.metrics for row in shown)
    studies = [name for name in names if "." in name]
    same = {name for name in studies if len({row.metrics[name] for row in shown if name in row.metrics}) == 1}
    names = [name for name in names if everything or name not in same]
    made = Table(
        "experiment",
        *keys,
        title="bits per byte, differences ± half the 95 % interval; studies: mean ± standard error",
    )
    for name in names:
        made.add_column(name, justify="right")
    for column in made.columns:
        column.overflow = "fold"  # two paths may differ at their ends only
    for row in shown:
        made.add_row(
            row.name, *(_text(row.params.get(key)) for key in keys), *(row.metrics.get(n, "") for n in names)
        )
    return made


def _keys(mappings: Iterator[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for mapping in mappings for key in mapping))


def _text(value: object) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    return "" if value is None else str(value)


def show(*, everything: bool = False) -> None:
    """Print the table of all experiments of the present commit."""
    _print(table(rows(), everything=everything))


def sweep(settings: Sequence[str], params: Path = Path("params.yaml")) -> int:
    """Run an experiment for every combination of values, one after the other; then print their table.

    What is finished is not run again, so the same command resumes. The workspace ends as it began.

    Args:
        settings: `KEY=VALUE,VALUE,...`.
        params: the file of the keys.

    Returns:
        Exit status: 0, or that of the first experiment that failed.
    """
    keys, choices = _settings(settings, params)
    points = [dict(zip(keys, values, strict=True)) for values in itertools.product(*choices)]
    root = params.parent
    files = [
        params,
        root / "dvc.lock",
        root / "reports/differences.json",
        *root.glob("reports/metrics/*.json"),
    ]
    before = {file: file.read_bytes() for file in files if file.is_file()}
    start = dict(_flat(yaml.safe_load(before[params])))
    status, done = 0, 0
    try:
        for number, point in enumerate(points, 1):
            text = ", ".join(f"{key}={_text(value)}" for key, value in point.items())
            if _named(point, rows(), start):
                _say(f"{number} of {len(points)}: {text}: there already")
                continue
            _say(f"{number} of {len(points)}: {text}")
            write_atomic(params, before[params])
            done += 1
            changes = [f"-S{key}={json.dumps(value)}" for key, value in point.items()]
            if status := subprocess.run(["dvc", "exp", "run", *changes], check=False).returncode:
                return status
    finally:
        if done:  # back from the cache, where `dvc repro` would train again what an experiment replaced
            for file, content in before.items():
                write_atomic(file, content)
            subprocess.run(["dvc", "checkout", "-q", "--force"], check=False)
    known = rows()
    _print(table([row for point in points if (row := _named(point, known, start))]))
    return status


def _settings(settings: Sequence[str], params: Path) -> tuple[list[str], list[list[Any]]]:
    known = yaml.safe_load(params.read_text())
    keys, choices = [], []
    for text in settings:
        key, _, values = text.partition("=")
        if key not in known or not values:
            raise InputError(
                f"{text}: it must be KEY=VALUE,VALUE,... with a key of {params}: {', '.join(known)}"
            )
        parsed = yaml.safe_load(f"[{values}]")
        # A list's own brackets: seeds=[0],[1]
        keys.append(key)
        choices.append(parsed)
    return keys, choices


def _named(point: Mapping[str, Any], known: Sequence[Row], start: Mapping[str, Any]) -> Row | None:
    """Return the finished experiment, or the commit, with these parameters, all others as the sweep began."""
    wanted = {**start, **point}
    for row in known:
        same = row.params and all(
            wanted.get(key) == value for key, value in row.params.items() if key in wanted
        )
        if same and row.revision != "workspace" and row.metrics:
            return row
    return None


def _print(made: Table) -> None:
    console = Console()
    console.print(made) if console.is_terminal else Console(width=160).print(made)


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
