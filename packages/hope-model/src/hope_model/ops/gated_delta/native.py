"""The recurrence by the C++ kernel (`ops/native`), behind the contract of `chunk.py`.

Letters: N leading dimensions, T tokens, K key width, V value width, C tokens of a chunk.
"""

import torch
from torch import Tensor

from hope_model.ops.native.function import Kernel

KERNEL = Kernel(
    "gated_delta",
    sizes="N K V T C half",
    inputs="q[N,K,T] k[N,K,T] w[N,V,T] log_a[N,T] b[N,T] S[N,V,K]",
    outputs="o[N,V,T] S_end[N,V,K]",
    record="V K",
)


def gated_delta_native(
    q_NTK: Tensor,
    k_NTK: Tensor,
    w_NTV: Tensor,
    log_a_NT: Tensor,
    b_NT: Tensor,
    S_NVK: Tensor,
    chunk: int = 64,
    *,
    half: bool = False,
) -> tuple[Tensor, Tensor]:
    """Reads and final state: `gated_delta` without momentum; `half`: products may be rounded to bfloat16."""
    T = q_NTK.shape[-2]

    def flat(x: Tensor, last: int) -> Tensor:
        return x.reshape(-1, *x.shape[x.dim() - last :])

    tokens = [flat(x.transpose(-1, -2), 2) for x in (q_NTK, k_NTK, w_NTV)]
    gates = [flat(x, 1) for x in (log_a_NT, b_NT)]
    S, outputs = flat(S_NVK, 2), []
    N, V, K = S.shape
    whole = T // chunk * chunk  # and what is left, a shorter chunk
    lengths = [n for n in (whole, T - whole) if n]
    for q, k, w, log_a, b in zip(*(torch.split(x, lengths, -1) for x in (*tokens, *gates)), strict=True):
        sizes = {"N": N, "K": K, "V": V, "T": q.shape[-1], "C": min(chunk, q.shape[-1]), "half": half}
        o, S = KERNEL(sizes, q=q, k=k, w=w, log_a=log_a, b=b, S=S)
        outputs.append(o)
    o_NVT = (outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)).view(
        *w_NTV.shape[:-2], w_NTV.shape[-1], T
    )
    return o_NVT.transpose(-1, -2), S.view(S_NVK.shape)
