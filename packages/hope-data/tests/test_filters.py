import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from hope_data import documents, filters, rules
from hope_data.cli import main
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
CONFIG, ENGLISH = FilterConfig(), FilterConfig(language="en")
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
        (rules.language(ENGLISH), PROSE, GERMAN, "language de, not en"),
        (rules.language(FilterConfig(language="de")), GERMAN, PROSE, "language en, not de"),
    ],
)
def test_rule(rule: rules.Rule, good: str, bad: str, reason: str) -> None:
    assert rule(Document(good, "g")) is True
    verdict = rule(Document(bad, "b"))
    assert verdict is not True
    assert verdict[:2] == (False, reason)


def test_zero_switches_a_rule_off() -> None:
    off = FilterConfig(max_symbols=0, max_bullets=0, max_word=0, max_duplicate_lines=0, max_top_trigram=0)
    assert rules.symbols(off)(Document("# ...\n- #\n", "d")) is True
    assert rules.repetition(off)(Document("a b c " * 100, "d")) is True


def test_code_is_judged_more_loosely() -> None:
    code = "import os\n\n\ndef main(path):\n    for x in os.scandir(path):\n        print(x)  # name\n" * 2
    assert rules.repetition(CODE_FILTER)(Document(code, "c")) is True
    assert rules.repetition(CONFIG)(Document(code, "c")) == (False, "repeated lines")


def test_language_looks_in_three_places() -> None:
    names = "Łukasz Langa, Jukka Lehtosalo, Mark Shannon, Ivan Levkivskyi, Pradeep Srinivasan, " * 6
    assert rules.language(ENGLISH)(Document(names + "\n" + PROSE * 5, "d")) is True


# Pages of documentation and of an encyclopedia, as they were dropped for "nl", "zxx" and "la" once.
FORMULAS = """\
legendre

Functions
---------
   legadd legsub legmulx legmul legdiv legpow legval legval2d legval3d leggrid2d leggrid3d
   legder legint legfromroots legroots legvander legvander2d legvander3d leggauss legweight
   legcompanion legfit legtrim legline leg2poly poly2leg
"""
EXAMPLE = """\
acos

Args: {input}
Keyword args: {out}

>>> a = randn(4)
>>> a
tensor([ 0.3348, -0.5889,  0.2005, -0.1584])
>>> acos(a)
tensor([ 1.2294,  2.2004,  1.3690,  1.7298])
"""


LATIN_NAMES = """\
Vexillum roseum

Vexillum roseum is a species of small sea snail, marine gastropod mollusk in the family Costellariidae.
Synonyms.
Mitra rosea Broderip, 1836; Mitra (Costellaria) rosea; Turricula rosea; Vexillum (Costellaria) roseum.
"""


@pytest.mark.parametrize("text", [LATIN_NAMES, FORMULAS, EXAMPLE, "ok", "", "12 34"])
def test_a_language_that_is_unsure_is_no_reason(text: str) -> None:
    assert rules.language(ENGLISH)(Document(text, "d")) is True


def test_a_language_is_named_with_how_sure_it_is_read() -> None:
    verdict = rules.language(ENGLISH)(Document(GERMAN * 6, "d"))
    assert verdict is not True
    assert verdict[1] == "language de, not en"
    assert re.fullmatch(r"read as de (0\.9\d|1\.00), en 0\.0\d", verdict[2])
    with pytest.raises(
        InputError, match=r"^filter\.language: 'zh-CN' is not known; '' takes any, else one of .* zh, "
    ):
        rules.language(FilterConfig(language="zh-CN"))


def test_cantonese_is_chinese_unless_it_is_asked_for() -> None:
    text = "佢哋話今日落雨，所以我哋唔去海邊喇。你食咗飯未呀？我哋聽日再傾啦，好唔好呀。" * 4
    assert rules.language(FilterConfig(language="zh"))(Document(text, "d")) is True
    assert rules.language(FilterConfig(language="yue"))(Document(text, "d")) is True
    verdict = rules.language(ENGLISH)(Document(text, "d"))
    assert verdict is not True
    assert verdict[1] == "language zh, not en"


@pytest.mark.parametrize(
    ("rule", "text", "reason"),
    [
        (rules.repetition(CONFIG), "买便宜鞋子" * 60, "repeated words"),
        (rules.repetition(CONFIG), "今天天气很好。\n" * 60, "repeated lines"),
        (rules.symbols(CONFIG), "#今天#天气#很好" * 30, "symbols"),
        (rules.letters(CONFIG), "，。、；（）12 34 今天" * 30, "few letters"),
    ],
)
def test_rules_still_drop_bad_text_without_spaces(rule: rules.Rule, text: str, reason: str) -> None:
    assert rule(Document(text, "d")) == (False, reason)


@pytest.mark.parametrize("text", ["ក្រុមប្រឹក្សាភិបាល", "မြန်မာစာသည်", "བོད་ཡིག་ནི", "शब्दों", "שָׁלוֹם"])
def test_marks_are_letters(text: str) -> None:
    """More than half of some of these are marks."""
    assert rules.letters(FilterConfig(min_letters=0.8))(Document(text * 20, "d")) is True


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


def test_stage_groups_languages_and_its_samples_say_how_sure(
    tmp_path: Path, make_corpus: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    german = [GERMAN + f" Das war im Jahr {1900 + i}, sagte der Wirt {'gern ' * i}." for i in range(3)]
    clean = make_corpus(tmp_path, "c", [PROSE, *german], "filter: {language: en, near_duplicate: 0}")
    record = documents.provenance(clean)
    assert record["dropped"] == {"language de, not en": 3}
    samples = record["samples"]["language de, not en"]
    assert [sample["details"][:10] for sample in samples] == ["read as de"] * 3
    assert main(["look", str(clean)]) == 0
    assert f"c.jsonl:2: {samples[0]['details']}: Der Hafen" in capsys.readouterr().out


def test_nothing_left_is_an_error(tmp_path: Path, make_corpus: Callable[..., Path]) -> None:
    with pytest.raises(AssertionError):
        make_corpus(tmp_path, "c", [SHORT, SHORT + "!"])
    assert not (tmp_path / "clean").exists() or not list((tmp_path / "clean").iterdir())
    with pytest.raises(InputError, match=r"every document was dropped \(too short 2\)"):
        filters.run(tmp_path / "raw" / "c", tmp_path / "x")
