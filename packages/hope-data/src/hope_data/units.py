"""Units that texts are measured and compared in: words, and characters where a script puts no space between words.

A word is what Unicode calls one (UTS #18, annex C): letters, digits and connectors with their combining marks. Without
the marks, the vowel signs of Hindi would cut a word into pieces. Chinese, Japanese, Thai and their like do not show
where a word ends, so each of their characters is a unit and weighs a share of a word.
"""

import re
import unicodedata
from functools import cache

import numpy as np
import numpy.typing as npt

# Weights are quarters of a word: a Chinese word has about two characters, a Thai one about four.
WORD = 4
# First and last code points. Han, kana, bopomofo, Yi, Tangut, Khitan, Nushu, and the further planes of Han.
_IDEOGRAPHS = (
    (0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3021, 0x30FF), (0x3105, 0x312F), (0x31A0, 0x31BF), (0x31F0, 0x31FF),
    (0x3400, 0x4DBF), (0x4E00, 0xA4CF), (0xF900, 0xFAFF), (0xFF66, 0xFF9F), (0x16FE0, 0x18D7F), (0x1AFF0, 0x1B2FF),
    (0x20000, 0x3FFFD),
)  # fmt: skip
# Thai, Lao, Tibetan, Myanmar, Khmer, the Tai scripts, Balinese, Javanese, Ahom.
_LETTERS = (
    (0x0E00, 0x0FFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x1950, 0x19DF), (0x1A20, 0x1AAF), (0x1B00, 0x1B7F),
    (0xA980, 0xA9FF), (0xAA60, 0xAADF), (0x116D0, 0x1174F),
)  # fmt: skip
# Soft hyphens, breaks without a hyphen, joiners, direction and variation marks: a copy may have lost them.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff\U000e0100-\U000e01ef]"
)
_ASCII_WORD = re.compile(r"\w+")
_MIX = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F], np.uint64)
# What a character is.
_ALPHANUMERIC, _CONNECTOR, _MARK, _DECIMAL, _SOLID, _IDEOGRAPH, _LETTER = (1 << k for k in range(7))
_ALONE, _IN_WORD = _IDEOGRAPH | _LETTER, _ALPHANUMERIC | _CONNECTOR
_Kinds = npt.NDArray[np.uint8]
Weights = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]


@cache
def _table() -> _Kinds:
    """Kind of every character. Beyond U+1FFFF are Han, private use and what stands for nothing."""
    table = np.full(0x110000, _SOLID, np.uint8)
    for n in range(0x20000):
        char = chr(n)
        if char.isalnum():
            table[n] |= _ALPHANUMERIC | (_DECIMAL if char.isdecimal() else 0)
        elif char.isspace():
            table[n] = 0
        elif unicodedata.category(char)[0] == "M":
            table[n] |= _MARK
    table[ord("_")] |= _CONNECTOR
    table[0x20000:0x3FFFE] |= _ALPHANUMERIC
    for blocks, kind in ((_IDEOGRAPHS, _IDEOGRAPH), (_LETTERS, _LETTER)):
        for first, last in blocks:
            block = table[first : last + 1]
            block[(block & _ALPHANUMERIC) > 0] |= kind
    return table


def _kinds(text: str) -> _Kinds:
    kinds: _Kinds = _table()[np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")]
    return kinds


def _cut(text: str, within: int) -> tuple[list[str], Weights]:
    """Cut a text into runs of the kinds `within`, characters of scripts without spaces each by itself, with marks."""
    base = kinds = _kinds(text)
    mark = (kinds & _MARK) > 0
    if mark.any():
        # A mark belongs to the character that it stands on.
        base = kinds[np.maximum.accumulate(np.where(mark, 0, np.arange(len(kinds))))]
    alone, inside = (base & _ALONE) > 0, ((base | kinds) & within) > 0
    running = inside & ~alone
    first = (alone & ~mark) | (running & ~np.concatenate([[False], running[:-1]]))
    starts, stops = np.flatnonzero(first), np.append(np.flatnonzero(first | ~inside), len(kinds))
    ends = stops[np.searchsorted(stops, starts, "right")]
    pieces = [text[a:b] for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]
    of = kinds[starts]
    return pieces, np.where(of & _LETTER, 1, np.where(of & _IDEOGRAPH, 2, WORD))


def units(text: str) -> tuple[list[str], Weights]:
    """Units of a text to compare it by, and the weight of each, in quarters of a word.

    Without case and punctuation, and alike however the text is composed and whatever width its characters have.
    """
    if not text.isascii():
        return _cut(_plain(text), _IN_WORD)
    words = _ASCII_WORD.findall(text.lower())
    return words, np.full(len(words), WORD)


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", _INVISIBLE.sub("", text)).casefold()


def _without_spaces(text: str) -> bool:
    return not text.isascii() and bool((_kinds(text) & _ALONE).any())


def pieces(text: str) -> list[str]:
    """What stands between white space, and each character alone of a script without spaces."""
    return _cut(text, _SOLID)[0] if _without_spaces(text) else text.split()


def count(text: str) -> int:
    """How many words a text has by white space; of scripts without spaces, about how many."""
    return int(units(text)[1].sum()) // WORD if _without_spaces(text) else len(text.split())


def letters(text: str) -> int:
    """How many characters are letters or the marks of letters."""
    kinds = _kinds(text)
    return int(
        np.count_nonzero((kinds & (_ALPHANUMERIC | _DECIMAL)) == _ALPHANUMERIC) + (kinds & _MARK > 0).sum()
    )


def spans(weights: Weights, n_words: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """First unit, and the one after the last, of every run of `n_words`: [runs], [runs].

    Of characters a run has as many as are more than n_words - 1 words: three words are 5 characters of Chinese, 9 of
    Thai. As they do not begin where a word begins, so many touch three words on the average.
    """
    if weights.min(initial=WORD) == WORD:
        starts = np.arange(max(0, len(weights) - n_words + 1))
        return starts, starts + n_words
    total = np.concatenate([[0], np.cumsum(weights)])
    ends = np.searchsorted(total, total[:-1] + (n_words - 1) * WORD + 1)
    starts = np.flatnonzero(ends <= len(weights))
    return starts, ends[starts]


def hashed(values: Hashes, starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> Hashes:
    """Hash of every run of values: [runs]."""
    hashes, lengths = values[starts], ends - starts
    shortest = lengths.min(initial=len(values))
    for k in range(1, int(lengths.max(initial=0))):
        if k < shortest:
            hashes = hashes * _MIX[(k - 1) % 2] + values[starts + k]
        else:
            longer = np.flatnonzero(lengths > k)
            hashes[longer] = hashes[longer] * _MIX[(k - 1) % 2] + values[starts[longer] + k]
    return hashes
