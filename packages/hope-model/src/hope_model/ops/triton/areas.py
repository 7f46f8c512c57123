"""Working memory of a kernel's programs, which the L2 cache is to hold; here no Triton is needed."""

from collections.abc import Mapping

EVERY = 4  # chunks between two kept states: the backward redoes so many
ROWS, SQUARES = 24, 7  # [B] and [B, B] of a chunk's area; then come tiles
TITANS_TILES, BANK_TILES = 8, 16


def columns(chunk: int) -> int:
    """Of a tile that holds a chunk: a power of two, at least 16."""
    return max(16, 1 << (chunk - 1).bit_length())


def _area(sizes: Mapping[str, int], tiles: int) -> int:
    B = columns(sizes["C"])
    return ROWS * B + SQUARES * B * B + tiles * max(sizes["d"], sizes["m"]) * B


def titans_state(sizes: Mapping[str, int]) -> int:
    """Floats of a kept state: S2, S1, P2 and P1."""
    return 4 * sizes["m"] * sizes["d"]


def titans_scratch(sizes: Mapping[str, int], part: str) -> int:
    """Floats of a program: a chunk's area; backward those of chunks redone, each with its state, and of gradients."""
    area = _area(sizes, TITANS_TILES)
    return area if part == "forward" else (EVERY + 1) * (area + titans_state(sizes))


def bank_state(sizes: Mapping[str, int]) -> int:
    """Floats of a kept state: W2 and W1 of all memories."""
    return 2 * sizes["R"] * sizes["m"] * sizes["d"]


def bank_scratch(sizes: Mapping[str, int], part: str) -> int:
    """Floats of a program: a chunk's area; backward one of gradients, gates, and states of the chunks redone too."""
    area = _area(sizes, BANK_TILES)
    return area if part == "forward" else 2 * area + 2 * columns(sizes["C"]) + EVERY * bank_state(sizes)
