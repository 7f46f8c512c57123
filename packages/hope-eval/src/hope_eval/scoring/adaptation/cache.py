"""Neural and unigram caches: next tokens of earlier, similar positions, interpolated with the model's own.

Letters: B sequences, T tokens, N earlier positions, D width, V vocabulary.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hope_eval.scoring.load import HFModel, HopeModel, Places

ROWS = 128  # positions at a time: [B, ROWS, V] probabilities


def lifted(x: Tensor) -> Tensor:
    """Half precision as float32."""
    return x if x.dtype == torch.float64 else x.float()


class CacheState(NamedTuple):
    """What has been read: hidden states before the head, and the token after each."""

    inner: Any
    keys_BND: Tensor
    values_BN: Tensor
    last_B1D: Tensor  # of the last token, whose successor is not known


class CachedModel:
    """p = (1 - strength) p_model + strength sum_i [token after i] softmax_i(sharpness h_t . h_i)."""

    def __init__(self, model: HopeModel | HFModel, strength: float, sharpness: float, tokens: int) -> None:
        self.inner, self.device, self.max_length = model, model.device, model.max_length
        self.strength, self.sharpness, self.size = strength, sharpness, tokens
        self.tokens = getattr(model, "tokens", None)
        self.copies_state, self.shares_state, self.defers = (
            model.copies_state,
            model.shares_state,
            model.defers,
        )

    def __call__(
        self, tokens_BT: Tensor, state: CacheState | None, at: Places | None = None, *, final: bool = False
    ) -> tuple[Tensor, CacheState]:
        """Log-probabilities as logits, and the state after them."""
        del final
        logits_BTV, hidden_BTD, inner = self.inner.with_hidden(tokens_BT, state.inner if state else None)
        hidden_BTD = lifted(hidden_BTD)
        if state is None:
            keys, values, known = hidden_BTD[:, :-1], tokens_BT[:, 1:], 0
        else:
            keys = torch.cat((state.keys_BND, state.last_B1D, hidden_BTD[:, :-1]), 1)
            values = torch.cat((state.values_BN, tokens_BT), 1)
            known = state.values_BN.shape[1] + 1
        logp = self._mixed(logits_BTV, hidden_BTD, keys, values, known)
        kept = slice(max(0, keys.shape[1] - self.size), None)
        after = CacheState(inner, keys[:, kept], values[:, kept], hidden_BTD[:, -1:])
        return logp if at is None else logp[at], after

    def _mixed(
        self, logits_BTV: Tensor, hidden_BTD: Tensor, keys_BND: Tensor, values_BN: Tensor, known: int
    ) -> Tensor:
        """Position t of this call may look up the first `known + t` pairs, and of these the last `size`."""
        parts = []
        number = torch.arange(keys_BND.shape[1], device=keys_BND.device)
        for start in range(0, logits_BTV.shape[1], ROWS):
            logits, h = logits_BTV[:, start : start + ROWS], hidden_BTD[:, start : start + ROWS]
            logp = logits.log_softmax(
                -1, dtype=torch.float64 if logits.dtype == torch.float64 else torch.float32
            )
            end = known + start + torch.arange(h.shape[1], device=h.device)
            visible_TN = (number < end[:, None]) & (number >= end[:, None] - self.size)
            scores = self.sharpness * (h @ keys_BND.transpose(-1, -2))
            share = scores.masked_fill(~visible_TN, -math.inf).softmax(-1).to(logp.dtype)
            index = values_BN[:, None].expand(share.shape)
            cached = torch.zeros_like(logp).scatter_add_(-1, index, share.nan_to_num())
            mixed = torch.log((1 - self.strength) * logp.exp() + self.strength * cached)
            parts.append(torch.where((end > 0)[:, None], mixed, logp))
        return torch.cat(parts, 1)

    def fork(self, state: CacheState, rows: Tensor) -> CacheState:
        return CacheState(self.inner.fork(state.inner, rows), *(part[rows] for part in state[1:]))

    def n_bytes(self, state: CacheState) -> int:
        return sum(x.numel() * x.element_size() for x in state[1:])

    def flops_per_token(self, plain: float, length: int) -> float:
        """Products with every key of the cache, on average over `length` tokens."""
        del plain
        seen = min(length, self.size)
        return (
            2.0 * self.inner.head.weight.shape[1] * seen * (1 - seen / (2 * length))
            if self.sharpness
            else 0.0
        )
