import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hope_data import documents, filters, rules
from hope_data.config import CODE_FILTER, FilterConfig
from hope_data.documents import Document
from hope_data.errors import InputError

PROSE = (
    "The harbour was quiet when the first boats came home. Nobody on the quay spoke, for the storm had taken two of "
    "them, and the women who waited there could count. A bell rang in the village; somebody had seen a sail, far out."
)
GERMAN = (
    "Der Hafen war still, als die ersten Boote nach Hause kamen. Niemand am Kai sprach, denn der Sturm hatte zwei von "
    "ihnen geholt, und die Frauen, die dort warteten, konnten zählen. Im Dorf läutete eine Glocke."
)
CONFIG = FilterConfig()
SHORT = "A short one."


@pytest.mark.parametrize(
    ("rule", "good", "bad", "reason"),
    [
        (rules.length(CONFIG), PROSE, SHORT, "too short"),
        (rules.length(FilterConfig(max_chars=300)), PROSE, PROSE * 2, "too long"),
        (rules.letters(CONFIG), PROSE, "12 34 (56) 7.8 | " * 20, "few letters"),
        (rules.symbols(CONFIG), PROSE, "# one ... two # three\n" * 10, "symbols"),
        (rules.symbols(CONFIG), PROSE, "- milk and bread\n* eggs and ham\n" * 9, "bullets"),
        (rules.symbols(CONFIG), PROSE, "unreasonablylongwords " * 20, "long words"),
        (rules.repetition(CONFIG), PROSE, "Click here to read more news.\n" * 20 + PROSE, "repeated lines"),
        (rules.repetition(CONFIG), PROSE, "buy cheap shoes " * 20 + PROSE, "repeated words"),
        (rules.language(CONFIG), PROSE, GERMAN, "language de"),
        (rules.language(FilterConfig(language="de")), GERMAN, PROSE, "language en"),
    ],
)
def test_rule(rule: rules.Rule, good: str, bad: str, reason: str) -> None:
    assert rule(Document(good, "g")) is True
    assert rule(Document(bad, "b")) == (False, reason)


def test_zero_switches_a_rule_off() -> None:
    off = FilterConfig(max_symbols=0, max_bullets=0, max_word=0, max_duplicate_lines=0, max_top_trigram=0)
    assert rules.symbols(off)(Document("# ...\n- #\n", "d")) is True
    assert rules.repetition(off)(Document("a b c " * 100, "d")) is True


def test_code_is_judged_more_loosely() -> None:
    code = "import os\n\n\ndef main(path):\n    for x in os.scandir(path):\n        print(x)  # name\n" * 2
    assert rules.repetition(CODE_FILTER)(Document(code, "c")) is True
    assert rules.repetition(CONFIG)(Document(code, "c")) == (False, "repeated lines")
    assert len(filters.rules_of(CODE_FILTER)) == len(filters.rules_of(CONFIG)) - 1


def test_language_looks_in_three_places() -> None:
    names = "Łukasz Langa, Jukka Lehtosalo, Mark Shannon, Ivan Levkivskyi, Pradeep Srinivasan, " * 6
    assert rules.language(CONFIG)(Document(names + "\n" + PROSE * 5, "d")) is True


@pytest.mark.parametrize(
    ("text", "repaired"),
    [
        ("schÃ¶n", "schön"),
        ("e\u0301", "é"),
        ("a\r\nb\rc", "a\nb\nc"),
        ("a\0b\x1b\x07c\td", "abc\td"),
        ("&amp; “quoted” ﬁne", "&amp; “quoted” ﬁne"),
        ("plain ASCII\n  stays", "plain ASCII\n  stays"),
    ],
)
def test_repair(text: str, repaired: str) -> None:
    if text.startswith("&"):
        repaired = repaired.replace("ﬁ", "ﬁ")
    assert filters.repair(text) == repaired


def test_stage_counts_every_reason_and_keeps_samples(
    tmp_path: Path, make_corpus: Callable[..., Path], sentences: Callable[[int, int], str]
) -> None:
    good = [sentences(i, 10) for i in range(20)]
    texts = [*good, *good[:7], *(f"{SHORT} {i}" for i in range(9)), sentences(99, 10) + "cafÃ©\n"]
    record = documents.provenance(make_corpus(tmp_path, "c", texts))
    assert record["raw_documents"] == 37
    assert record["documents"] == 21
    assert record["dropped"] == {"duplicate": 7, "too short": 9}
    assert record["dropped_bytes"]["too short"] == 9 * len(SHORT + " 0")
    assert record["repaired"] == 1
    assert [s["text"] for s in record["samples"]["too short"]] == [f"{SHORT} {i}" for i in range(5)]
    kept = list(documents.read(tmp_path / "clean" / "c"))
    assert kept[-1].text.endswith("café\n")
    shas = [d.meta["sha256"] for d in kept]
    assert (record["split"]["lowest"], record["split"]["highest"]) == (min(shas), max(shas))
    json.dumps(record)


def test_nothing_left_is_an_error(tmp_path: Path, make_corpus: Callable[..., Path]) -> None:
    with pytest.raises(AssertionError):
        make_corpus(tmp_path, "c", [SHORT, SHORT + "!"])
    assert not (tmp_path / "clean").exists() or not list((tmp_path / "clean").iterdir())
    with pytest.raises(InputError, match=r"every document was dropped \(too short 2\)"):
        filters.run(tmp_path / "raw" / "c", tmp_path / "x")
