"""The recurrence by whatever is fastest: our C++ kernel on a CPU, flash-linear-attention's on CUDA, else torch.

The latter come with `pip install hope-model[cuda]`.

Letters: N leading dimensions, B and H the last two of them, T tokens, K key width, V value width.
"""

import importlib.util
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hope_model.ops.gated_delta.chunk import gated_delta as gated_delta_torch
from hope_model.ops.gated_delta.native import KERNEL, gated_delta_native

LARGEST_KEY = 256  # of fla's kernels
FLOOR = 1e-6  # beta at least: v = w / beta exists where a gate is shut


class Kernels(NamedTuple):
    """S = exp(g) S, then S += beta (v - S k) k^T (delta) or S += v k^T (plain); o = S q."""

    delta: Callable[..., Any]
    plain: Callable[..., Any]


@cache
def kernels() -> Kernels | None:
    """The library's functions, imported at first use; None where it is not installed."""
    if importlib.util.find_spec("fla") is None:
        return None
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule  # noqa: PLC0415
    from fla.ops.simple_gla import chunk_simple_gla  # noqa: PLC0415

    return Kernels(chunk_gated_delta_rule, chunk_simple_gla)


def gated_delta(
    q_NTK: Tensor,
    k_NTK: Tensor,
    w_NTV: Tensor,
    log_a_NT: Tensor,
    b_NT: Tensor | None,
    S_NVK: Tensor,
    log_theta_NT: Tensor | None = None,
    P_NVK: Tensor | None = None,
    chunk: int = 64,
    *,
    twice: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """`gated_delta_naive`: by kernels where they apply (no momentum; CUDA: K up to 256), else by the torch form.

    `twice`: differentiable more than once, as only the torch form is.
    """
    plain = twice or log_theta_NT is not None
    if not plain and b_NT is not None and KERNEL.applies(q_NTK, k_NTK, w_NTV, log_a_NT, b_NT, S_NVK):
        return *gated_delta_native(q_NTK, k_NTK, w_NTV, log_a_NT, b_NT, S_NVK, chunk), P_NVK
    fast = q_NTK.is_cuda and not plain and q_NTK.shape[-1] <= LARGEST_KEY
    found = kernels() if fast and q_NTK.dtype != torch.float64 else None
    if found is None:
        return gated_delta_torch(q_NTK, k_NTK, w_NTV, log_a_NT, b_NT, S_NVK, log_theta_NT, P_NVK, chunk)
    return *gated_delta_kernels(found, q_NTK, k_NTK, w_NTV, log_a_NT, b_NT, S_NVK), P_NVK


def gated_delta_kernels(
    found: Kernels,
    q_NTK: Tensor,
    k_NTK: Tensor,
    w_NTV: Tensor,
    log_a_NT: Tensor,
    b_NT: Tensor | None,
    S_NVK: Tensor,
) -> tuple[Tensor, Tensor]:
    """Our letters in theirs: a (I - b/a k k^T) is exp(g) (I - beta k k^T), and w is beta v.

    Returns:
        Reads and final state, the state in float32.
    """
    T, lead = q_NTK.shape[-2], S_NVK.shape[:-2]
    B, H = (S_NVK[..., 0, 0].numel() // lead[-1], lead[-1]) if lead else (1, 1)

    def theirs(x: Tensor) -> Tensor:
        return x.reshape(B, H, T, *x.shape[len(lead) + 1 :]).transpose(1, 2).contiguous()

    S_BHKV = S_NVK.reshape(B, H, *S_NVK.shape[-2:]).transpose(-1, -2).float().contiguous()
    common = {"scale": 1.0, "initial_state": S_BHKV, "output_final_state": True}
    q, k, g = theirs(q_NTK), theirs(k_NTK), theirs(log_a_NT).float()
    if b_NT is None:
        o, S_BHKV = found.plain(q, k, theirs(w_NTV), g=g, **common)
    else:
        beta_NT = b_NT * (-log_a_NT).exp() + FLOOR  # added, not clamped: a shut gate keeps its gradient
        v_NTV = w_NTV / beta_NT[..., None]
        o, S_BHKV = found.delta(q, k, theirs(v_NTV), g=g, beta=theirs(beta_NT), **common)
    o_NTV = o.transpose(1, 2).reshape(w_NTV.shape)
    return o_NTV, S_BHKV.transpose(-1, -2).reshape(S_NVK.shape)
