"""Rules of quality: small functions that return True or (False, reason)."""

import re
from collections import Counter
from collections.abc import Callable
from typing import Literal

from hope_data.config import FilterConfig
from hope_data.documents import Document

Verdict = Literal[True] | tuple[Literal[False], str]
Rule = Callable[[Document], Verdict]

_BULLET = re.compile(r"\s*[-*•‣·]\s")
_SYMBOL = re.compile(r"#|\.\.\.|…")
# Characters to tell a language by.
_PLACE = 300
_LETTER = re.compile(r"[^\W\d_]+")


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
        alphabetic = sum(map(len, _LETTER.findall(text)))
        return True if alphabetic >= config.min_letters * solid else (False, "few letters")

    return rule


def symbols(config: FilterConfig) -> Rule:
    """Gopher's ratios of symbols, bullets and word length."""

    def rule(document: Document) -> Verdict:
        words, lines = document.text.split(), document.text.splitlines()
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
        words = document.text.split()
        trigrams = Counter(zip(words, words[1:], words[2:], strict=False))
        if config.max_top_trigram and trigrams:
            trigram, count = trigrams.most_common(1)[0]
            if count > 1 and count * sum(map(len, trigram)) > config.max_top_trigram * sum(map(len, words)):
                return False, "repeated words"
        return True

    return rule


def language(config: FilterConfig) -> Rule:
    """The wanted language in most of three places: one place may be a list of names."""
    import py3langid  # noqa: PLC0415

    def rule(document: Document) -> Verdict:
        text = document.text
        size = len(text)
        places = (
            [text[at : at + _PLACE] for at in (size // 12, size * 5 // 12, size * 9 // 12)]
            if size > 1000
            else [text]
        )
        found = Counter(str(py3langid.classify(place)[0]) for place in places)
        return (
            True
            if 2 * found[config.language] > len(places)
            else (False, f"language {found.most_common(1)[0][0]}")
        )

    return rule
