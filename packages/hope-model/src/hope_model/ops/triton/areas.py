"""Working memory of a kernel's programs, which the L2 cache is to hold; here no Triton is needed."""

from collections.abc import Mapping
from typing import NamedTuple

EVERY = 4  # chunks between two kept states: the backward redoes so many


class Area(NamedTuple):
    """What a chunk is made of: tiles [widest, B], squares [B, B] and rows [B]."""

    tiles: int
    squares: int
    rows: int

    def floats(self, L: int, B: int) -> int:
        """Length of the area; L: of a tile."""
        return self.tiles * L + self.squares * B * B + self.rows * B


def columns(chunk: int) -> int:
    """Of a tile that holds a chunk: a power of two, at least 16."""
    return max(16, 1 << (chunk - 1).bit_length())


TITANS = Area(tiles=8, squares=7, rows=17)


def titans_state(sizes: Mapping[str, int]) -> int:
    """Floats of a kept state: S2, S1, P2 and P1."""
    return 4 * sizes["m"] * sizes["d"]


def titans_scratch(sizes: Mapping[str, int], part: str) -> int:
    """Floats of a program: a chunk's area; backward those of chunks redone, each with its state, and of gradients."""
    B = columns(sizes["C"])
    area = TITANS.floats(max(sizes["d"], sizes["m"]) * B, B)
    return area if part == "forward" else (EVERY + 1) * (area + titans_state(sizes))
