"""The value that a level is made of."""

from typing import NamedTuple

from torch import Tensor


class LevelWeights(NamedTuple):
    """One level MLP(u) = down phi(up u): parameters [h, D], [D, h], or per sequence [B, h, D], [B, D, h]."""

    up: Tensor
    down: Tensor
