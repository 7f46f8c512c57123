"""What tasks ask of a model: log-likelihoods, continuations of a shared prefix, greedy generation.

Letters: B sequences, T tokens, V vocabulary, K candidates per sequence, L tokens of a candidate, N numbers asked for.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from hope_data.errors import InputError
from hope_eval.scoring.batching import Batch, Request, Scored, plan
from hope_eval.scoring.load import CausalModel, HopeModel, Places
from hope_eval.scoring.memorize import Memorize
from hope_model import LanguageModel

Tokens = NDArray[np.int64]
LABELS = 32  # rows of a pass over labels
PIECE = 512  # tokens fed at a time where only the end matters, so that memory does not grow with length


class Fork(NamedTuple):
    """Where a batch of prefixes ends: log-probabilities of each next token, and the state to go on from."""

    logp_BV: Tensor
    state: Any


class Scorer:
    """A model behind the few questions that evaluations ask.

    `begin` takes a task's name and about how many tokens it will feed, for a progress bar. `memorize` says how
    contexts are read where memorisation at test time is measured; `carried` is the state between its items.

    Results do not depend on how sequences are batched: equal lengths go together, and what padding follows a
    shorter sequence cannot reach back.

    Args:
        model: one of ours, or a `CausalModel`.
        device: where its parameters lie.
        batch_tokens: most tokens in one forward pass, of one sequence at least.
        advance: called with the number of tokens after each pass.
        batch_size: most sequences in one forward pass; None: as many as `batch_tokens` allows.
    """

    def __init__(
        self,
        model: LanguageModel | CausalModel,
        device: str = "cpu",
        batch_tokens: int = 4096,
        advance: Callable[[int], None] = lambda _: None,
        batch_size: int | None = None,
    ) -> None:
        self.model = HopeModel(model, device) if isinstance(model, LanguageModel) else model
        self.device, self.batch_tokens, self.advance = device, batch_tokens, advance
        self.batch_size = batch_size
        self.tokens = 0
        self.begin: Callable[[str, int | None], None] = lambda _name, _tokens: None
        self.memorize: Memorize | None = None
        self.carried: Any = None

    def batches(self, count: int, tokens_each: int) -> list[slice]:
        """Cut `count` items that cost `tokens_each` into batches."""
        size = self._rows(tokens_each)
        return [slice(start, start + size) for start in range(0, count, size)]

    def _rows(self, tokens_each: int) -> int:
        if self._carries:
            return 1
        room = max(1, self.batch_tokens // tokens_each)
        return min(room, self.batch_size) if self.batch_size else room

    @property
    def _carries(self) -> bool:
        """Whether items follow each other in one stream."""
        return self.memorize is not None and self.memorize.carry

    def token_logp(self, sequences: Sequence[Tokens], *, fresh: bool = False) -> list[NDArray[np.float64]]:
        """Natural log-probability of every token after the first of each sequence.

        Args:
            sequences: each of two tokens or more, the first being context only.
            fresh: with nothing before them, whatever memorisation carries.

        Returns:
            For a sequence of T tokens, T - 1 numbers.
        """
        order = list(range(len(sequences)))
        if fresh or not self._carries:
            order.sort(key=lambda i: (-len(sequences[i]), i))
        scores: dict[int, NDArray[np.float64]] = {}
        while order:
            size = self._rows(len(sequences[order[0]]))
            rows, order = order[:size], order[size:]
            for row, logp_T in zip(rows, self._token_logp([sequences[i] for i in rows], fresh), strict=True):
                scores[row] = logp_T
        return [scores[i] for i in range(len(sequences))]

    def stream_logp(self, tokens_T: Tokens, state: Any = None) -> Iterator[tuple[NDArray[np.float64], Any]]:
        """The same for one sequence of any length, `PIECE` tokens at a time, with the state after each piece."""
        self._need_state()
        row_1T = torch.as_tensor(tokens_T, device=self.device)[None]
        for start in range(0, row_1T.shape[1] - 1, PIECE):
            piece = row_1T[:, start : start + PIECE + 1]
            logits_1TV, state = self._forward(piece[:, :-1], state)
            yield _finite(_picked(logits_1TV, piece[:, 1:])[0]), state

    def continuations(self, requests: Sequence[Request], *, share: bool = True) -> list[Scored]:
        """Log-likelihood of each request's continuation after its context, and whether it is the greedy one.

        Contexts that neighbouring requests have in common run once: their state is forked.

        Args:
            requests: context of one token or more, continuation of one or more.
            share: False runs every context anew; the same numbers, slower.
        """
        if self.memorize:
            steps = self.memorize.steps
            requests = [Request(request.context * steps, request.continuation) for request in requests]
        scores: dict[int, Scored] = {}
        options = {
            "share": share and self.model.shares_state,
            "together": self.model.copies_state,
            "stream": self._carries,
        }
        for batch in plan(requests, self._rows, **options):
            scores |= self._continue(requests, batch)
        return [scores[n] for n in range(len(requests))]

    def prefill(self, prompts_BT: Tokens) -> Fork:
        """Run prompts of equal length, as often as memorisation wants them read."""
        steps = self.memorize.steps if self.memorize else 1
        fork = self._prefill(np.tile(prompts_BT, (1, steps)), self._begin())
        self._carry(fork.state)
        return fork

    def _carry(self, state: Any) -> None:
        if self._carries:
            self.carried = state

    def prefill_from(self, prompts_BT: Tokens, state: Any) -> Fork:
        """Run prompts of equal length after what a state has seen."""
        return self._prefill(prompts_BT, state)

    def labels(self, fork: Fork, labels: Sequence[Sequence[int]]) -> NDArray[np.float64]:
        """Log-likelihood per token of each label after the one sequence of a fork; each is read to its own end."""
        scored = np.zeros(len(labels))
        # Many short rows: one pass over copies of the state is four times as fast as a pass per label.
        for start in range(0, len(labels), LABELS):
            rows = [np.asarray(label, np.int64) for label in labels[start : start + LABELS]]
            padded_KL = _padded(rows).to(self.device)
            total_K = fork.logp_BV[0, padded_KL[:, 0]].double()
            if padded_KL.shape[1] > 1:
                copies = self.model.fork(
                    fork.state, torch.zeros(len(rows), dtype=torch.int64, device=self.device)
                )
                logits_KTV, _ = self._forward(padded_KL[:, :-1], copies, final=True)
                logp_KT = _picked(logits_KTV, padded_KL[:, 1:])
                rest = [logp_T[: len(row) - 1].sum() for logp_T, row in zip(logp_KT, rows, strict=True)]
                total_K = total_K + torch.stack(rest)
                self._count(sum(len(row) - 1 for row in rows) - padded_KL[:, 1:].numel())
            scored[start : start + LABELS] = _finite(total_K) / [len(row) for row in rows]
        return scored

    def _need_state(self) -> None:
        if not self.model.shares_state:
            raise InputError(
                "recurrent models of transformers can only be scored whole: use zeroshot or lm_eval"
            )

    def _begin(self) -> Any:
        """State before an item: none, or that of the item before."""
        return self.carried if self._carries else None

    def _prefill(self, prompts_BT: Tokens, state: Any) -> Fork:
        self._need_state()
        tokens_BT = torch.as_tensor(prompts_BT, device=self.device)
        pieces = torch.split(tokens_BT, PIECE, 1)
        if self.model.defers:
            # The last token by itself: what is put off until the next token is known is then one token's worth,
            # and forks need not each do it again for a whole segment.
            pieces = (*torch.split(tokens_BT[:, :-1], PIECE, 1), tokens_BT[:, -1:])
        for piece_BT in pieces:
            if piece_BT.shape[1]:
                last = torch.full((len(piece_BT),), piece_BT.shape[1] - 1, device=self.device)
                ends = (torch.arange(len(piece_BT), device=self.device), last)
                logits_BV, state = self._forward(piece_BT, state, ends)
        return Fork(F.log_softmax(logits_BV.float(), -1), state)

    def candidates(self, fork: Fork, candidates_BKL: Tokens) -> NDArray[np.float64]:
        """Log-likelihood [B, K] of each candidate after its prefix; the prefix is not run again."""
        tokens_BKL = torch.as_tensor(candidates_BKL, device=self.device)
        B, K, L = tokens_BKL.shape
        total_BK = fork.logp_BV.gather(1, tokens_BKL[..., 0]).double()
        if L > 1 and self.model.copies_state:
            tokens_NL = tokens_BKL.reshape(B * K, L)
            rows = torch.arange(B, device=self.device).repeat_interleave(K)
            logits_NTV, _ = self._forward(tokens_NL[:, :-1], self.model.fork(fork.state, rows), final=True)
            total_BK = total_BK + _picked(logits_NTV, tokens_NL[:, 1:]).sum(1).view(B, K)
        elif L > 1:
            # A state is a value: every candidate goes on from the same one, and nothing is copied.
            for k in range(K):
                logits_BTV, _ = self._forward(tokens_BKL[:, k, :-1], fork.state)
                total_BK[:, k] += _picked(logits_BTV, tokens_BKL[:, k, 1:]).sum(1)
        return _finite(total_BK)

    def likeliest(self, tokens_BT: Tokens) -> Tokens:
        """The most likely token [B, T] after each token of sequences of equal length."""
        rows_BT = torch.as_tensor(tokens_BT, device=self.device)
        logits_BTV, state = self._forward(rows_BT, self._begin())
        self._carry(state)
        return self._known(logits_BTV).argmax(-1).cpu().numpy()

    def _known(self, logits: Tensor) -> Tensor:
        """Logits of the ids that the tokenizer has."""
        return logits[..., : self.model.tokens]

    def greedy(self, fork: Fork, steps: int) -> Tokens:
        """The `steps` most likely tokens [B, steps], one after another."""
        logp_BV, state = fork
        tokens = [self._known(logp_BV).argmax(-1)]
        while len(tokens) < steps:
            logits_BTV, state = self._forward(tokens[-1][:, None], state)
            tokens.append(self._known(logits_BTV[:, -1]).argmax(-1))
        return torch.stack(tokens, 1).cpu().numpy()

    def generate(
        self,
        prompts: Sequence[Tokens],
        steps: int,
        done: Callable[[int, list[int]], bool],
        draw: Callable[[int, Tensor], int] | None = None,
    ) -> list[list[int]]:
        """Continuations of prompts of any lengths, greedy unless tokens are drawn.

        The batch runs to its shortest prompt's end; longer prompts go on with their own tokens where shorter ones
        already generate, so that nothing is padded and no state sees a token that is not its own.

        Args:
            prompts: one token or more each.
            steps: most tokens written for each.
            done: takes a prompt's number and the tokens written so far; True stops it.
            draw: from a prompt's number and the logits [V] of its next token to the token.
        """
        if steps < 1:
            return [[] for _ in prompts]
        order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
        written: dict[int, list[int]] = {i: [] for i in order}
        while order:
            size = self._rows(len(prompts[order[0]]) + steps)
            rows, order = order[:size], order[size:]
            self._generate(prompts, rows, steps, done, draw, written)
        return [written[i] for i in range(len(prompts))]

    def _generate(
        self,
        prompts: Sequence[Tokens],
        rows: list[int],
        steps: int,
        done: Callable[[int, list[int]], bool],
        draw: Callable[[int, Tensor], int] | None,
        written: dict[int, list[int]],
    ) -> None:
        at = min(len(prompts[i]) for i in rows)
        logits_BV, state = self.prefill(np.stack([prompts[i][:at] for i in rows]).astype(np.int64))
        open_ = dict.fromkeys(rows, True)
        while True:
            logits_BV = self._known(logits_BV)
            best_B, next_B = logits_BV.argmax(-1).tolist(), []
            for i, token, logits_V in zip(rows, best_B, logits_BV, strict=True):
                if at < len(prompts[i]):
                    token = int(prompts[i][at])
                elif open_[i]:
                    token = draw(i, logits_V) if draw else token
                    written[i].append(token)
                    open_[i] = len(written[i]) < steps and not done(i, written[i])
                next_B.append(token)
            if not any(open_.values()):
                return
            column = torch.tensor(next_B, device=self.device)[:, None]
            logits_BTV, state = self._forward(column, state)
            logits_BV = logits_BTV[:, -1]
            at += 1

    @torch.no_grad()
    def _forward(
        self, tokens_BT: Tensor, state: Any, at: Places | None = None, *, final: bool = False
    ) -> tuple[Tensor, Any]:
        logits, state = self.model(tokens_BT, state, at, final=final)
        self._count(tokens_BT.numel())
        return logits, state

    def _count(self, tokens: int) -> None:
        self.tokens += tokens
        self.advance(tokens)

    def _token_logp(self, rows: list[Tokens], fresh: bool) -> list[NDArray[np.float64]]:
        padded_BT = _padded(rows).to(self.device)
        logits_BTV, state = self._forward(padded_BT[:, :-1], None if fresh else self._begin())
        if not fresh:
            self._carry(state)
        logp_BT = _picked(logits_BTV, padded_BT[:, 1:])
        self._count(sum(map(len, rows)) - padded_BT.numel())  # padding is no work done
        return [_finite(logp_T[: len(tokens_T) - 1]) for logp_T, tokens_T in zip(logp_BT, rows, strict=True)]

    def _continue(self, requests: Sequence[Request], batch: Batch) -> dict[int, Scored]:
        state = None
        if batch.shared:
            prefixes_BT = np.array([group.prefix[: batch.shared] for group in batch.groups], np.int64)
            state = self._prefill(prefixes_BT, self._begin()).state
            self._carry(state)
        scores: dict[int, Scored] = {}
        together = self.model.copies_state or not batch.shared
        for turn in batch.turns(self._rows, together=together):
            rows = [np.asarray(row.tokens[batch.shared :], np.int64) for _, row in turn]
            starts = torch.tensor([place for place, _ in turn], device=self.device)
            whole = starts.tolist() == list(range(len(batch.groups)))
            forked = state if state is None or whole else self.model.fork(state, starts)
            padded_BT = _padded(rows).to(self.device)
            asked = [(place, n) for place, (_, row) in enumerate(turn) for n in row.requests]
            row_N, column_N, token_N = torch.tensor(
                _wanted(requests, asked, batch.shared), device=self.device
            ).T
            logits_NV, _ = self._forward(padded_BT, forked, (row_N, column_N), final=True)
            self._count(sum(map(len, rows)) - padded_BT.numel())
            scores |= _pick(requests, asked, logits_NV.float(), token_N)
        return scores


def _wanted(
    requests: Sequence[Request], asked: Sequence[tuple[int, int]], shared: int
) -> list[tuple[int, int, int]]:
    """(row, column, token) of every token to be scored; columns count from the end of the shared prefix."""
    return [
        (row, len(requests[n].context) - 1 - shared + place, token)
        for row, n in asked
        for place, token in enumerate(requests[n].continuation)
    ]


def _pick(
    requests: Sequence[Request], asked: Sequence[tuple[int, int]], logits_NV: Tensor, token_N: Tensor
) -> dict[int, Scored]:
    """Scores of the requests, whose tokens stand one after another."""
    logp_N = _finite(-F.cross_entropy(logits_NV, token_N, reduction="none").double())
    greedy_N = (logits_NV.argmax(-1) == token_N).cpu().numpy()
    scores, start = {}, 0
    for _, n in asked:
        end = start + len(requests[n].continuation)
        scores[n] = Scored(float(logp_N[start:end].sum()), bool(greedy_N[start:end].all()))
        start = end
    return scores


def _padded(rows: Sequence[Tokens]) -> Tensor:
    padded_BT = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    for row, tokens_T in zip(padded_BT, rows, strict=True):
        row[: len(tokens_T)] = torch.as_tensor(np.asarray(tokens_T).astype(np.int64))
    return padded_BT


def _picked(logits_BTV: Tensor, tokens_BT: Tensor) -> Tensor:
    """Log-probability of each token in float64, as float32 logits give it."""
    nats_N = F.cross_entropy(logits_BTV.flatten(0, 1).float(), tokens_BT.flatten(), reduction="none")
    return -nats_N.double().view_as(tokens_BT)


def _finite(logp: Tensor) -> NDArray[np.float64]:
    if not bool(logp.isfinite().all()):
        raise InputError("the model gives log-likelihoods that are not finite; train it again, more gently")
    values: NDArray[np.float64] = logp.cpu().numpy()
    return values
