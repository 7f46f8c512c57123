"""A model with a memory attached: the loop over periods, and how fast deltas enter its forward pass.

Letters: B sequences, T tokens, n tokens of one segment, V vocabulary, I and O inputs and outputs of one matrix.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from hope_model.adapt.check import check_memory, check_settings
from hope_model.adapt.host import Host
from hope_model.adapt.memory import (
    AttachedLayer,
    AttachedState,
    Ladder,
    Options,
    periods_of,
    recorded,
    taught,
)
from hope_model.adapt.ours import OurHost
from hope_model.adapt.targets import Mlp, Rule, find, theta
from hope_model.errors import InputError
from hope_model.model import LanguageModel
from hope_model.ops.cms import fast_linear
from hope_model.state import MemorySettings, Teach, detach, n_bytes, select
from hope_model.state_check import check_batch
from hope_model.teach import gated, output_signal

# Below so many tokens two thin products cost less than adding the slow and the fast matrix.
FEW = 8


class AttachedMemory:
    """Handle of an attached memory: `memory(tokens, state) -> (logits, state)`, and the model called as ever.

    Attributes:
        model: the model; while attached, its own `forward` (and `generate`) reads and writes the memory.
        mlps: the MLPs whose matrices have a fast delta.
        options: what was asked for.
        host: the model as the memory sees it.
    """

    def __init__(self, model: nn.Module, host: Host, mlps: list[Mlp], options: Options) -> None:
        self.model, self.mlps, self.options = model, mlps, options
        self.host, self._segment = host, min(options.periods)
        self._former = vars(model).get("forward")
        self._attached = True
        self._newest: tuple[weakref.ref[Tensor], tuple[int, ...]] | None = None
        model.forward = host.forward(self)  # on the instance: its class stays as it is

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    def detach(self) -> None:
        """Take the memory off; the model is as it was before, and this handle still works."""
        if not self._attached:
            return
        self._attached = False
        del self.model.forward
        if self._former is not None:
            self.model.forward = self._former

    def settings(self) -> MemorySettings:
        """How it was asked to write; a state holds its own, to be changed at any time."""
        return MemorySettings(self.options.scale, self.options.clip, self.options.threshold)

    def initial(self, batch: int, settings: MemorySettings | None = None) -> AttachedState:
        """State before the first token of `batch` sequences."""
        check_batch(batch)
        return self.begin(self.host.begin(batch), 0, settings)

    def begin(self, inner: Any, position: int, settings: MemorySettings | None = None) -> AttachedState:
        """State of sequences whose first `position` tokens the model has read without a memory."""
        if settings is not None:
            check_settings(settings, len(self.mlps))
        empty = tuple(AttachedLayer(None, None, ()) for _ in self.mlps)
        return AttachedState(position, inner, empty, (), None, settings or self.settings())

    def __call__(self, tokens_BT: Tensor, state: AttachedState | None = None) -> tuple[Tensor, AttachedState]:
        """Logits of every next token, and the state after the last token.

        Args:
            tokens_BT: int64 tokens, no padding; any split of a sequence into calls gives the same logits.
            state: From an earlier call, which stays as it is; None begins a sequence.
        """
        LanguageModel.check_tokens(tokens_BT)
        if state is None:
            state = self.initial(len(tokens_BT))
        elif self._is_newest(state, len(tokens_BT)):
            check_settings(state.settings, len(self.mlps))
        else:
            check_memory(self, state, len(tokens_BT))
        if not state.settings.teach_scale:
            return self._read(tokens_BT, state)
        outputs, t, T = [], 0, tokens_BT.shape[1]
        while t < T:
            begun = state.position % self._segment
            if state.pending and not begun:
                state = self._teach(state, tokens_BT[:, t])
            end = min(T, t + self._segment - begun)
            logits, state = self._run(tokens_BT[:, t:end], state)
            outputs.append(logits)
            t = end
        return torch.cat(outputs, 1) if len(outputs) > 1 else outputs[0], state

    def _read(self, tokens_BT: Tensor, state: AttachedState) -> tuple[Tensor, AttachedState]:
        """The model with what the memory holds; nothing is written."""
        with self._patched(state.layers, len(tokens_BT), None):
            logits, inner = self.host.run(tokens_BT, state.inner)
        layers = tuple(AttachedLayer(layer.delta, layer.total, ()) for layer in state.layers)
        position = state.position + tokens_BT.shape[1]
        return logits, state._replace(position=position, inner=inner, layers=layers, pending=())

    def _run(self, tokens_Bn: Tensor, state: AttachedState) -> tuple[Tensor, AttachedState]:
        """Tokens of one segment: what their write needs is kept until the token after the segment is known."""
        calls: dict[int, tuple[Tensor, Tensor]] = {}
        with self._patched(state.layers, len(tokens_Bn), calls):
            logits, inner = self.host.run(tokens_Bn, state.inner)
        layers = tuple(
            layer._replace(waiting=(*layer.waiting, recorded(mlp, calls)))
            for mlp, layer in zip(self.mlps, state.layers, strict=True)
        )
        kept = logits.detach()
        pending = (*state.pending, (tokens_Bn, kept))
        position = state.position + tokens_Bn.shape[1]
        state = state._replace(position=position, inner=inner, layers=layers, pending=pending)
        self._newest = (weakref.ref(kept), _identities(state))
        return logits, state

    def _is_newest(self, state: AttachedState, batch: int) -> bool:
        """Whether a state is, settings aside, what the last call returned: looking at it all takes long."""
        if not isinstance(state, AttachedState) or not state.pending or self._newest is None:
            return False
        logits, identities = self._newest
        kept = logits()
        return kept is not None and identities == _identities(state) and len(kept) == batch

    @torch.no_grad()
    def _teach(self, state: AttachedState, next_B: Tensor) -> AttachedState:
        """The token after a segment is known: give its tokens their teach signal, and write where a period ends."""
        tokens, logits = (torch.cat(pieces, 1) for pieces in zip(*state.pending, strict=True))
        targets = torch.cat((tokens[:, 1:], next_B[:, None]), 1)
        signal = output_signal(logits, targets, self.host.head, self.host.slope(logits))
        (signal,), norm, hits = gated((signal,), state.settings)
        old = state.teach or Teach(norm.new_zeros(()), (hits.new_zeros(()),), 0)
        teach = Teach(old.norm + norm, (old.hits[0] + hits,), old.signals + targets.numel())
        layers = taught(self.mlps, state, signal, self.options)
        return state._replace(layers=layers, pending=(), teach=teach)

    @contextmanager
    def _patched(
        self, layers: Sequence[AttachedLayer], batch: int, calls: dict[int, tuple[Tensor, Tensor]] | None
    ) -> Iterator[None]:
        """While it lasts, chosen modules add their fast delta and note in `calls` what passes through them."""
        patched: list[tuple[nn.Module, Any]] = []
        try:
            for mlp, layer in zip(self.mlps, layers, strict=True):
                deltas = dict(zip(map(id, mlp.written), layer.delta or (), strict=False))
                for module in {id(m): m for m in (mlp.down, *mlp.inputs)}.values():
                    delta = deltas.get(id(module))
                    if delta is None and calls is None:
                        continue
                    patched.append((module, vars(module).get("forward")))
                    module.forward = _reader(module, delta, batch, calls)
            yield
        finally:
            for module, before in patched:
                del module.forward
                if before is not None:
                    module.forward = before

    def select(self, state: AttachedState, rows: Tensor) -> AttachedState:
        """The sequences named by `rows`, each as often as it is named."""
        return select(state, rows)

    def cut(self, state: AttachedState) -> AttachedState:
        """The same state without history: cuts backpropagation through time."""
        return detach(state)

    def n_bytes(self, state: AttachedState, *, own: bool = True) -> int:
        """Bytes that a state holds; `own`: of the memory alone, without the model's own state."""
        return n_bytes(state._replace(inner=None) if own else state)

    def flops_per_token(self) -> float:
        """Operations per token that reading and writing add to the model's own: signal, outer products, thin reads."""
        V, D = self.host.head.shape
        written = sum(theta(module).numel() for mlp in self.mlps for module in mlp.written)
        back = sum(theta(mlp.down).numel() for mlp in self.mlps if mlp.inputs)
        return 2.0 * (V * D + written + back)


def _identities(state: AttachedState) -> tuple[int, ...]:
    """Of all parts but the settings, and of the newest logits."""
    parts = (state.inner, state.layers, state.pending, state.teach, state.pending[-1][1])
    return (state.position, *map(id, parts))


def _reader(
    module: nn.Module, delta_BOI: Tensor | None, batch: int, calls: dict[int, tuple[Tensor, Tensor]] | None
) -> Callable[[Tensor], Tensor]:
    plain, bias = module.forward, getattr(module, "bias", None)

    def forward(x: Tensor) -> Tensor:
        # Some models flatten batch and tokens before an MLP.
        x_BTI = x.view(batch, -1, x.shape[-1])
        y: Tensor
        if delta_BOI is None:
            y = plain(x)
        elif x_BTI.shape[1] < FEW:
            fast = delta_BOI.to(x.dtype)
            y = plain(x) + (x_BTI @ fast.transpose(-1, -2)).view(*x.shape[:-1], -1)
        else:
            slow = theta(module)
            y = fast_linear(x_BTI, slow, delta_BOI.to(slow.dtype)).view(*x.shape[:-1], -1)
            y = y if bias is None else y + bias
        if calls is not None:
            calls[id(module)] = (x_BTI, y.view(batch, -1, y.shape[-1]))
        return y

    return forward


def attach_memory(
    model: nn.Module,
    *,
    periods: int | Sequence[int] | Ladder = 128,
    scale: float = 0.1,
    clip: float = 1.0,
    threshold: float = 0.0,
    bound: float = 0.5,
    retention: float = 1.0,
    matrices: str = "down",
    targets: Rule | str | None = None,
) -> AttachedMemory:
    """Make the MLPs of a trained model memories that are written while it reads.

    Every `periods` tokens of a sequence its fast delta of each chosen matrix becomes `retention` times itself, minus
    `scale` times the gradient that the teach signal gives (mean within a segment of the smallest period, sum over
    segments), shrunk to `bound` times the matrix's norm. With `scale=0` the model is bitwise as without a memory.

    Args:
        model: one of our variants with a SwiGLU, or a causal language model of transformers.
        periods: tokens between writes, multiples of the smallest: one number, one for each MLP, or a `Ladder`.
        scale: strength of the writes; tune it on validation text.
        clip: largest norm of a token's teach signal.
        threshold: tokens with a smaller teach signal write nothing.
        bound: largest norm of a delta, times its matrix's; 0: none.
        retention: what a write keeps of the former delta.
        matrices: `down` (projections to the model's width), `up` (those into the hidden layer, and gates), or `all`.
        targets: how the MLP's modules are named, or the end of the down projections' names; None: found.

    Returns:
        The handle; `detach` (or leaving its `with` block) gives the model back as it was.

    Raises:
        InputError: no such matrices, quantised ones, a memory already attached, or a value out of range.
    """
    if getattr(vars(model).get("forward"), "attached_memory", False):
        raise InputError(f"{type(model).__name__} has a memory already; detach it first")
    host = _host_of(model)
    mlps = find(model, host.layers, host.head.shape[1], matrices, targets)
    chosen = periods_of(periods, len(mlps))
    return AttachedMemory(
        model, host, mlps, Options(chosen, scale, clip, threshold, bound, retention, matrices)
    )


def _host_of(model: nn.Module) -> Host:
    if isinstance(model, LanguageModel):
        return OurHost(model)
    if hasattr(model, "get_output_embeddings"):
        from hope_model.adapt.huggingface import host_of  # noqa: PLC0415 (transformers is optional)

        return host_of(model)
    raise InputError(
        f"{type(model).__name__} is neither a hope_model.LanguageModel nor a causal model of transformers"
    )
