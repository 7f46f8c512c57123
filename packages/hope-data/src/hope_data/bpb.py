"""Bits per byte: the one definition."""

import math

from hope_data.errors import InputError


def bits_per_byte(nats: float, n_bytes: int) -> float:
    """Convert a summed negative log-likelihood to bits per byte of UTF-8 text.

    Args:
        nats: sum over all predicted tokens of −ln p, in nats.
        n_bytes: UTF-8 bytes that these tokens stand for (`Tokenizer.token_bytes`; end-of-text counts 0).

    Returns:
        nats / (ln 2 · n_bytes), independent of the tokenizer.

    Raises:
        InputError: no bytes.
    """
    if n_bytes <= 0:
        raise InputError(f"bits per byte of {n_bytes} bytes: give at least one byte of text")
    return nats / (math.log(2) * n_bytes)
