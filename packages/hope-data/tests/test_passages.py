"""Passages that come again: found as counting them finds them, cut as by hand, and in the stage."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hope_data import documents, filters, passages


def by_hand(texts: list[str], size: int) -> list[list[bool]]:
    """Whether an earlier text has the passage, by sets of strings."""
    seen: set[str] = set()
    marks = []
    for text in texts:
        rows = [" ".join(line.split()) for line in text.split("\n") if line.strip()]
        runs = [" ".join(rows[i : i + size]) for i in range(len(rows) - size + 1)]
        long_enough = [run for run in runs if len(run.split()) >= passages.MIN_WORDS]
        marks.append([run in seen for run in runs])
        seen.update(long_enough)
    return marks


@pytest.mark.parametrize("size", [1, 3])
def test_repeated_agrees_with_sets_of_strings(size: int, tmp_path: Path) -> None:
    rng = random.Random(size)
    pool = [
        "\n".join(" ".join(rng.choices("abcdefgh", k=rng.randint(1, 14))) for _ in range(rng.randint(1, 5)))
        for _ in range(40)
    ]
    texts = ["\n".join(rng.choices([*pool, "", "  "], k=rng.randint(0, 30))) for _ in range(60)]
    expected = by_hand(texts, size)
    halves = []
    for i, part in enumerate((texts[:25], texts[25:])):
        np.save(tmp_path / f"{i}.npy", passages.table(part, size, 0))
        halves.append(tmp_path / f"{i}.npy")
    found = passages.repeated(halves, [np.ones(25, bool), np.ones(35, bool)])
    assert np.concatenate(found).tolist() == [mark for row in expected for mark in row]
    assert 50 < sum(map(sum, expected)) < sum(map(len, expected)) - 50
    # A text that is dropped for another reason lends its passages to nobody.
    kept = np.arange(25) > 0
    without = passages.repeated(halves, [kept, np.ones(35, bool)])
    others = [mark for row in by_hand(texts[1:], size) for mark in row]
    assert np.concatenate(without)[len(expected[0]) :].tolist() == others


def test_cut_leaves_one_blank_line_and_no_hole() -> None:
    text = "title\n\none\n\ntwo\nthree\n\nfour\nfive\n"
    marks = np.zeros(len(passages.keys(text, 3)), bool)
    assert passages.cut(text, 3, marks) == text
    marks[1] = True
    assert passages.first(text, 3, marks) == "one\ntwo\nthree"
    assert passages.cut(text, 3, marks) == "title\n\nfour\nfive\n"
    marks[3] = True
    assert passages.cut(text, 3, marks) == "title\n"


SAID = "The value is taken from the\nenvironment unless a caller\ngives it, and is never below zero.\n"


def test_stage_cuts_counts_and_keeps_the_split(
    tmp_path: Path, make_corpus: Callable[..., Path], sentences: Callable[[int, int], str]
) -> None:
    """Twenty texts share a passage: the first keeps it."""
    own = [sentences(i, 10) for i in range(20)]
    texts = [f"{text}\n{SAID}\n{sentences(100 + i, 3)}" for i, text in enumerate(own)]
    plain = make_corpus(tmp_path, "p", texts)
    settings = "filter: {language: '', passage_lines: 3}"
    cut = make_corpus(tmp_path, "c", texts, settings)
    before, after = documents.provenance(plain), documents.provenance(cut)
    assert before["cut"] == {"documents": 0, "bytes": 0}
    assert before["documents"] == after["documents"] == 20
    assert after["cut"]["documents"] == 19
    assert after["cut"]["bytes"] == 19 * (len(SAID) + 1)
    found = list(documents.read(cut))
    assert [d.text.count(SAID) for d in found] == [1] + [0] * (len(found) - 1)
    assert found[3].text == f"{own[3]}\n{sentences(103, 3)}"
    assert found[3].meta["cut"] == len(SAID) + 1
    assert sum(len(d.text.encode()) for d in found) == after["bytes"]
    # The hash, and so the split, is of the whole text.
    whole = {d.meta["sha256"]: d.text for d in documents.read(plain)}
    assert all(d.meta["sha256"] in whole for d in found)
    assert after["samples"]["cut"][0]["text"] == SAID.strip("\n")


def test_nothing_left_of_a_document_is_a_reason(
    tmp_path: Path, make_corpus: Callable[..., Path], sentences: Callable[[int, int], str]
) -> None:
    passage = sentences(7, 6)
    texts = [f"{sentences(i, 8)}\n{passage}" for i in range(5)] + [f"Short.\n\n{passage}"]
    clean = make_corpus(tmp_path, "c", texts, "filter: {language: '', passage_lines: 2}")
    record = documents.provenance(clean)
    assert record["dropped"] == {"repeated passages": 1}
    assert record["samples"]["repeated passages"][0]["text"] == texts[5]
    assert record["documents"] == 5
    again = filters.run(tmp_path / "raw" / "c", tmp_path / "two", workers=2)
    assert again["files"] == record["files"]
