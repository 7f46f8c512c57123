"""The gated delta rule as one time loop.

Letters: N any leading dimensions (batch, heads), T tokens, K key width, V value width.
S_NVK is the memory, P_NVK its momentum ("surprise" of Titans, arXiv 2501.00663, eq. 10).
"""

import torch
from torch import Tensor


def gated_delta_naive(
    q_NTK: Tensor,
    k_NTK: Tensor,
    w_NTV: Tensor,
    log_a_NT: Tensor,
    b_NT: Tensor | None,
    S_NVK: Tensor,
    log_theta_NT: Tensor | None = None,
    P_NVK: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """S_t = S_{t-1} (a_t I - b_t k_t k_t^T) + w_t k_t^T, o_t = S_t q_t (Gated DeltaNet, arXiv 2412.06464, eq. 10).

    With momentum, P_t = theta_t P_{t-1} + w_t k_t^T is added instead of w_t k_t^T.

    Args:
        q_NTK: Queries, read after the write of their own token.
        k_NTK: Keys.
        w_NTV: What is written at k.
        log_a_NT: Logarithm of the retention, at most 0.
        b_NT: Erase strength; None means 0 (gated linear attention).
        S_NVK: The state before the first token.
        log_theta_NT: Logarithm of the momentum's decay; None switches momentum off.
        P_NVK: Momentum before the first token.

    Returns:
        Reads o_NTV, final state, final momentum.
    """
    outputs = []
    for t in range(q_NTK.shape[-2]):
        k, w = k_NTK[..., t, :], w_NTV[..., t, :]
        written = w[..., :, None] * k[..., None, :]
        if log_theta_NT is not None and P_NVK is not None:
            P_NVK = log_theta_NT[..., t, None, None].exp() * P_NVK + written
            written = P_NVK
        kept = log_a_NT[..., t, None, None].exp() * S_NVK
        if b_NT is not None:
            recalled = (S_NVK @ k[..., None])[..., 0]
            kept = kept - b_NT[..., t, None, None] * recalled[..., :, None] * k[..., None, :]
        S_NVK = kept + written
        outputs.append((S_NVK @ q_NTK[..., t, :, None])[..., 0])
    return torch.stack(outputs, -2), S_NVK, P_NVK
