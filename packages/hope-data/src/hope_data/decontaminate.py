"""Evaluation text in a corpus, found by shared 13-grams of words (Brown et al. 2020, appendix C).

Where a script puts no space between words, so many characters that they touch thirteen words take their place: 25 of
Chinese or Japanese, 49 of Thai (`units`). Words that no evaluation text has break a run, so only runs of known words
are hashed at all. Shorter texts are too common to be told from chance and are not looked for.
"""

import json
from collections.abc import Iterator
from functools import lru_cache
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hope_data.compressed import lines
from hope_data.documents import Document, json_of
from hope_data.errors import InputError
from hope_data.files import sha256_file
from hope_data.rules import Rule, Verdict
from hope_data.units import WORD, Hashes, Weights, hashed, spans, units

N = 13
_SUFFIXES = (".jsonl", ".txt")
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_SETS, _VOCABULARY, _GRAMS = "evaluation.json", "evaluation.words.txt", "evaluation.grams.npy"


def _plain(path: Path) -> str:
    """Its name without .gz or .zst; suffixes in lower case, as files from elsewhere may have them in upper case."""
    plain = Path(path.stem if path.suffix.lower() in (".gz", ".zst") else path.name)
    return plain.stem + plain.suffix.lower()


def find(paths: list[Path]) -> list[tuple[str, Path]]:
    """Evaluation files under the given files and folders, each with the name of its set, sorted.

    Raises:
        InputError: a path without any.
    """
    named: list[tuple[str, Path]] = []
    for root in paths:
        files = _files(root)
        if not files:
            raise InputError(f"{root}: no .jsonl or .txt file of evaluation text (also .gz, .zst) here")
        named += [(_name(root, path), path) for path in files]
    return named


# What a folder without evaluation text means.
NO_TEXT = "no .jsonl or .txt file here, so no document is dropped for sharing text with an evaluation"


def _files(root: Path) -> list[Path]:
    inside = sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else [root]
    return [p for p in inside if p.is_file() and _plain(p).endswith(_SUFFIXES)]


def holding_text(paths: list[Path]) -> list[Path]:
    """The paths without the folders that hold no evaluation text; what does not exist stays, to be named by `find`."""
    return [path for path in paths if not path.is_dir() or _files(path)]


def _name(root: Path, path: Path) -> str:
    inner = path.relative_to(root).parts if root.is_dir() else (path.name,)
    return inner[0] if len(inner) > 1 else _plain(path).rsplit(".", 1)[0]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)


def _texts(path: Path) -> Iterator[str]:
    if _plain(path).endswith(".txt"):
        yield "".join(line.decode("utf-8", "replace") for _, line in lines(path))
        return
    for number, line in lines(path):
        if line.strip():
            leaves = list(_strings(json_of(line, f"{path}, line {number}")))
            # A question is often in one field and its answer in another.
            yield from [*leaves, " ".join(leaves)]


def _grams(ids: npt.NDArray[np.uint64], weights: Weights) -> Hashes:
    """Hash every run of N words, all of their ids above 0: [number of runs]."""
    starts, ends = spans(weights, N)
    known = np.cumsum(np.concatenate([[0], ids > 0]))
    whole = known[ends] - known[starts] == ends - starts
    mixed = ids * _FACTOR
    return hashed(mixed ^ (mixed >> np.uint64(29)), starts[whole], ends[whole])


def build(paths: list[Path], folder: Path) -> list[str]:
    """Write what `rule` needs into a folder.

    Returns:
        Names of the files written.

    Raises:
        InputError: no evaluation text, or a damaged file.
    """
    named = find(paths)
    sets = sorted({name for name, _ in named})
    vocabulary: dict[str, int] = {}
    rows: list[npt.NDArray[np.uint64]] = []
    for name, path in named:
        ids: list[int] = []
        weights: list[Weights] = []
        for text in _texts(path):
            words, weight = units(text)
            ids += [vocabulary.setdefault(word, len(vocabulary) + 1) for word in words]
            ids.append(0)  # no run goes from one text into the next
            weights += [weight, np.array([WORD])]
        grams = _grams(np.array(ids, np.uint64), np.concatenate([*weights, np.empty(0, np.int64)]))
        rows.append(np.stack([grams, np.full(len(grams), sets.index(name), np.uint64)]))
    every = np.concatenate([*rows, np.empty((2, 0), np.uint64)], axis=1)
    grams, first = np.unique(every[0], return_index=True)
    if not len(grams):
        raise InputError(
            f"{paths[0]}: no evaluation text of {N} words or more ({2 * N - 1} characters of Chinese or Japanese, "
            f"{4 * N - 3} of Thai and other scripts without spaces)"
        )
    (folder / _SETS).write_text(json.dumps(sets))
    (folder / _VOCABULARY).write_text("\n".join(vocabulary), encoding="utf-8")
    np.save(folder / _GRAMS, np.stack([grams, every[1, first]]))
    return [_SETS, _VOCABULARY, _GRAMS]


def described(paths: list[Path]) -> dict[str, str]:
    """Name and sha256 of every evaluation file."""
    return {f"{name}/{path.name}": sha256_file(path) for name, path in find(paths)}


@lru_cache(maxsize=1)
def _load(folder: Path, _written: int) -> tuple[list[str], dict[str, int], npt.NDArray[np.uint64]]:
    vocabulary = (folder / _VOCABULARY).read_text(encoding="utf-8").split("\n")
    table = np.load(folder / _GRAMS)
    return json.loads((folder / _SETS).read_text()), {w: i for i, w in enumerate(vocabulary, 1)}, table


def rule(folder: Path) -> Rule:
    """Drops a document that shares thirteen words in a row with an evaluation text, and names the set."""
    sets, vocabulary, (grams, origin) = _load(folder, (folder / _GRAMS).stat().st_mtime_ns)

    def judge(document: Document) -> Verdict:
        words, weights = units(document.text)
        ids = np.fromiter(map(vocabulary.get, words, repeat(0)), np.uint64, len(words))
        own = _grams(ids, weights)
        places = np.minimum(np.searchsorted(grams, own), len(grams) - 1)
        hit = np.flatnonzero(grams[places] == own)
        return (False, f"evaluation text: {sets[int(origin[places[hit[0]]])]}") if len(hit) else True

    return judge
