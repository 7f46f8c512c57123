"""What a user can mend: command lines print it as one line and exit with status 2."""


class InputError(ValueError):
    """An input that cannot be used; the message names file, key and remedy."""
