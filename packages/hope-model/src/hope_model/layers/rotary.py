"""Rotary positions (arXiv 2104.09864) and the frequencies of contexts longer than those of training.

Letters: B sequences, T tokens, H heads, d head width.
"""

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hope_model.config import AttentionConfig


def frequencies(config: AttentionConfig, d: int, device: torch.device) -> Tensor:
    """Radians per token of every pair of dimensions [d / 2], in float64.

    `linear` divides all by the factor (arXiv 2306.15595). `llama3` (Llama 3.1) and `yarn` (arXiv 2309.00071) divide
    those that turn fewer than `low` times within the original context and leave those of more than `high` turns.
    Between them `llama3` interpolates by the number of turns, `yarn` by the number of the dimension.
    """
    number = torch.arange(0, d, 2, dtype=torch.float64, device=device)
    rate, rope = config.rope_base ** (-number / d), config.rope
    if rope.scaling == "none":
        return rate
    if rope.scaling == "linear":
        return rate / rope.factor
    if rope.scaling == "llama3":
        turns = rope.original * rate / (2 * math.pi)
        share = ((turns - rope.low) / (rope.high - rope.low)).clamp(0, 1)
    else:
        first, last = (_dimension(config, turns, d) for turns in (rope.high, rope.low))
        if rope.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, d - 1)
        # Both ends may fall on one dimension.
        share = 1 - ((number / 2 - first) / (last - first or 0.001)).clamp(0, 1)
    return share * rate + (1 - share) * rate / rope.factor


def _dimension(config: AttentionConfig, turns: float, d: int) -> float:
    """Number of the pair that turns so often within the original context."""
    length = math.log(config.rope.original / (turns * 2 * math.pi))
    return d * length / (2 * math.log(config.rope_base))


def angles(config: AttentionConfig, position: int, T: int, d: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and signed sine [T, d] of tokens position, position + 1, ... in the precision of `like`; see `rotate`."""
    known = None if torch.compiler.is_compiling() else _HERE.angles
    key = (config, position, T, d, like.device, like.dtype)
    if known is not None and key in known:
        return known[key]
    # Angles in float64: float32 loses whole radians near position one million.
    rate = frequencies(config, d, like.device)
    angle = torch.arange(position, position + T, dtype=torch.float64, device=like.device)[:, None] * rate
    cos, sin = angle.cos(), angle.sin()
    if config.rope.magnitude != 1:
        cos, sin = cos * config.rope.magnitude, sin * config.rope.magnitude
    both = torch.cat((cos, cos), -1).to(like.dtype), torch.cat((-sin, sin), -1).to(like.dtype)
    if known is not None:
        known[key] = both
    return both


def rotate(x_BHTd: Tensor, cos_Td: Tensor, sin_Td: Tensor) -> Tensor:
    """Turn every pair of dimensions (x, y) by its angle: (x cos - y sin, y cos + x sin)."""
    x, y = x_BHTd.chunk(2, -1)
    return x_BHTd * cos_Td + torch.cat((y, x), -1) * sin_Td


class _Here(threading.local):
    """Of this thread: others may run models too."""

    def __init__(self) -> None:
        self.angles: dict[Any, tuple[Tensor, Tensor]] | None = None


_HERE = _Here()


@contextmanager
def same_angles() -> Iterator[None]:
    """Layers inside compute the angles of the same tokens once."""
    if torch.compiler.is_compiling():
        yield
        return
    before, _HERE.angles = _HERE.angles, {}
    try:
        yield
    finally:
        _HERE.angles = before
