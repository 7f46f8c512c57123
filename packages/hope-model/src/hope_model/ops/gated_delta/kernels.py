"""The recurrence by whatever is fastest: our C++ kernel on a CPU, flash-linear-attention's on CUDA, else torch.

The latter comes with `pip install hope-model[cuda]`.

Letters: N leading dimensions, B and H the last two of them, T tokens, K key width, V value width.
"""

import importlib.util
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hope_model.ops.gated_delta.chunk import gated_delta as gated_delta_torch
from hope_model.ops.gated_delta.native import KERNEL, gated_delta_native

LARGEST_KEY = 256  # of fla's kernel


@cache
def fla_kernel() -> Callable[..., Any] | None:
    """The library's function, imported at first use; None where it is not installed or its import fails, said once."""
    if importlib.util.find_spec("fla") is None:
        return None
    try:
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule  # noqa: PLC0415
    except Exception as error:  # noqa: BLE001  # whatever a foreign package raises, torch does the same
        warnings.warn(
            f"flash-linear-attention cannot be imported ({type(error).__name__}: {error}), so gated DeltaNet runs in "
            "its slower torch form; install hope-model[cuda]",
            RuntimeWarning,
            stacklevel=3,
        )
        return None
    kernel: Callable[..., Any] = chunk_gated_delta_rule
    return kernel


def gated_delta(
    q_NTK: Tensor,
    k_NTK: Tensor,
    v_NTV: Tensor,
    log_a_NT: Tensor,
    beta_NT: Tensor,
    S_NVK: Tensor,
    chunk: int = 64,
    *,
    twice: bool = False,
    half: bool = False,
) -> tuple[Tensor, Tensor]:
    """S_t = a_t (S_{t-1} (I - beta_t k_t k_t^T) + beta_t v_t k_t^T), o_t = S_t q_t.

    The strength beta is given without the retention a: b = a beta vanishes with a, and b / a would be 0 / 0.

    Returns:
        Reads o_NTV and the final state.
    """
    fast = q_NTK.is_cuda and not twice and q_NTK.shape[-1] <= LARGEST_KEY and q_NTK.dtype != torch.float64
    kernel = fla_kernel() if fast else None
    if kernel is not None:
        o_BTHV, S_BHKV = kernel(**to_fla(q_NTK, k_NTK, v_NTV, log_a_NT, beta_NT, S_NVK))
        return from_fla(o_BTHV, S_BHKV, v_NTV, S_NVK)
    b_NT = log_a_NT.exp() * beta_NT
    w_NTV = b_NT[..., None] * v_NTV
    return recurrence(q_NTK, k_NTK, w_NTV, log_a_NT, b_NT, S_NVK, chunk=chunk, twice=twice, half=half)[:2]


def recurrence(
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
    half: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """`gated_delta_naive` by the C++ kernel where it applies (no momentum), else by the torch form.

    `twice`: differentiable more than once, as only the torch form is. `half`: products may be rounded to bfloat16.
    """
    plain = twice or log_theta_NT is not None or b_NT is None
    if not plain and b_NT is not None and KERNEL.applies(q_NTK, k_NTK, w_NTV, log_a_NT, b_NT, S_NVK):
        return *gated_delta_native(q_NTK, k_NTK, w_NTV, log_a_NT, b_NT, S_NVK, chunk, half=half), P_NVK
    return gated_delta_torch(q_NTK, k_NTK, w_NTV, log_a_NT, b_NT, S_NVK, log_theta_NT, P_NVK, chunk)


def to_fla(
    q_NTK: Tensor, k_NTK: Tensor, v_NTV: Tensor, log_a_NT: Tensor, beta_NT: Tensor, S_NVK: Tensor
) -> dict[str, Any]:
    """Our letters in theirs: S = exp(g) S, then S += beta (v - S k) k^T; so v is a times ours."""
    T, lead = q_NTK.shape[-2], S_NVK.shape[:-2]
    B, H = (S_NVK[..., 0, 0].numel() // lead[-1], lead[-1]) if lead else (1, 1)

    def theirs(x: Tensor) -> Tensor:
        return x.reshape(B, H, T, *x.shape[len(lead) + 1 :]).transpose(1, 2).contiguous()

    S_BHKV = S_NVK.reshape(B, H, *S_NVK.shape[-2:]).transpose(-1, -2).float().contiguous()
    return {
        "q": theirs(q_NTK),
        "k": theirs(k_NTK),
        "v": theirs(log_a_NT.exp()[..., None] * v_NTV),
        "g": theirs(log_a_NT).float(),
        "beta": theirs(beta_NT),
        "scale": 1.0,
        "initial_state": S_BHKV,
        "output_final_state": True,
    }


def from_fla(o_BTHV: Tensor, S_BHKV: Tensor, v_NTV: Tensor, S_NVK: Tensor) -> tuple[Tensor, Tensor]:
    """Reads and final state (in float32) in the shapes of our own."""
    return o_BTHV.transpose(1, 2).reshape(v_NTV.shape), S_BHKV.transpose(-1, -2).reshape(S_NVK.shape)
