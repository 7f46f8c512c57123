"""The values that deep memories take and give.

Letters: N leading dimensions (batch, heads), R memories that share keys, d head width, m hidden width, T tokens.
"""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

BANK = ("k", "v", "eta", "alpha", "memory")  # order of self-modifying Titans' memories along R


class FastWeights(NamedTuple):
    """Weights of R memories M(x) = x + W1 phi(W2 x) (eq. 91), one copy per sequence and head."""

    W2_NRmd: Tensor
    W1_NRdm: Tensor


class MemoryState(NamedTuple):
    """Fast weights after the last token, and as they were when its chunk began (where gradients are taken)."""

    now: FastWeights
    start: FastWeights
    momentum: FastWeights | None
    position: int


class Gates(NamedTuple):
    """Per token, before any chunking; None where a rule has no such gate."""

    log_a_NT: Tensor | None  # retention (None: read from the alpha memory)
    erase_NT: Tensor | None  # strength in (0, 2) at the hidden layer, times the retention
    output_NRT: Tensor | None  # strength in (0, 2) at the output layer, times the retention; R = 1: for all
    eta_NRT: Tensor | None  # inner learning rate (None: read from the eta memory)
    log_theta_NT: Tensor | None  # momentum's decay


class Readout(NamedTuple):
    """How the scalars eta and alpha are read from the vectors that their memories give (H heads)."""

    eta_Hd: Tensor
    eta_bias_H: Tensor
    eta_scale_HR: Tensor | None  # each memory's own factor of eta, below 2; None: 1 (the paper)
    alpha_Hd: Tensor
    alpha_bias_H: Tensor
    output_share_HR: Tensor | None  # each memory's share in (0, 1] of the output strength; None: 1


@dataclass(frozen=True)
class Rules:
    """The choices of the README beside this file, by the names of `hope_model.config.MemoryConfig`."""

    chunk: int = 64
    bank_chunk: int = 0  # of all memories but the last (eq. 90 has two); 0: the same
    activation: str = "leaky_relu"
    eta_max: float = 0.1
    stable: bool = True  # shrunk activations, normalised targets, exact delta rule at the output layer
    tied_gates: bool = False  # erase with eta
    erase: str = "hidden"  # layers that the erase gate reaches: "hidden", "both" or "none"
    read: str = "after"  # a token's write, "before" it, or from the weights of the "chunk"'s start
    momentum_sum: bool = False  # a decayed sum of surprises, not their average
    unit_values: bool = True  # self-modifying: v and (stable) every memory's target have norm 1
    clip: float = 0.0  # plain rule: soft bound of both inner gradients' norms; 0: none
    through_writes: bool = True  # False: what is written is a constant for the outer gradient
    twice: bool = False  # must be differentiable twice: no written-out backward
    half: bool = False  # kernels may round products to bfloat16; states and sums stay in float32

    def to_end(self, position: int) -> int:
        """Return the tokens from `position` to the nearest end of a chunk."""
        return min(chunk - position % chunk for chunk in (self.chunk, self.bank_chunk or self.chunk))

    def whole(self, position: int) -> bool:
        """Whether every memory's chunk begins at `position`."""
        return position % self.chunk == 0 and position % (self.bank_chunk or self.chunk) == 0
