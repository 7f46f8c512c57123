"""Rules of quality: small functions that return True, or False with a reason, and with details if there are any.

Words stand between white space; where a script puts no space between words, each character counts as one (`units`).
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import cache
from itertools import chain
from typing import Any, Literal

from hope_data.config import FilterConfig
from hope_data.documents import Document
from hope_data.errors import InputError
from hope_data.units import letters as count_letters
from hope_data.units import pieces

Verdict = Literal[True] | tuple[Literal[False], str] | tuple[Literal[False], str, str]
Rule = Callable[[Document], Verdict]

_BULLET = re.compile(r"\s*[-*•‣·]\s")
# An ellipsis may be drawn with several characters; Chinese takes two.
_SYMBOL = re.compile(r"#|\.\.\.|…+")
# Characters to tell a language by; how probable another one must be, and how improbable the wanted one.
_PLACE, _SURE, _UNLIKELY = 300, 0.5, 0.1
# Written alike, and one language in ISO 639-3; py3langid knows them apart.
_PART_OF = {
    "yue": "zh",
    "wuu": "zh",
    "ary": "ar",
    "arz": "ar",
    "nn": "no",
    "sdh": "ku",
    "uzs": "uz",
    "ltg": "lv",
}


def length(config: FilterConfig) -> Rule:
    """Bounds on the number of characters."""

    def rule(document: Document) -> Verdict:
        n = len(document.text)
        if n < config.min_chars:
            return False, "too short"
        return (False, "too long") if 0 < config.max_chars < n else True

    return rule


def letters(config: FilterConfig) -> Rule:
    """Enough alphabetic characters: drops tables of numbers and ASCII art."""

    def rule(document: Document) -> Verdict:
        text = document.text
        solid = sum(map(len, text.split()))
        return True if count_letters(text) >= config.min_letters * solid else (False, "few letters")

    return rule


def symbols(config: FilterConfig) -> Rule:
    """Gopher's ratios of symbols, bullets and word length."""

    def rule(document: Document) -> Verdict:
        words, lines = pieces(document.text), document.text.splitlines()
        if config.max_word and sum(map(len, words)) > config.max_word * len(words):
            return False, "long words"
        if config.max_symbols and len(_SYMBOL.findall(document.text)) > config.max_symbols * len(words):
            return False, "symbols"
        if config.max_bullets and sum(map(bool, map(_BULLET.match, lines))) > config.max_bullets * len(lines):
            return False, "bullets"
        return True

    return rule


def repetition(config: FilterConfig) -> Rule:
    """Gopher's repetition ratios: characters in repeated lines and in the commonest trigram."""

    def rule(document: Document) -> Verdict:
        lines = [line.strip() for line in document.text.splitlines()]
        lines = [line for line in lines if line]
        again = sum(len(line) * (count - 1) for line, count in Counter(lines).items())
        if config.max_duplicate_lines and again > config.max_duplicate_lines * sum(map(len, lines)):
            return False, "repeated lines"
        words = pieces(document.text)
        trigrams = Counter(zip(words, words[1:], words[2:], strict=False))
        if config.max_top_trigram and trigrams:
            trigram, count = trigrams.most_common(1)[0]
            if count > 1 and count * sum(map(len, trigram)) > config.max_top_trigram * sum(map(len, words)):
                return False, "repeated words"
        return True

    return rule


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # noqa: PLC0415

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def language(config: FilterConfig) -> Rule:
    """No other language than the wanted one for sure, by three places: one place may be a list of names.

    Raises:
        InputError: a language that py3langid does not know.
    """
    identifier, wanted = _identifier(), config.language
    if wanted not in identifier.labels:
        known = ", ".join(sorted(identifier.labels))
        raise InputError(f"filter.language: {wanted!r} is not known; '' takes any, else one of {known}")

    def rule(document: Document) -> Verdict:
        text = document.text
        size = len(text)
        places = (
            [text[at : at + _PLACE] for at in (size // 12, size * 5 // 12, size * 9 // 12)]
            if size > 1000
            else [text]
        )
        read = defaultdict[str, float](float)
        for name, p in chain.from_iterable(map(identifier.rank, places)):
            read[name if name == wanted else _PART_OF.get(name, name)] += p / len(places)
        likeliest = max(read, key=read.__getitem__)
        if read[likeliest] < _SURE or read[wanted] >= _UNLIKELY:
            return True
        sure = f"read as {likeliest} {read[likeliest]:.2f}, {wanted} {read[wanted]:.2f}"
        return False, f"language {likeliest}, not {wanted}", sure

    return rule
