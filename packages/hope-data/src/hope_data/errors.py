"""The one exception that is the user's to mend, and how text of others is shown."""

import re

# Control characters, halves of surrogate pairs, and those that reverse or break a line.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class InputError(ValueError):
    """A mistake in what the user gave: the message names file, line or key, and the remedy.

    Command lines print it as one line and leave with exit code 2.
    """


class Unfinished(InputError):
    """Something outside stopped the work, such as a network that went away; what was done so far is kept."""


def harmless(text: object, keep: str = "") -> str:
    """Text that moves no cursor and sends a terminal no command: control characters become escapes.

    Args:
        text: of anybody's.
        keep: control characters to leave, such as line ends; without them it is one line.
    """
    return _UNSAFE.sub(lambda match: match[0] if match[0] in keep else ascii(match[0])[1:-1], str(text))
