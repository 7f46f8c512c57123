"""Dynamic evaluation: gradient steps on all weights while a sequence is read (Krause et al. 2018).

Letters: B sequences, T tokens, n tokens of one segment, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from hope_data.errors import InputError
from hope_eval.scoring.adaptation.cache import lifted
from hope_eval.scoring.adaptation.dials import Dynamic
from hope_eval.scoring.load import HFModel, HopeModel, Places, copied
from hope_model.state import State, detach
from hope_model.tree import tensors

STATISTICS = 64  # segments of training text that the mean squares are taken over, at most

Weights = Mapping[str, Tensor]


class RowState(NamedTuple):
    """One sequence: its own weights (None: the trained ones) and the segment that is not yet learned."""

    weights: Weights | None
    inner: Any  # after the last token
    start: Any  # before the segment
    tokens_1n: Tensor  # of the segment


class DynamicModel:
    """Each sequence has weights of its own, which begin as the trained ones; sequences run one by one."""

    copies_state = False
    defers = True

    def __init__(self, model: HopeModel | HFModel, dials: Dynamic, texts: Sequence[Tensor] = ()) -> None:
        self.inner, self.dials, self.device = model, dials, model.device
        self.max_length, self.shares_state = model.max_length, model.shares_state
        self.tokens = getattr(model, "tokens", None)
        self.trained = {name: p.detach() for name, p in model.model.named_parameters()}
        self._rms: dict[str, Tensor] = {}
        self._decay: dict[str, Tensor] = {}
        if dials.rule == "rms":
            self._measure(texts)

    def _measure(self, texts: Sequence[Tensor]) -> None:
        """Root mean square of every weight's gradient over segments of training text."""
        segments = [
            part for text in texts for part in torch.split(text, self.dials.segment + 1) if len(part) > 1
        ]
        if not segments:
            raise InputError("--adapt dynamic: the rms rule needs training text; take rule=sgd without it")
        squares = {name: torch.zeros_like(p) for name, p in self.trained.items()}
        chosen = segments[:: max(1, len(segments) // STATISTICS)][:STATISTICS]
        for segment in chosen:
            tokens_1T = segment.to(self.device)[None]
            grads, _, _ = self._learn(self.trained, tokens_1T[:, :-1], None, tokens_1T[:, 1:])
            for name, g in grads.items():
                squares[name] += g.square() / len(chosen)
        roots = {name: s.sqrt() for name, s in squares.items()}
        mean = sum(float(r.sum()) for r in roots.values()) / sum(r.numel() for r in roots.values())
        self._rms = {name: r + self.dials.epsilon * mean for name, r in roots.items()}
        self._decay = {name: (self.dials.decay * r / mean).clamp(max=1) for name, r in roots.items()}

    def __call__(
        self,
        tokens_BT: Tensor,
        state: list[RowState] | None,
        at: Places | None = None,
        *,
        final: bool = False,
    ) -> tuple[Tensor, list[RowState]]:
        del final
        empty = tokens_BT.new_zeros(1, 0)
        rows = state or [RowState(None, None, None, empty)] * len(tokens_BT)
        outputs, after = [], []
        for row, tokens in zip(rows, tokens_BT, strict=True):
            logits, row = self._read(row, tokens[None])
            outputs.append(logits)
            after.append(row)
        logits_BTV = torch.cat(outputs)
        return logits_BTV if at is None else logits_BTV[at], after

    def _read(self, row: RowState, tokens_1T: Tensor) -> tuple[Tensor, RowState]:
        outputs, t, T, segment = [], 0, tokens_1T.shape[1], self.dials.segment
        while t < T:
            if row.tokens_1n.shape[1] == segment:
                targets = torch.cat((row.tokens_1n[:, 1:], tokens_1T[:, t : t + 1]), 1)
                grads, _, _ = self._learn(row.weights or self.trained, row.tokens_1n, row.start, targets)
                row = RowState(self._stepped(row.weights, grads), row.inner, row.inner, row.tokens_1n[:, :0])
            end = min(T, t + segment - row.tokens_1n.shape[1])
            piece = tokens_1T[:, t:end]
            if end - t == segment and end < T:  # whole, and the token after it is known: one pass serves both
                grads, logits, inner = self._learn(
                    row.weights or self.trained, piece, row.inner, tokens_1T[:, t + 1 : end + 1]
                )
                row = RowState(self._stepped(row.weights, grads), inner, inner, row.tokens_1n[:, :0])
            else:
                with torch.no_grad():
                    logits, inner = self._forward(row.weights or self.trained, piece, row.inner)
                row = row._replace(inner=inner, tokens_1n=torch.cat((row.tokens_1n, piece), 1))
            outputs.append(logits)
            t = end
        return torch.cat(outputs, 1), row

    def _learn(
        self, weights: Weights, tokens_1n: Tensor, inner: Any, targets_1n: Tensor
    ) -> tuple[dict[str, Tensor], Tensor, Any]:
        """Gradient of the segment's mean loss with respect to every weight, logits, and the state after it."""
        with torch.enable_grad():
            leaves = {name: w.detach().requires_grad_() for name, w in weights.items()}
            logits, after = self._forward(leaves, tokens_1n, inner)
            loss = F.cross_entropy(lifted(logits[0]), targets_1n[0])
            grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        zeros = (
            torch.zeros_like(w) if g is None else g for g, w in zip(grads, weights.values(), strict=True)
        )
        return dict(zip(leaves, zeros, strict=True)), logits.detach(), _cut(after)

    def _stepped(self, weights: Weights | None, grads: Weights) -> Weights:
        rate, now = self.dials.rate, weights or self.trained
        if self.dials.rule == "sgd":
            return {
                name: w - rate * grads[name] + self.dials.decay * (self.trained[name] - w)
                for name, w in now.items()
            }
        return {
            name: w - rate * grads[name] / self._rms[name] + self._decay[name] * (self.trained[name] - w)
            for name, w in now.items()
        }

    def _forward(self, weights: Weights, tokens_1n: Tensor, inner: Any) -> tuple[Tensor, Any]:
        """The model with weights of its own."""
        wrapped = self.inner
        if isinstance(wrapped, HopeModel):
            if inner is None:
                inner = wrapped.model.initial(1, wrapped.settings)
            logits, after = functional_call(wrapped.model, dict(weights), (tokens_1n, inner))
            return logits[..., : self.tokens], after
        options = {} if inner is None else {"past_key_values": copied(inner)}
        out = functional_call(
            wrapped.model, dict(weights), (), {"input_ids": tokens_1n, "use_cache": True, **options}
        )
        return out.logits, out.past_key_values

    def fork(self, state: list[RowState], rows: Tensor) -> list[RowState]:
        """Chosen sequences; states are never changed, so they can be shared."""
        return [state[row] for row in rows.tolist()]

    def n_bytes(self, state: list[RowState]) -> int:
        """Bytes of the sequences' own weights."""
        own = (tuple((row.weights or {}).values()) for row in state)
        return sum(x.numel() * x.element_size() for weights in own for x in tensors(weights))

    def flops_per_token(self, plain: float, length: int) -> float:
        """A backward pass costs two forward passes."""
        del length
        return 2 * plain


def _cut(inner: Any) -> Any:
    """A state without history."""
    if isinstance(inner, State):
        return detach(inner)
    cache = copied(inner)
    for layer in cache.layers:
        if layer.is_initialized:
            layer.keys, layer.values = layer.keys.detach(), layer.values.detach()
    return cache
