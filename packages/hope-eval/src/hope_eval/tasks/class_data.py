"""Labelled texts whose classes come in groups: CLINC150, Banking77, DBpedia, from files in a folder.

clinc150   data_full.json[.gz]  domains.json          ten domains of fifteen intents
banking77  train.csv  test.csv  (text,category)       seven groups of eleven intents, by name
dbpedia    train.csv  test.csv  classes.txt           seven groups of two classes, in order
"""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hope_data.errors import InputError
from hope_eval.files import find, read_json, read_text

Pairs = list[tuple[str, str]]
Groups = list[tuple[str, list[str]]]
KINDS = ("clinc150", "banking77", "dbpedia")
AGAIN = "fetch it again"


@dataclass(frozen=True)
class Labelled:
    """A group of classes that come together: examples to learn from, and to ask."""

    name: str
    labels: list[str]
    learn: list[tuple[str, str]]
    ask: list[tuple[str, str]]


def load(kind: str, folder: Path, learn: int, ask: int, seed: int = 0) -> list[Labelled]:
    """Groups of classes with `learn` and `ask` examples of each class, drawn by seed.

    Raises:
        InputError: an unknown kind, a missing file, or a row that is not as expected (file, row and field named).
    """
    if kind not in KINDS:
        raise InputError(f"--classes {kind}: choose among {', '.join(KINDS)}")
    groups, train, test = _clinc(folder) if kind == "clinc150" else _tables(kind, folder)
    parts = []
    for place, (name, labels) in enumerate(groups):
        rng = np.random.default_rng([seed, place])
        chosen = {
            label: (_some(folder, train, label, learn, rng), _some(folder, test, label, ask, rng))
            for label in labels
        }
        lines = [pair for shown, _ in chosen.values() for pair in shown]
        order = rng.permutation(len(lines))
        asked = [pair for _, questions in chosen.values() for pair in questions]
        parts.append(Labelled(name, labels, [lines[n] for n in order], asked))
    return parts


def _some(folder: Path, pairs: Pairs, label: str, count: int, rng: np.random.Generator) -> Pairs:
    matching = [pair for pair in pairs if pair[1] == label]
    if not matching:
        raise InputError(f"{folder}: no text of class {label[:80]!r} in one of the splits; {AGAIN}")
    return [matching[n] for n in rng.permutation(len(matching))[:count]]


def _clinc(folder: Path) -> tuple[Groups, Pairs, Pairs]:
    whole, path = find(folder, "data_full.json"), find(folder, "domains.json")
    groups = []
    for name, labels in read_json(path, AGAIN).items():
        if not (isinstance(labels, list) and labels and all(isinstance(label, str) for label in labels)):
            raise InputError(f"{path}: {name[:80]!r} is no list of intents; {AGAIN}")
        groups.append((name, [_plain(label) for label in labels]))
    data = read_json(whole, AGAIN)
    return groups, list(_intents(whole, data, "train")), list(_intents(whole, data, "test"))


def _intents(path: Path, data: dict[str, Any], split: str) -> Iterator[tuple[str, str]]:
    rows = data.get(split)
    if not isinstance(rows, list):
        raise InputError(f"{path}: holds no list {split!r}; {AGAIN}")
    for number, row in enumerate(rows, 1):
        if not (isinstance(row, list) and len(row) == 2 and all(isinstance(field, str) for field in row)):
            raise InputError(f"{path}, {split}, row {number}: is no pair of a text and an intent; {AGAIN}")
        yield row[0], _plain(row[1])


def _tables(kind: str, folder: Path) -> tuple[Groups, Pairs, Pairs]:
    paths = [find(folder, f"{split}.csv") for split in ("train", "test")]
    if kind == "banking77":
        train, test = ([(row[0], _plain(row[1])) for row in _rows(path, 2)] for path in paths)
        labels, size = sorted({label for _, label in train}), 11
    else:
        labels, size = read_text(find(folder, "classes.txt")).split(), 2
        train, test = (
            [
                (row[2].strip(), _class(path, number, row[0], labels))
                for number, row in enumerate(_rows(path, 3), 1)
            ]
            for path in paths
        )
    starts = range(0, len(labels), size)
    return [(f"group {n}", labels[start : start + size]) for n, start in enumerate(starts, 1)], train, test


def _rows(path: Path, fields: int) -> Iterator[list[str]]:
    """Rows of a table, without Banking77's heads."""
    try:
        for number, row in enumerate(csv.reader(io.StringIO(read_text(path), newline="")), 1):
            if len(row) != fields:
                raise InputError(f"{path}, row {number}: {len(row)} fields, not {fields}; {AGAIN}")
            if row != ["text", "category"]:
                yield row
    except csv.Error as error:
        raise InputError(f"{path}: is no table ({error}); {AGAIN}") from None


def _class(path: Path, number: int, text: str, labels: list[str]) -> str:
    if not (text.isascii() and text.isdigit() and len(text) < 9 and 1 <= int(text) <= len(labels)):
        raise InputError(
            f"{path}, row {number}: class {text[:80]!r} is no number from 1 to {len(labels)}; {AGAIN}"
        )
    return labels[int(text) - 1]


def _plain(label: str) -> str:
    return label.replace("_", " ")
