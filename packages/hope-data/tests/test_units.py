"""Units against plain Python that does the same character by character."""

import re
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hope_data import units

# Letters, marks, digits and white space of scripts with and without spaces, half of the time; else anything.
MIXED = st.text(
    st.one_of(
        st.sampled_from("ab Zé_1 e\u0301你好。ア的ไทยนี้\u0e49한\u1112कि \n\u200d\u00ad#"), st.characters()
    )
)


def without_spaces(char: str) -> bool:
    """Named by hand: what Unicode's names say of the scripts that these tests draw from."""
    scripts = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "TIBETAN", "MYANMAR", "KHMER", "YI SYLLABLE")
    return char.isalnum() and unicodedata.name(char, "").startswith(scripts)


@pytest.mark.parametrize(
    ("text", "found", "weights"),
    [
        ("Don't STOP, snake_case 3.14", ["don", "t", "stop", "snake_case", "3", "14"], [4] * 6),
        ("你好，世界！", ["你", "好", "世", "界"], [2] * 4),
        ("カタカナとひらがな", list("カタカナとひらがな"), [2] * 9),
        ("นี่", ["นี่"], [1]),
        ("ภาษาไทย", ["ภ", "า", "ษ", "า", "ไ", "ท", "ย"], [1] * 7),
        ("བོད་ཡིག", ["བོ", "ད", "ཡི", "ག"], [1] * 4),
        ("मनुष्य जाति", ["मनुष्य", "जाति"], [4] * 2),
        ("한국어 문장", ["한국어", "문장"], [4] * 2),
        ("שָׁלוֹם עֲלֵיכֶם", ["שָׁלוֹם", "עֲלֵיכֶם"], [4] * 2),
        ("GPT是model的", ["gpt", "是", "model", "的"], [4, 2, 4, 2]),
        (
            "long\u200bword di\u00advi\u200cded \u200bមនុស្ស\u200b",
            ["longword", "divided", "ម", "នុ", "ស្", "ស"],
            [4, 4, 1, 1, 1, 1],
        ),
        ("ＡＢＣ ﬁne ①", ["abc", "fine", "1"], [4] * 3),
        ("❤️ … — “”", [], []),
    ],
)
def test_units_of_scripts(text: str, found: list[str], weights: list[int]) -> None:
    got, weight = units.units(text)
    assert got == [unicodedata.normalize("NFKC", unit) for unit in found]
    assert weight.tolist() == weights


@given(text=st.text(st.characters(max_codepoint=0x7F)))
def test_english_has_the_words_it_always_had(text: str) -> None:
    assert units.units(text)[0] == re.findall(r"\w+", text.lower())
    assert units.pieces(text) == text.split()
    assert units.count(text) == len(text.split())
    assert units.letters(text) == sum(map(len, re.findall(r"[^\W\d_]+", text)))


@given(text=MIXED)
def test_units_hold_every_letter_once_in_order(text: str) -> None:
    found, weights = units.units(text)
    plain = units._plain(text)
    assert [c for unit in found for c in unit if c.isalnum()] == [c for c in plain if c.isalnum()]
    assert len(weights) == len(found)
    for unit, weight in zip(found, weights, strict=True):
        assert not without_spaces(unit[0]) or (weight < units.WORD and not any(map(str.isalnum, unit[1:])))


@given(one=MIXED, other=MIXED)
def test_units_are_those_of_the_parts_whatever_stands_around(one: str, other: str) -> None:
    assert units.units(f"{one} {other}")[0] == units.units(one)[0] + units.units(other)[0]
    assert units.units(unicodedata.normalize("NFD", one))[0] == units.units(one)[0]
    assert units.units("\u200d".join(one))[0] == units.units("".join(one))[0]


@given(text=MIXED)
def test_pieces_leave_out_white_space_only(text: str) -> None:
    found = units.pieces(text)
    assert "".join(found) == "".join(text.split())
    assert all(sum(map(without_spaces, piece)) <= 1 for piece in found)


@given(weights=st.lists(st.sampled_from([1, 2, 4]), max_size=40), n=st.sampled_from([1, 3, 13]))
def test_spans_and_hashes_agree_with_a_loop(weights: list[int], n: int) -> None:
    values = np.array([hash((i % 7, w)) % 2**64 for i, w in enumerate(weights)], np.uint64)
    expected = []
    for start in range(len(weights)):
        end = next(
            (e for e in range(start + 1, len(weights) + 1) if sum(weights[start:e]) > 4 * (n - 1)), None
        )
        if end:
            expected.append((start, end))
    starts, ends = units.spans(np.array(weights, np.int64), n)
    assert list(zip(starts, ends, strict=True)) == expected
    hashes = units.hashed(values, starts, ends)
    contents = [tuple(values[a:b].tolist()) for a, b in expected]
    assert len(set(hashes.tolist())) == len(set(contents))
    assert len(hashes) == len(contents)
