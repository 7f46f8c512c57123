"""Mends text that is broken and leaves sound text as it is, byte for byte.

Broken is what no writer wrote: UTF-8 that was read as another encoding (`schÃ¶n`), control characters, surrogates.
Width, ligatures, quotes, composition (NFC, NFD), line ends and white space are the writer's.
"""

import re

# Colours of a terminal, and control characters other than white space.
_CONTROL = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
# Where Latin-1 has these control characters, Windows-1252 has quotes and dashes. U+0085 is among them, but ends lines.
_C1, _C1_WITHOUT_LINE_END = re.compile(r"[\x80-\x9f]"), re.compile(r"[\x80-\x84\x86-\x9f]")
# A run of what Windows-1252 can say, without white space; and what may stand beside a word in sound text.
_WESTERN = re.compile("[!-~\x80-\xff€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]+")
_BESIDE = "“”„‘’‚«»‹›…–—.,;:!?()[]\"'"
# A capital and what may stand behind its word: IRMÃ”, AMANHÃ—DISSE, “AÇ”I. Other signs must say that it is broken.
_DOUBTFUL = re.compile(r"(?<=[A-ZÀ-Þ]{2})Ã(?:—|[”»’–](?!\w))|[Ä-ÍÒ-ß]”(?=\w)")
# The mark at the beginning of a file of UTF-8, read as Windows-1252: none of its text.
_SIGNATURE = re.compile("^ï»¿", re.MULTILINE)
_WESTERN_EUROPE = {"latin-1", "sloppy-windows-1252"}
# Characters that must come out of other encodings: a few letters of Czech or Polish may look like UTF-8 by chance.
_ENOUGH = 4


def valid(text: str) -> str:
    """The text with U+FFFD for every surrogate that stands alone, as JSON allows and UTF-8 does not."""
    if text.isascii() or not _SURROGATE.search(text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def repair(text: str) -> str:
    """Undo wrong decodings, and drop control characters that are no white space.

    Args:
        text: any string.

    Returns:
        Valid Unicode, on which `repair` does nothing more; the same text if it was sound.
    """
    if text.isascii():
        return _CONTROL.sub("", text)
    text = valid(text)
    while (mended := _CONTROL.sub("", _decoded(text))) != text:
        text = mended
    return text


def _decoded(text: str) -> str:
    """Undo wrong decodings of the whole text, else of lines, else of words."""
    from ftfy.badness import is_bad  # noqa: PLC0415  (most text is ASCII and needs none of it)

    text = _SIGNATURE.sub("", text)
    lines = text.split("\n")
    bad = [i for i, line in enumerate(lines) if not line.isascii() and is_bad(line)]
    if not bad:
        return text
    if (whole := _undone(text)) != text:
        return whole
    for i in bad:
        line = _undone(lines[i])
        line = line if line != lines[i] else _WESTERN.sub(_undone_word, line)
        lines[i] = _C1.sub(_from_windows, line) if _C1_WITHOUT_LINE_END.search(line) else line
    return "\n".join(lines)


def _from_windows(match: re.Match[str]) -> str:
    return match[0].encode("latin-1").decode("windows-1252", "ignore")


def _undone_word(match: re.Match[str]) -> str:
    word = match[0]
    # These two begin what dashes and quotes become, and stand nowhere else.
    core = word if "â€" in word else word.strip(_BESIDE)
    return word if core.isascii() else word.replace(core, _undone(core), 1)


def _undone(text: str) -> str:
    """The text with a wrong decoding of all of it undone, if there can be no doubt."""
    import ftfy  # noqa: PLC0415
    from ftfy.badness import is_bad  # noqa: PLC0415

    if (rest := _DOUBTFUL.sub("", text)) != text and not is_bad(rest):
        return text
    # ftfy would take what U+FFFD has replaced for a byte.
    if "\ufffd" in text:
        return text
    fixed, steps = ftfy.fix_encoding_and_explain(
        text,
        restore_byte_a0=False,
        replace_lossy_sequences=False,
        decode_inconsistent_utf8=False,
        fix_c1_controls=False,
    )
    encodings = {step.parameter for step in steps or () if step.action == "encode"}
    decodings = {step.parameter for step in steps or () if step.action == "decode"}
    enough = encodings <= _WESTERN_EUROPE or sum(not char.isascii() for char in fixed) >= _ENOUGH
    return fixed if enough and "windows-1252" not in decodings else text
