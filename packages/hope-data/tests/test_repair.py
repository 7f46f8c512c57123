"""Sound text comes out byte for byte; broken text is mended, and mended once for all."""

import sys

import ftfy.bad_codecs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hope_data.repair import repair, valid

SOUND = [
    "你好，世界！（一）　下一段……",  # full-width marks, ideographic space, Chinese ellipsis
    'len("Ａ") + len("ｱｲｳ")',  # full-width and half-width letters
    "ﬁne ﬂow eﬀect ﬆ Ǆ ĳ",  # ligatures
    "“curly” ‘quotes’ „unten“ «guillemets» it’s — en–em…",
    "e\u0301 \u00e9 a\u030a \u212b \u1e9b\u0323",  # NFD, NFC, compatibility characters
    "한국어 \u1112\u1161\u11ab",  # composed and decomposed Hangul
    "ﷺ ﺳﻼم ﻻ ـــ",  # Arabic presentation forms
    "می‌خواهم क्‍ष ക്‍",  # zero-width joiners and non-joiners
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 1️⃣ 🇩🇪",
    "a\u00a0b\u202fc\u2003d\u200be\u00adf\u2060g",  # spaces of every width, soft hyphen
    "\u200eabc\u200f \u202aabc\u202c \u2066abc\u2069",  # direction marks
    "one\r\ntwo\rthree\n\n  four \t \n\x0bfive\x0csix \u2028seven\u2029eight\x85nine",  # line ends, trailing space
    "\ufeffwith a byte order mark, and \ufeff inside",
    "&amp; &lt;b&gt; &eacute; <br>",
    "x² + y³ ≠ ½ · 10⁻³ µm ± 5 °C × 3 €/£, №5, ™ ® © § ¶ † ‡ ‰",
    "\ue000 \U000f0000 \uffff \ufffe \ufdd0",  # private use, noncharacters
    "\ufffd lost \ufffd",
    "ABCDEFGZÁÄČĎÉÍĹĽŇÓÔŔŠŤÚÝŽáäčďéíĺľňóôŕšťúýž",  # alphabets, which look like UTF-8 in Windows-1250
    "ĄąĆćĘęŁłŃńÓóŚśŹźŻż čšžČŠŽ ĆćČčĐđŠšŽž",
    "“A CAMPEÃ” «AMANHû VOILÀ… “CAFÉ” ÇA OÙ",
    'AMANHÃ—DISSE A IRMÃ”\n“Foi\na IRMÃ”.\nÉ *IRMÃ”*, «hoje\ne AMANHÃ».\nMANHÃ – "A IRMÃ–"',
    "“KLASÖR AÇ”I, ”JÄÄ”ksi",
    "Ñandú, Þór, Ærø, Œuvre, ŞİĞ, Straße",
    "┌──┬──┐ │ ├──┼──┤ ▀▄█ ░▒▓",
    "¯\\_(ツ)_/¯ ( ͡° ͜ʖ ͡°) (╯°□°)╯︵ ┻━┻ ಠ_ಠ",
    "plain ASCII\n  stays, ~ and \\ and \t too\n",
]
BROKEN = [
    ("schÃ¶n", "schön"),
    ("你好 “schÃ¶n” 世界", "你好 “schön” 世界"),
    ("Blokkstørrelse må vÃ¦re delbart", "Blokkstørrelse må være delbart"),
    ("dÃ©jÃ\xa0 vu, itâ€™s â€œfineâ€\x9d â€“ yes", "déjà vu, it’s “fine” – yes"),
    ("3Ã—4, MÃ—N, aÃ—b, GRÃ–SSE, ESPAÃ‘A, Î”x", "3×4, M×N, a×b, GRÖSSE, ESPAÑA, Δx"),
    ("METRÃ” E CAFÃ‰", "METRÔ E CAFÉ"),
    ("é and â\x80\x93 here", "é and – here"),
    ("Ð¿Ñ€Ð¸Ð²ÐµÑ‚", "привет"),
    ("ä½\xa0å¥½", "你好"),
    ("schÃƒÂ¶n", "schön"),
    ("PĹ™Ă\xadliĹˇ ĹľluĹĄouÄŤkĂ˝ kĹŻĹ\x88", "Příliš žluťoučký kůň"),
    ("it\x92s \x93fine\x94\x85 ok", "it’s “fine”… ok"),
    ("日本\x92s", "日本’s"),
    ("ï»¿wörld", "wörld"),
    ("ï»¿world", "world"),
    ("a\0b\x1b\x07c\td", "abc\td"),
    ("\x1b[1;31mred\x1b[0m ö", "red ö"),
    ("Ã\x00¶l", "öl"),
    ("\ud83d\ude00 \ud800x", "😀 \ufffdx"),
]
WRITTEN = [
    "Ça va être déjà vu, voilà à côté",
    "Привет, как дела? Мы читаем книгу.",
    "今天天气很好，我们去公园散步。",
    "Ελληνικά κείμενα",
    "اللغة العربية",
    "Tiếng Việt rất hay",
    "“curly” — and dashes… it’s",
    "½ cup · 20 °C ± 3 😀",
]


@pytest.mark.parametrize("text", SOUND)
def test_sound_text_stays_byte_for_byte(text: str) -> None:
    assert repair(text) == text


@pytest.mark.parametrize(("text", "mended"), BROKEN)
def test_broken_text_is_mended(text: str, mended: str) -> None:
    assert repair(text) == mended
    assert repair(mended) == mended
    sound = "今天天气很好。 Ça va?\n"
    assert repair(f"{sound}{text}\n{sound}") == f"{sound}{mended}\n{sound}"


@given(text=st.text(max_size=80))
def test_what_comes_out_is_valid_and_stays(text: str) -> None:
    once = repair(text)
    once.encode()
    assert repair(once) == once


@given(text=st.text(st.characters(exclude_categories=["Cs", "Cc"], min_codepoint=0x400), max_size=80))
def test_text_that_no_western_encoding_can_say_stays(text: str) -> None:
    text = "".join(char for char in text if ord(char) > 0x530 and not 0x2000 <= ord(char) < 0x2600)
    assert repair(text + " a b\n") == text + " a b\n"


@given(text=st.text(st.sampled_from("Ã¶Â©â€™œ\x93\x80 aé\n中ßžłÐ\x00\x85\ufffd"), max_size=20))
def test_mending_ends_whatever_is_mixed(text: str) -> None:
    assert repair(repair(text)) == repair(text)


@pytest.mark.parametrize("encoding", ["latin-1", "sloppy-windows-1252"])
@pytest.mark.parametrize("text", WRITTEN)
def test_a_text_read_wrongly_comes_back(encoding: str, text: str) -> None:
    assert ftfy.bad_codecs  # knows the sloppy encodings
    once = text.encode().decode(encoding)
    assert repair(once) == text
    assert repair(once.encode().decode(encoding)) == text


def test_valid_replaces_surrogates_only() -> None:
    assert valid("\ud83d\ude00\udc00é") == "😀\ufffdé"
    assert valid("é") == "é"


def test_ascii_needs_no_ftfy() -> None:
    before = set(sys.modules)
    assert repair("plain\x00 text") == "plain text"
    assert not {name for name in set(sys.modules) - before if name.startswith("ftfy")}
