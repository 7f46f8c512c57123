"""Labelled texts whose classes come in groups: CLINC150, Banking77, DBpedia, from files in a folder.

clinc150   data_full.json[.gz]  domains.json          ten domains of fifteen intents
banking77  train.csv  test.csv  (text,category)       seven groups of eleven intents, by name
dbpedia    train.csv  test.csv  classes.txt           seven groups of two classes, in order
"""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from hope_data.errors import InputError
from hope_eval.continual import Labelled
from hope_eval.zeroshot.mirror import find, read_text

Pairs = list[tuple[str, str]]
KINDS = ("clinc150", "banking77", "dbpedia")


def load(kind: str, folder: Path, learn: int, ask: int, seed: int = 0) -> list[Labelled]:
    """Groups of classes with `learn` and `ask` examples of each class, drawn by seed.

    Raises:
        InputError: an unknown kind, a missing file, or one without the expected fields.
    """
    if kind not in KINDS:
        raise InputError(f"--classes {kind}: choose among {', '.join(KINDS)}")
    try:
        groups, train, test = _clinc(folder) if kind == "clinc150" else _tables(kind, folder)
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise InputError(f"{folder}: not the files of {kind} ({error}); fetch them again") from None
    made = []
    for place, (name, labels) in enumerate(groups):
        rng = np.random.default_rng([seed, place])
        chosen = {label: (_some(train, label, learn, rng), _some(test, label, ask, rng)) for label in labels}
        lines = [pair for shown, _ in chosen.values() for pair in shown]
        order = rng.permutation(len(lines))
        asked = [pair for _, questions in chosen.values() for pair in questions]
        made.append(Labelled(name, labels, [lines[n] for n in order], asked))
    return made


def _some(pairs: Pairs, label: str, count: int, rng: np.random.Generator) -> Pairs:
    found = [pair for pair in pairs if pair[1] == label]
    if not found:
        raise ValueError(f"no text of class '{label}'")
    return [found[n] for n in rng.permutation(len(found))[:count]]


def _clinc(folder: Path) -> tuple[list[tuple[str, list[str]]], Pairs, Pairs]:
    data: dict[str, Any] = json.loads(read_text(find(folder, "data_full.json")))
    domains: dict[str, list[str]] = json.loads(read_text(find(folder, "domains.json")))
    groups = [(name, [_plain(label) for label in labels]) for name, labels in domains.items()]
    train, test = ([(text, _plain(label)) for text, label in data[split]] for split in ("train", "test"))
    return groups, train, test


def _tables(kind: str, folder: Path) -> tuple[list[tuple[str, list[str]]], Pairs, Pairs]:
    splits = [
        list(csv.reader(io.StringIO(read_text(find(folder, f"{name}.csv"))))) for name in ("train", "test")
    ]
    if kind == "banking77":
        train, test = ([(row[0], _plain(row[1])) for row in rows if row[0] != "text"] for rows in splits)
        labels, size = sorted({label for _, label in train}), 11
    else:
        labels, size = read_text(find(folder, "classes.txt")).split(), 2
        train, test = ([(row[2].strip(), labels[int(row[0]) - 1]) for row in rows] for rows in splits)
    starts = range(0, len(labels), size)
    return [(f"group {n}", labels[start : start + size]) for n, start in enumerate(starts, 1)], train, test


def _plain(label: str) -> str:
    return label.replace("_", " ")
