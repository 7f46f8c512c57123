"""What a pass over segments computed without history serves a pass over all their tokens that needs history.

Only products and memories are kept: what is cheap is computed again. Letters: B sequences, T tokens of all segments,
n of one, I and O inputs and outputs of one matrix.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hope_model.tree import tensors, tree_map

TOKENS = 2  # where memories have their tokens: [B, H, T, ...]


class Tape:
    """Outputs of one call's segments, by the weight or layer that made them."""

    def __init__(self) -> None:
        self._products: dict[int, list[Tensor]] = {}
        self._memories: dict[int, _Memory] = {}
        self._attended: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def linear(self, x_BTI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        """x W^T + b: computed and kept without history; with history taken from there, if it is of the same tokens."""
        key = id(weight_OI)
        if not torch.is_grad_enabled():
            y: Tensor = F.linear(x_BTI, weight_OI, bias_O)
            self._products.setdefault(key, []).append(y)
            return y
        parts = self._products.pop(key, [])
        if sum(y.shape[1] for y in parts) != x_BTI.shape[1]:
            return F.linear(x_BTI, weight_OI, bias_O)
        product: Tensor = _PRODUCT(x_BTI, weight_OI, bias_O, torch.cat(parts, 1))
        return product

    def attention(
        self, layer: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, is_causal: bool
    ) -> Tensor | None:
        """Return softmax attention; None where it is not known."""
        if not torch.is_grad_enabled():
            if mask is not None:
                mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(~mask, -torch.inf)
            read = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
            o, logsumexp = read(q, k, v, 0.0, is_causal, attn_mask=mask)
            self._attended.setdefault(id(layer), []).append((o, logsumexp))
            return o  # type: ignore[no-any-return]
        parts = self._attended.pop(id(layer), [])
        if not is_causal or sum(o.shape[2] for o, _ in parts) != q.shape[2]:
            return None
        o_BHTd, logsumexp_BHT = (torch.cat(part, 2) for part in zip(*parts, strict=True))
        attended: Tensor = _ATTENDED(q, k, v, o_BHTd, logsumexp_BHT)
        return attended

    def memory(
        self,
        layer: nn.Module,
        function: Callable[..., Any],
        tokens: Any,
        shared: Callable[[], Any],
        state: Any,
    ) -> tuple[Tensor, Any]:
        if not torch.is_grad_enabled():
            return self._memories.setdefault(id(layer), _Memory()).segment(function, tokens, shared, state)
        memory = self._memories.pop(id(layer))
        o, *parts = _REPLAY(memory, *tensors((tokens, shared(), state)))
        after = iter(parts)
        return o, tree_map(lambda _: next(after), memory.state)


class _Memory:
    """A memory's segments, each with the history of its own steps."""

    def __init__(self) -> None:
        self.tokens: list[list[Tensor]] = []
        self.outputs: list[Tensor] = []
        self.shared: Any = None
        self.state: Any = None
        self.constants: list[Tensor] = []  # leaves for `shared` and the first state

    def segment(
        self, function: Callable[..., Any], tokens: Any, shared: Callable[[], Any], state: Any
    ) -> tuple[Tensor, Any]:
        if not self.outputs:
            self.shared, self.state = tree_map(_leaf, shared()), tree_map(_leaf, state)
            self.constants = tensors((self.shared, self.state))
        with torch.enable_grad():
            own = tree_map(_leaf, tokens)
            o, self.state = function(own, self.shared, self.state)
        self.tokens.append(tensors(own))
        self.outputs.append(o)
        return o.detach(), tree_map(Tensor.detach, self.state)


def _leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_()


class _Replay(torch.autograd.Function):
    """Outputs that segments gave; the backward goes through each segment's own history."""

    @staticmethod
    def forward(ctx: Any, memory: _Memory, *_: Tensor) -> tuple[Tensor, ...]:
        ctx.memory = memory
        return torch.cat([o.detach() for o in memory.outputs], TOKENS), *(
            x.detach() for x in tensors(memory.state)
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_o: Tensor, *g_state: Tensor) -> tuple[Tensor | None, ...]:
        memory: _Memory = ctx.memory
        lengths = [o.shape[TOKENS] for o in memory.outputs]
        pairs = list(zip(memory.outputs, torch.split(g_o, lengths, TOKENS), strict=True))
        pairs += [(x, g) for x, g in zip(tensors(memory.state), g_state, strict=True) if x.requires_grad]
        leaves = [x for own in memory.tokens for x in own] + memory.constants
        # Kept: the caller may go back once more.
        grads = torch.autograd.grad(
            [x for x, _ in pairs], leaves, [g for _, g in pairs], allow_unused=True, retain_graph=True
        )
        each = len(memory.tokens[0])
        by_segment = [grads[n : n + each] for n in range(0, each * len(lengths), each)]
        whole = [
            None if None in parts else torch.cat(parts, TOKENS) for parts in zip(*by_segment, strict=True)
        ]
        return None, *whole, *grads[each * len(lengths) :]


class _Attended(torch.autograd.Function):
    """Causal softmax attention whose value o and normalisers are known."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, o: Tensor, logsumexp_BHT: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v, o, logsumexp_BHT)
        return o

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_o: Tensor) -> tuple[Tensor | None, ...]:
        back = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        return *back(g_o, *ctx.saved_tensors, 0.0, True), None, None


class _Product(torch.autograd.Function):
    """x W^T + b whose value y is known, with products in y's precision."""

    @staticmethod
    def forward(ctx: Any, x_BTI: Tensor, weight_OI: Tensor, bias_O: Tensor | None, y_BTO: Tensor) -> Tensor:
        ctx.save_for_backward(x_BTI.to(y_BTO.dtype), weight_OI)
        ctx.dtype, ctx.bias = x_BTI.dtype, None if bias_O is None else bias_O.dtype
        return y_BTO

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_BTO: Tensor) -> tuple[Tensor | None, ...]:
        x_BTI, weight_OI = ctx.saved_tensors
        g_x = (g_BTO @ weight_OI.to(g_BTO.dtype)).to(ctx.dtype) if ctx.needs_input_grad[0] else None
        g_weight = None
        if ctx.needs_input_grad[1]:
            g_weight = (g_BTO.flatten(0, 1).T @ x_BTI.flatten(0, 1)).to(weight_OI.dtype)
        return g_x, g_weight, None if ctx.bias is None else g_BTO.sum((0, 1)).to(ctx.bias), None


_PRODUCT: Callable[..., Any] = _Product.apply
_ATTENDED: Callable[..., Any] = _Attended.apply
_REPLAY: Callable[..., Any] = _Replay.apply


class _Here(threading.local):
    """Of this thread: others may run models too."""

    def __init__(self) -> None:
        self.tapes: list[Tape] = []


_HERE = _Here()


@contextmanager
def recording(tape: Tape | None) -> Iterator[None]:
    """Layers use `tape` inside: without history they fill it, with history they take from it."""
    if tape is None:
        yield
        return
    _HERE.tapes.append(tape)
    try:
        yield
    finally:
        _HERE.tapes.pop()


def is_recording() -> bool:
    """Whether a tape keeps what layers compute."""
    return not torch.compiler.is_compiling() and bool(_HERE.tapes)


class Linear(nn.Linear):
    """A matrix whose products can be kept."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """x W^T + b."""
        if is_recording():
            return _HERE.tapes[-1].linear(input, self.weight, self.bias)
        return super().forward(input)


def attended(
    layer: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, is_causal: bool
) -> Tensor | None:
    """Return softmax attention if there is a tape that knows it, else None."""
    if not is_recording() or q.device.type != "cpu":
        return None
    return _HERE.tapes[-1].attention(layer, q, k, v, mask, is_causal=is_causal)


def remembered(
    layer: nn.Module, function: Callable[..., Any], tokens: Any, shared: Callable[[], Any], state: Any
) -> tuple[Tensor, Any]:
    """Return function(tokens, shared(), state): what a memory reads, and its state afterwards.

    Args:
        layer: Whose memory it is.
        function: Of three nested tuples of tensors.
        tokens: What every token has of its own, tokens at `TOKENS`.
        shared: Makes what all tokens share; called once for all segments.
        state: Before the first token.
    """
    play = _HERE.tapes[-1].memory if is_recording() else _plain
    return play(layer, function, tokens, shared, state)


def _plain(
    _layer: nn.Module, function: Callable[..., Any], tokens: Any, shared: Callable[[], Any], state: Any
) -> tuple[Tensor, Any]:
    result: tuple[Tensor, Any] = function(tokens, shared(), state)
    return result
