"""What tasks ask of a model: log-likelihoods, continuations of a shared prefix, greedy generation.

Letters: B sequences, T tokens, V vocabulary, K candidates per sequence, L tokens of a candidate.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from hope_data.errors import InputError
from hope_model import LanguageModel
from hope_model.state import State, repeat

Tokens = NDArray[np.int64]
PIECE = 512  # tokens fed at a time where only the end matters, so that memory does not grow with length


class Fork(NamedTuple):
    """Where a batch of prefixes ends: log-probabilities of each next token, and the state to go on from."""

    logp_BV: Tensor
    state: State


class Scorer:
    """A model behind the few questions that evaluations ask.

    Results do not depend on how sequences are batched: equal lengths go together, and what padding follows a
    shorter sequence cannot reach back.

    Args:
        model: put into evaluation mode.
        device: where its parameters lie.
        batch_tokens: most tokens in one forward pass, of one sequence at least.
        advance: called with the number of tokens after each pass.
    """

    def __init__(
        self,
        model: LanguageModel,
        device: str = "cpu",
        batch_tokens: int = 4096,
        advance: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.model = model.eval()
        self.device, self.batch_tokens, self.advance = device, batch_tokens, advance
        self.tokens = 0

    def batches(self, count: int, tokens_each: int) -> list[slice]:
        """Cut `count` items that cost `tokens_each` into batches."""
        size = max(1, self.batch_tokens // tokens_each)
        return [slice(start, start + size) for start in range(0, count, size)]

    def token_logp(self, sequences: Sequence[Tokens]) -> list[NDArray[np.float64]]:
        """Natural log-probability of every token after the first of each sequence.

        Args:
            sequences: each of two tokens or more, the first being context only.

        Returns:
            For a sequence of T tokens, T - 1 numbers.
        """
        order = sorted(range(len(sequences)), key=lambda i: (-len(sequences[i]), i))
        found: dict[int, NDArray[np.float64]] = {}
        while order:
            size = max(1, self.batch_tokens // len(sequences[order[0]]))
            rows, order = order[:size], order[size:]
            for row, logp_T in zip(rows, self._token_logp([sequences[i] for i in rows]), strict=True):
                found[row] = logp_T
        return [found[i] for i in range(len(sequences))]

    def prefill(self, prompts_BT: Tokens) -> Fork:
        """Run prompts of equal length, of two tokens or more."""
        tokens_BT = torch.as_tensor(prompts_BT, device=self.device)
        # The last token by itself: what a model puts off until the next token is known is then one token's worth,
        # and forks need not each do it again for a whole segment.
        first_BT, *rest = *torch.split(tokens_BT[:, :-1], PIECE, 1), tokens_BT[:, -1:]
        logits_BTV, state = self._forward(first_BT, None)
        for piece_BT in rest:
            logits_BTV, state = self._forward(piece_BT, state)
        return Fork(F.log_softmax(logits_BTV[:, -1].float(), -1), state)

    def candidates(self, fork: Fork, candidates_BKL: Tokens) -> NDArray[np.float64]:
        """Log-likelihood [B, K] of each candidate after its prefix; the prefix is not run again."""
        tokens_BKL = torch.as_tensor(candidates_BKL, device=self.device)
        B, K, L = tokens_BKL.shape
        total_BK = fork.logp_BV.gather(1, tokens_BKL[..., 0]).double()
        if L > 1:
            tokens_NL = tokens_BKL.reshape(B * K, L)
            logits_NTV, _ = self._forward(tokens_NL[:, :-1], repeat(fork.state, K))
            total_BK = total_BK + _picked(logits_NTV, tokens_NL[:, 1:]).sum(1).view(B, K)
        return _finite(total_BK)

    def greedy(self, fork: Fork, steps: int) -> Tokens:
        """The `steps` most likely tokens [B, steps], one after another."""
        logp_BV, state = fork
        made = [logp_BV.argmax(-1)]
        while len(made) < steps:
            logits_BTV, state = self._forward(made[-1][:, None], state)
            made.append(logits_BTV[:, -1].argmax(-1))
        return torch.stack(made, 1).cpu().numpy()

    @torch.no_grad()
    def _forward(self, tokens_BT: Tensor, state: State | None) -> tuple[Tensor, State]:
        logits_BTV, state = self.model(tokens_BT, state)
        self._count(tokens_BT.numel())
        return logits_BTV, state

    def _count(self, tokens: int) -> None:
        self.tokens += tokens
        self.advance(tokens)

    def _token_logp(self, rows: list[Tokens]) -> list[NDArray[np.float64]]:
        padded_BT = torch.zeros(len(rows), len(rows[0]), dtype=torch.int64)
        for row, tokens_T in zip(padded_BT, rows, strict=True):
            row[: len(tokens_T)] = torch.as_tensor(tokens_T.astype(np.int64))
        padded_BT = padded_BT.to(self.device)
        logits_BTV, _ = self._forward(padded_BT[:, :-1], None)
        logp_BT = _picked(logits_BTV, padded_BT[:, 1:])
        self._count(sum(map(len, rows)) - padded_BT.numel())  # padding is no work done
        return [_finite(logp_T[: len(tokens_T) - 1]) for logp_T, tokens_T in zip(logp_BT, rows, strict=True)]


def _picked(logits_BTV: Tensor, tokens_BT: Tensor) -> Tensor:
    """Log-probability of each token in float64, as float32 logits give it."""
    nats_N = F.cross_entropy(logits_BTV.flatten(0, 1).float(), tokens_BT.flatten(), reduction="none")
    return -nats_N.double().view_as(tokens_BT)


def _finite(logp: Tensor) -> NDArray[np.float64]:
    if not bool(logp.isfinite().all()):
        raise InputError("the model gives log-likelihoods that are not finite; train it again, more gently")
    values: NDArray[np.float64] = logp.cpu().numpy()
    return values
