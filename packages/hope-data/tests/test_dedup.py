import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hope_data import decontaminate, dedup, documents, filters, units
from hope_data.cli import main
from hope_data.config import FilterConfig
from hope_data.documents import Document
from hope_data.errors import InputError

VOCABULARY = [
    f"{a}{b}{c}" for a in "bdfgklmnprstv" for b in "aeiou" for c in ("n", "r", "st", "lk", "m", "th")
]


def text(rng: random.Random, n_words: int = 120) -> str:
    return " ".join(rng.choices(VOCABULARY, k=n_words))


def edited(rng: random.Random, original: str, share: float = 0.05) -> str:
    """The text with this share of its words replaced, deleted or doubled, at random places."""
    words = original.split()
    for i in rng.sample(range(len(words)), round(share * len(words))):
        words[i] = rng.choice([rng.choice(VOCABULARY), "", f"{words[i]} {words[i]}"])
    return " ".join(words)


def signed(texts: list[str]) -> dedup.Signatures:
    rows = np.zeros(len(texts), dedup.SIGNATURE)
    rows["hashes"], rows["words"] = dedup.minhashes(texts)
    return rows


def jaccard(one: str, other: str) -> float:
    a, b = (
        {tuple(words[i : i + 3]) for i in range(len(words) - 2)}
        for words, _ in map(units.units, (one, other))
    )
    return len(a & b) / len(a | b)


def naive(rows: dedup.Signatures, similarity: float) -> list[bool]:
    """Whether any earlier text is like each one: every pair compared."""
    same = [[(a == b).mean() >= similarity for b in rows["hashes"]] for a in rows["hashes"]]
    return [any(same[j][:j]) for j in range(len(rows))]


def test_minhashes_estimate_the_jaccard_similarity() -> None:
    rng = random.Random(0)
    errors = []
    for share in (0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 1.0):
        for _ in range(20):
            one = text(rng)
            other = edited(rng, one, share)
            rows = signed([one, other])["hashes"]
            errors.append((rows[0] == rows[1]).mean() - jaccard(one, other))
    # The standard error of a share of 128 draws is at most 0.044; 140 of them leave 0.004 for the mean.
    assert abs(np.mean(errors)) < 0.012
    assert 0.02 < np.std(errors) < 0.044


def test_bands_find_what_comparing_every_pair_finds() -> None:
    rng = random.Random(1)
    texts = [text(rng) for _ in range(80)]
    texts += [edited(rng, rng.choice(texts), rng.choice([0.01, 0.05, 0.08])) for _ in range(120)]
    rows = signed(texts)
    found = dedup.first_like(rows, 0.65)
    like = [int(i) != k for k, i in enumerate(found)]
    expected = naive(rows, 0.65)
    assert sum(expected) > 80
    assert not [k for k in range(200) if like[k] and not expected[k]]
    # 0.95 of the pairs at the threshold share a band, more of those above it.
    assert sum(like) >= 0.97 * sum(expected)


def test_recall_of_planted_and_no_false_removal() -> None:
    rng = random.Random(2)
    originals = [text(rng, rng.randint(80, 300)) for _ in range(1500)]
    planted = [edited(rng, original) for original in originals[:300]]
    found = dedup.first_like(signed(originals + planted), 0.65)
    assert (found[:1500] == np.arange(1500)).all()
    assert (found[1500:] == np.arange(300)).mean() >= 0.95


def test_short_texts_are_not_judged_by_a_few_trigrams() -> None:
    found = dedup.first_like(signed(["Returns the sum.", "Returns the sum.", ""]), 0.65)
    assert found.tolist() == [0, 1, 2]


def test_stage_drops_near_duplicates_within_and_across_corpora(
    tmp_path: Path, make_corpus: Callable[..., Path]
) -> None:
    rng = random.Random(3)
    a = [text(rng) for _ in range(12)]
    b = [text(rng) for _ in range(12)]
    first = make_corpus(tmp_path, "a", [*a, edited(rng, a[0]), a[1] + "\n"])
    record = documents.provenance(first)
    assert record["dropped"] == {"duplicate": 1, "near duplicate": 1}
    make_corpus(tmp_path, "b", [b[0], a[2], *b[1:], edited(rng, a[3]), b[5], edited(rng, b[6])])
    out = tmp_path / "clean" / "b"
    assert main(["filter", str(tmp_path / "raw" / "b"), "--out", str(out), "--against", str(first)]) == 0
    record = documents.provenance(out)
    assert record["dropped"] == {
        "duplicate": 1, "near duplicate": 1, "duplicate of a": 1, "near duplicate of a": 1,
    }  # fmt: skip
    assert record["samples"]["duplicate of a"][0]["text"] == a[2][:500]
    assert [d.text for d in documents.read(out)] == b
    assert list(record["against"]) == ["a"]
    plain = make_corpus(
        tmp_path, "c", [a[0], edited(rng, a[0]), a[1], a[1]], "filter: {near_duplicate: 0, language: ''}"
    )
    assert documents.provenance(plain)["dropped"] == {"duplicate": 1}


def test_damaged_signatures_are_named(tmp_path: Path, make_corpus: Callable[..., Path]) -> None:
    rng = random.Random(4)
    clean = make_corpus(tmp_path, "a", [text(rng) for _ in range(5)])
    path = clean / "part-00000.signatures.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    with pytest.raises(InputError, match=r"signatures\.npy: is missing or damaged"):
        filters.run(tmp_path / "raw" / "a", tmp_path / "x", against=[clean])


def test_evaluation_text_is_dropped_and_its_set_named(
    tmp_path: Path, make_corpus: Callable[..., Path]
) -> None:
    rng = random.Random(5)
    questions, answer = [text(rng, 20) for _ in range(4)], text(rng, 6)
    folder = tmp_path / "eval"
    (folder / "quiz").mkdir(parents=True)
    rows = [{"goal": q, "sol": [answer, "no"]} for q in questions[:3]]
    (folder / "quiz" / "valid.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "plain.txt").write_text(questions[3] + "\n" + answer)
    texts = [text(rng) for _ in range(6)]
    words = questions[0].split()
    texts[1] += " " + " ".join(words[2:15]).upper().replace(" ", ", ")  # 13 words in a row
    texts[2] += " " + " ".join(words[2:14])  # 12
    texts[3] += f" {questions[3]}"
    texts[4] += f" {' '.join(words[-7:])} {answer}"  # across two fields of a row
    make_corpus(tmp_path, "a", texts)
    raw, out = str(tmp_path / "raw" / "a"), tmp_path / "clean" / "a"
    assert main(["filter", raw, "--out", str(out), "--evaluation", str(folder)]) == 0
    record = documents.provenance(out)
    assert record["dropped"] == {"evaluation text: quiz": 2, "evaluation text: plain": 1}
    assert [d.text for d in documents.read(out)] == [texts[0], texts[2], texts[5]]
    assert sorted(record["evaluation"]) == ["plain/plain.txt", "quiz/valid.jsonl"]


def test_evaluation_rule_agrees_with_sets_of_tuples(tmp_path: Path) -> None:
    rng = random.Random(6)
    few = VOCABULARY[:2]
    (tmp_path / "e.txt").write_text(" ".join(rng.choices(few, k=700)))
    evaluated = (tmp_path / "e.txt").read_text().split()
    grams = {tuple(evaluated[i : i + 13]) for i in range(len(evaluated) - 12)}
    decontaminate.build([tmp_path / "e.txt"], tmp_path)
    rule, hits = decontaminate.rule(tmp_path), 0
    for _ in range(300):
        words = rng.choices(few, k=30)
        words[rng.randrange(30)] = "unknown"
        expected = any(tuple(words[i : i + 13]) in grams for i in range(18))
        hits += expected
        assert (rule(Document(" ".join(words), "d")) is not True) == expected
    assert 100 < hits < 290


def test_evaluation_text_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "short.jsonl").write_text('{"q": "too short to tell"}\n')
    with pytest.raises(InputError, match="no evaluation text of 13 words"):
        decontaminate.build([tmp_path / "short.jsonl"], tmp_path)
    with pytest.raises(InputError, match=r"no \.jsonl or \.txt file"):
        decontaminate.find([tmp_path / "absent"])


def test_a_folder_without_evaluation_text_is_said_and_an_absent_one_stops(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "README.md").write_text("no text")
    given = ["filter", str(data / "raw" / "a"), "--out", str(tmp_path / "a"), "--evaluation"]
    assert main([*given, str(tmp_path / "absent")]) == 2
    assert "absent: no .jsonl or .txt file" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
    assert main([*given, str(tmp_path / "eval")]) == 0
    assert "eval: no .jsonl or .txt file here, so no document is dropped" in capsys.readouterr().out
    assert documents.provenance(tmp_path / "a") == documents.provenance(data / "clean" / "a")


def test_default_is_what_the_docstring_says() -> None:
    assert FilterConfig().near_duplicate == 0.65
    assert (dedup.HASHES, dedup.BANDS, dedup.ROWS) == (128, 25, 5)
    assert pytest.approx(0.95, abs=0.01) == 1 - (1 - 0.65**5) ** 25
