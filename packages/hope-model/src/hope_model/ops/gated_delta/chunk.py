"""The gated delta rule, a chunk of C tokens at a time; derivation in this folder's README.

Letters: N any leading dimensions, T tokens, C tokens of one chunk, K key width, V value width, n chunks.
Inside a chunk tokens are the LAST dimension (k_NKC): a state multiplies from the left, as in the papers,
and stacked memories are a free view of stacked rows. Pairs of tokens are [i, t]: source i, then time t >= i.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Decays(NamedTuple):
    """Products of retentions inside one chunk, each the exponential of a difference of log sums."""

    gamma_NC: Tensor  # a_1 ... a_t
    before_NC: Tensor  # a_1 ... a_{t-1}
    within_NCC: Tensor  # a_{i+1} ... a_t for i <= t, else 0
    between_NCC: Tensor  # a_{i+1} ... a_{t-1} for i < t, else 0


class Momentum(NamedTuple):
    """What the momentum P adds inside one chunk: the product of both decay matrices, of a and of theta."""

    P_NVK: Tensor
    start_NC: Tensor  # share of P_0 in S_t
    start_before_NC: Tensor  # share of P_0 in S_{t-1}
    written_NCC: Tensor  # share of w_i k_i^T in S_t
    written_before_NCC: Tensor  # share of w_i k_i^T in S_{t-1}
    theta: Decays


def chunk_decays(log_a_NC: Tensor) -> Decays:
    """All decays of a chunk in log space, so that a = 1 and a = 1e-6 are both exact enough."""
    C = log_a_NC.shape[-1]
    sum_NC = log_a_NC.cumsum(-1)
    before_NC = sum_NC - log_a_NC
    source_NC1 = sum_NC[..., :, None]
    later = torch.ones(C, C, dtype=torch.bool, device=log_a_NC.device).triu()
    # Masked before the exponential: the other triangle would overflow and poison gradients.
    within_NCC = (sum_NC[..., None, :] - source_NC1).masked_fill(~later, -torch.inf).exp()
    between_NCC = (before_NC[..., None, :] - source_NC1).masked_fill(~later.triu(1), -torch.inf).exp()
    return Decays(sum_NC.exp(), before_NC.exp(), within_NCC, between_NCC)


def chunk_momentum(decays: Decays, log_theta_NC: Tensor, P_NVK: Tensor) -> Momentum:
    """Share of what is written at i in S_t: c_it = sum over i <= j <= t of theta_{i+1..j} a_{j+1..t}."""
    theta = chunk_decays(log_theta_NC)
    written_NCC = theta.within_NCC @ decays.within_NCC
    start_NC = (theta.gamma_NC[..., None, :] @ decays.within_NCC)[..., 0, :]
    return Momentum(
        P_NVK,
        start_NC,
        F.pad(start_NC, (1, 0))[..., :-1],
        written_NCC,
        F.pad(written_NCC, (1, 0))[..., :-1],
        theta,
    )


class Writes(NamedTuple):
    """Columns u_t such that S_t = gamma_t S_0 + sum over i <= t of the decayed u_i k_i^T."""

    u_NVC: Tensor
    w_NVC: Tensor | None = None  # with momentum: what is written decays by c, what is erased (u) by gamma


def chunk_writes(
    S_NVK: Tensor,
    k_NKC: Tensor,
    w_NVC: Tensor,
    b_NC: Tensor | None,
    decays: Decays,
    momentum: Momentum | None = None,
    recalled_NVC: Tensor | None = None,
    held_NVC: Tensor | None = None,
) -> Writes:
    """Solve (I + L) U = W - diag(b gamma_{t-1}) K S_0^T of one chunk, transposed (README beside this file).

    Args:
        S_NVK: State before the chunk.
        k_NKC: Keys.
        w_NVC: What is written.
        b_NC: Erase strengths; None means 0: nothing to solve.
        decays: Of this chunk.
        momentum: Of this chunk; None for none.
        recalled_NVC: S_0 k where the caller has it already.
        held_NVC: O k of a part O beside S that does not decay and is erased with it.
    """
    if b_NC is None:
        return Writes(w_NVC) if momentum is None else Writes(torch.zeros_like(w_NVC), w_NVC)
    gram_NCC = k_NKC.transpose(-1, -2) @ k_NKC
    b_N1C = b_NC[..., None, :]
    if recalled_NVC is None:
        recalled_NVC = S_NVK @ k_NKC
    erased_NVC = recalled_NVC * (b_N1C * decays.before_NC[..., None, :])
    if held_NVC is not None:
        erased_NVC = erased_NVC + held_NVC * b_N1C
    if momentum is not None:
        erased_NVC = erased_NVC + (momentum.P_NVK @ k_NKC) * (b_N1C * momentum.start_before_NC[..., None, :])
        erased_NVC = erased_NVC + w_NVC @ (gram_NCC * momentum.written_before_NCC * b_N1C)
    right_NVC = -erased_NVC if momentum is not None else w_NVC - erased_NVC
    L_NCC = gram_NCC * decays.between_NCC * b_N1C
    u_NVC = torch.linalg.solve_triangular(L_NCC, right_NVC, upper=True, left=False, unitriangular=True)
    return Writes(u_NVC) if momentum is None else Writes(u_NVC, w_NVC)


def chunk_state(
    S_NVK: Tensor, k_NKC: Tensor, writes: Writes, decays: Decays, momentum: Momentum | None = None
) -> tuple[Tensor, Tensor | None]:
    """State and momentum after the chunk."""
    k_NCK = k_NKC.transpose(-1, -2)
    sent_NVC = writes.u_NVC * decays.within_NCC[..., None, :, -1]
    kept_NVK = decays.gamma_NC[..., -1, None, None] * S_NVK
    if momentum is None or writes.w_NVC is None:
        return kept_NVK + sent_NVC @ k_NCK, None
    sent_NVC = sent_NVC + writes.w_NVC * momentum.written_NCC[..., None, :, -1]
    kept_NVK = kept_NVK + momentum.start_NC[..., -1, None, None] * momentum.P_NVK
    pushed_NVC = writes.w_NVC * momentum.theta.within_NCC[..., None, :, -1]
    P_NVK = momentum.theta.gamma_NC[..., -1, None, None] * momentum.P_NVK + pushed_NVC @ k_NCK
    return kept_NVK + sent_NVC @ k_NCK, P_NVK


def chunk_read(
    S_NVK: Tensor,
    k_NKC: Tensor,
    writes: Writes,
    q_NKC: Tensor,
    decays: Decays,
    momentum: Momentum | None = None,
    *,
    before: bool = False,
) -> Tensor:
    """o_t = S_t q_t for every token of the chunk: a token sees its own write and all before it.

    `before`: o_t = S_{t-1} q_t, without its own.
    """
    match_NCC = k_NKC.transpose(-1, -2) @ q_NKC
    gamma_NC = decays.before_NC if before else decays.gamma_NC
    reach_NCC = decays.between_NCC if before else decays.within_NCC
    o_NVC = (S_NVK @ q_NKC) * gamma_NC[..., None, :] + writes.u_NVC @ (match_NCC * reach_NCC)
    if momentum is None or writes.w_NVC is None:
        return o_NVC
    start_NC = momentum.start_before_NC if before else momentum.start_NC
    written_NCC = momentum.written_before_NCC if before else momentum.written_NCC
    o_NVC = o_NVC + (momentum.P_NVK @ q_NKC) * start_NC[..., None, :]
    return o_NVC + writes.w_NVC @ (match_NCC * written_NCC)


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
) -> tuple[Tensor, Tensor, Tensor | None]:
    """`gated_delta_naive`, `chunk` tokens at a time: same arguments, same results, any chunk length."""
    # `split` and not slices: the backward of a slice fills a tensor of the whole length for every chunk.
    tokens = [torch.split(x.transpose(-1, -2), chunk, -1) for x in (q_NTK, k_NTK, w_NTV)]
    gates = [
        [None] * len(tokens[0]) if g is None else torch.split(g, chunk, -1)
        for g in (log_a_NT, b_NT, log_theta_NT)
    ]
    outputs = []
    for q_NKC, k_NKC, w_NVC, log_a_NC, b_NC, log_theta_NC in zip(*tokens, *gates, strict=True):
        decays = chunk_decays(log_a_NC)
        momentum = None
        if log_theta_NC is not None and P_NVK is not None:
            momentum = chunk_momentum(decays, log_theta_NC, P_NVK)
        writes = chunk_writes(S_NVK, k_NKC, w_NVC, b_NC, decays, momentum)
        outputs.append(chunk_read(S_NVK, k_NKC, writes, q_NKC, decays, momentum).transpose(-1, -2))
        S_NVK, P_NVK = chunk_state(S_NVK, k_NKC, writes, decays, momentum)
    return torch.cat(outputs, -2), S_NVK, P_NVK
