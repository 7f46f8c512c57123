"""The one exception that is the user's to mend."""


class InputError(ValueError):
    """A mistake in what the user gave: the message names file, line or key, and the remedy.

    Command lines print it as one line and leave with exit code 2.
    """


class Unfinished(InputError):
    """Something outside stopped the work, such as a network that went away; what was done so far is kept."""
