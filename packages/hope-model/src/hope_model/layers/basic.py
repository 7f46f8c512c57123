"""Small parts that several layers share.

Letters: B sequences, T tokens, D width, H heads, d head width, F hidden width.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hope_model.layers.recording import Linear
from hope_model.ops import one_token
from hope_model.ops.activations import l2norm
from hope_model.ops.deep_memory.written_parts import normalise, normalise_back
from hope_model.ops.native.convolution import convolution, convolution_applies
from hope_model.ops.native.heads import GATED_NORM, SPLIT_HEADS, gated_norm
from hope_model.ops.native.heads import split_heads as native_split_heads


def linear(inputs: int, outputs: int, std: float, *, bias: bool = False) -> nn.Linear:
    """A matrix drawn from a normal distribution; its bias begins at zero."""
    layer = Linear(inputs, outputs, bias=bias)
    if not layer.weight.is_meta:  # there torch would import its compiler to draw nothing
        nn.init.normal_(layer.weight, std=std)
        if bias:
            nn.init.zeros_(layer.bias)
    return layer


def to_heads(x_BTD: Tensor, heads: int) -> Tensor:
    """[B, T, H d] to [B, H, T, d]."""
    return x_BTD.view(*x_BTD.shape[:-1], heads, -1).transpose(1, 2)


def to_width(x_BHTd: Tensor) -> Tensor:
    """[B, H, T, d] to [B, T, H d]."""
    return x_BHTd.transpose(1, 2).flatten(-2)


class _UnitHeads(torch.autograd.Function):
    """Heads of norm 1 with tokens last, as memories read them; keeps only what they keep too."""

    @staticmethod
    def forward(ctx: Any, x_BTD: Tensor, heads: int) -> Tensor:
        heads_BTHd = x_BTD.view(*x_BTD.shape[:-1], heads, -1)
        y_BHdT = heads_BTHd.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format)
        inverse_BH1T = normalise(y_BHdT)
        ctx.save_for_backward(y_BHdT, inverse_BH1T)
        return y_BHdT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        g_BHdT = normalise_back(grads[0], *ctx.saved_tensors)
        return g_BHdT.permute(0, 3, 1, 2).flatten(2), None


def split_heads(
    x_BTE: Tensor, heads: int, *, parts: int = 1, unit: int = 1, silu: bool = False, twice: bool = False
) -> tuple[Tensor, ...]:
    """[B, T, parts H d] to parts of heads, [B, H, T, d] in the precision of states.

    Args:
        x_BTE: A projection, or several side by side.
        heads: H.
        parts: How many.
        unit: The first so many get norm 1.
        silu: SiLU of x instead of x.
        twice: Must be differentiable more than once.
    """
    if not twice and SPLIT_HEADS.applies(x_BTE):
        return native_split_heads(x_BTE, heads, parts, unit, silu=silu)
    x_BTE = F.silu(x_BTE) if silu else x_BTE
    whole = x_BTE if x_BTE.dtype == torch.float64 else x_BTE.float()
    each = whole.chunk(parts, -1)
    return tuple(
        _unit_heads(x, heads, twice=twice) if n < unit else to_heads(x, heads) for n, x in enumerate(each)
    )


def _unit_heads(x_BTD: Tensor, heads: int, *, twice: bool) -> Tensor:
    if twice:
        return l2norm(to_heads(x_BTD, heads), -1)
    y_BHdT: Tensor = _UNIT_HEADS(x_BTD, heads)
    return y_BHdT.transpose(-1, -2)


_UNIT_HEADS: Callable[..., Any] = _UnitHeads.apply


def _single(x: Tensor) -> Tensor:
    """At least float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _SiluProduct(torch.autograd.Function):
    """x silu(gate), keeping x and gate only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor) -> Tensor:
        ctx.save_for_backward(x, gate)
        return F.silu(gate).mul_(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        (g,) = grads
        x, gate = ctx.saved_tensors
        s = gate.sigmoid()
        silu = gate * s
        return g * silu, g * x * (s + silu * (1 - s))


_SILU_PRODUCT: Callable[..., Any] = _SiluProduct.apply


class SwiGLU(nn.Module):
    """Gated MLP (arXiv 2002.05202)."""

    def __init__(self, dim: int, hidden: int, std: float, out_std: float, *, bias: bool = False) -> None:
        super().__init__()
        self.up = linear(dim, 2 * hidden, std, bias=bias)  # rows of the gate, then of the value
        self.down = linear(hidden, dim, out_std, bias=bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Map [B, T, D] to [B, T, D]."""
        gate, value = self.up(x_BTD).chunk(2, -1)
        y: Tensor = self.down(F.silu(gate) * value)
        return y


class CausalConv(nn.Module):
    """Depthwise causal convolution; the state is the last width-1 inputs [B, width-1, D]."""

    def __init__(self, dim: int, width: int, *, twice: bool = False) -> None:
        super().__init__()
        self.twice = twice  # must be differentiable more than once
        self.weight = nn.Parameter(torch.zeros(width, dim))
        nn.init.ones_(self.weight.data[-1])  # begins as the identity

    def initial(self, batch: int) -> Tensor:
        """Zeros before the first token."""
        width, dim = self.weight.shape
        return self.weight.new_zeros(batch, width - 1, dim)

    def forward(self, x_BTD: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
        """Sum over j of weight_j * x_{t-width+1+j}."""
        if len(self.weight) > 1 and one_token.applies(x_BTD, tail):
            return one_token.convolution(x_BTD, tail, self.weight)
        tail, weight_WD = tail.to(x_BTD.dtype), _single(self.weight)
        if not self.twice and convolution_applies(x_BTD, tail, weight_WD):
            return convolution(x_BTD, tail, weight_WD)
        whole_BSD = torch.cat((tail, x_BTD), 1)
        y: Tensor = _CONVOLVE(whole_BSD, self.weight.to(x_BTD.dtype))
        return y, whole_BSD[:, x_BTD.shape[1] :]


class _Convolve(torch.autograd.Function):
    """Shifted products; the written-out backward halves the memory traffic of autograd's."""

    @staticmethod
    def forward(ctx: Any, whole_BSD: Tensor, weight_WD: Tensor) -> Tensor:
        ctx.save_for_backward(whole_BSD, weight_WD)
        T = whole_BSD.shape[1] - len(weight_WD) + 1
        y_BTD = whole_BSD[:, -T:] * weight_WD[-1]
        for n, w_D in enumerate(weight_WD[:-1]):
            y_BTD.addcmul_(whole_BSD[:, n : n + T], w_D)
        return y_BTD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        (g_BTD,) = grads
        whole_BSD, weight_WD = ctx.saved_tensors
        T = g_BTD.shape[1]
        g_whole, g_weight = torch.zeros_like(whole_BSD), torch.empty_like(weight_WD)
        for n, w_D in enumerate(weight_WD):
            g_whole[:, n : n + T].addcmul_(g_BTD, w_D)
            g_weight[n] = (g_BTD * whole_BSD[:, n : n + T]).sum((0, 1))
        return g_whole, g_weight


_CONVOLVE: Callable[..., Any] = _Convolve.apply


class GatedOutput(nn.Module):
    """Per-head norm, output gate, output projection: how every memory's reads return to the stream."""

    def __init__(self, dim: int, head_dim: int, std: float, out_std: float, *, twice: bool = False) -> None:
        super().__init__()
        self.twice = twice  # must be differentiable more than once
        self.norm = nn.RMSNorm(head_dim, eps=1e-6)
        self.gate = linear(dim, dim, std)
        self.out = linear(dim, dim, out_std)

    def forward(self, o_BHTd: Tensor, x_BTD: Tensor, half_BTD: Tensor | None = None) -> Tensor:
        """[B, H, T, d] reads and the layer's input to [B, T, D]; `half_BTD`: the input, if it was cast already."""
        gate_BTD = self.gate(x_BTD if half_BTD is None else half_BTD)
        weight_d = _single(self.norm.weight)
        if not self.twice and GATED_NORM.applies(o_BHTd, gate_BTD, weight_d):
            return self._out(gated_norm(o_BHTd, gate_BTD, weight_d))
        o_BTHd = o_BHTd.transpose(1, 2)  # in float32, whatever the model is in
        o_BTD = F.rms_norm(
            o_BTHd, self.norm.normalized_shape, weight_d.to(o_BTHd.dtype), self.norm.eps
        ).flatten(-2)
        return self._out(_SILU_PRODUCT(o_BTD.to(x_BTD.dtype), gate_BTD))

    def by(self, read: Callable[[Tensor, Tensor], tuple[Tensor, Any]], x_BTD: Tensor) -> tuple[Tensor, Any]:
        """The same of a read that norms and gates itself: from gates and the norm's weight to [B, T, D] and a state."""
        y_BTD, state = read(self.gate(x_BTD), self.norm.weight)
        return self._out(y_BTD), state

    def _out(self, y_BTD: Tensor) -> Tensor:
        projected: Tensor = self.out(y_BTD)
        return projected
