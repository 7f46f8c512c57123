"""Names and texts of others where people read them: one function for each medium.

HTML needs none: the page is rendered from escaped Markdown, and raw HTML in it is shown as text.
"""

import json
import re

# What Markdown could take for markup, wherever in a line: emphasis, code, links, images, tables, HTML, mathematics.
_MARKUP = re.compile(r"[\\`*\[\]<>|$~&]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
# And at the beginning of a line: headings, quotations, lists, rules.
_BEGIN = re.compile(r"^(\s*\d*)(#|(?<![0-9])[-+=](?=[\s=+-]|$)|(?<=[0-9])[.)](?=\s|$))")


def printable(text: str) -> str:
    r"""Show control characters, such as a terminal's escape, by their number; a line end becomes `\n`."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def terminal(text: str) -> str:
    """The same line by line, for several lines of our own."""
    return "\n".join(map(printable, text.split("\n")))


def inline(text: str) -> str:
    """Text that Markdown shows as it is, within a line or in a cell of a table."""
    return _MARKUP.sub(r"\\\g<0>", printable(text))


def markdown(text: str) -> str:
    """The same, at the beginning of a line, too."""
    return _BEGIN.sub(r"\1\\\2", inline(text))


def code(text: str) -> str:
    """Text as a span of code, or escaped where it holds a backtick itself."""
    return markdown(text) if "`" in text or not text.strip() else f"`{printable(text)}`"


def yaml(text: str) -> str:
    """A string of YAML, which is one of JSON."""
    return json.dumps(printable(text), ensure_ascii=False)
