"""The way into a memory and out of it by C++ kernels: from width last to tokens last, and back.

Letters: B sequences, T tokens, H heads, d head width, E columns of all parts (parts times H d).
"""

from torch import Tensor

from hope_model.ops.native.function import Kernel

SPLIT_HEADS = Kernel(
    "split_heads",
    sizes="N T H d parts unit silu",
    inputs="x[N,T,parts*H*d]~",
    outputs="q[N,H,d,T] k[second,H,d,T] v[third,H,d,T]",  # N rows of parts that are there, else none
    each="H",
)
GATED_NORM = Kernel(
    "gated_norm",
    sizes="N T H d",
    inputs="o[N,H,d,T] gate[N,T,H*d]~ weight[1,d]",
    outputs="y[N,T,H*d]~",
    shared="weight",
)
MOST = 3  # parts of one projection


def split_heads(x_BTE: Tensor, heads: int, parts: int, unit: int, *, silu: bool) -> tuple[Tensor, ...]:
    """Parts [B, H, T, d], the first `unit` of them of norm 1; `silu`: its value at x instead of x."""
    B, T, E = x_BTE.shape
    if not 1 <= parts <= MOST:
        raise ValueError(f"split_heads: {parts} parts; it makes 1 to {MOST}")
    sizes = {"N": B, "T": T, "H": heads, "d": E // (parts * heads), "parts": parts}
    sizes |= {"unit": unit, "silu": int(silu), "second": B * (parts > 1), "third": B * (parts > 2)}
    return tuple(part.transpose(-1, -2) for part in SPLIT_HEADS(sizes, x=x_BTE)[:parts])


def gated_norm(o_BHTd: Tensor, gate_BTD: Tensor, weight_d: Tensor) -> Tensor:
    """RMSNorm of every head's read times silu(gate): [B, T, H d]."""
    B, H, T, d = o_BHTd.shape
    sizes = {"N": B, "T": T, "H": H, "d": d}
    return GATED_NORM(sizes, o=o_BHTd.transpose(-1, -2), gate=gate_BTD, weight=weight_d[None])[0]
