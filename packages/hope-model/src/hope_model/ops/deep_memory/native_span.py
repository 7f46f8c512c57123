"""Whole chunks of both kinds of deep memory by their kernels (C++: `ops/native`, Triton: `ops/triton`), many a call.

Letters: N batch and heads, H heads, R memories, d head width, m hidden width, T tokens, C tokens of a chunk. First
weights are one copy for the batch: sequence n has those of head n modulo H.
"""

import torch
from torch import Tensor

from hope_model.observe import note
from hope_model.ops.activations import NEGATIVE_SLOPES
from hope_model.ops.deep_memory.types import BANK, FastWeights, Gates, MemoryState, Readout, Rules
from hope_model.ops.native.function import Kernel

TITANS = Kernel(
    "titans",
    sizes="N H d m T C half",
    numbers="slope",
    inputs="q[N,d,T] k[N,d,T] v[N,d,T] log_a[N,T] log_theta[N,T] output[N,T] eta[N,T] "
    "S2[N,m,d] S1[N,d,m] P2[N,m,d] P1[N,d,m] O2[H,m,d] O1[H,d,m]",
    outputs="o[N,d,T] S2_end[N,m,d] S1_end[N,d,m] P2_end[N,m,d] P1_end[N,d,m]",
    shared="O2 O1",
    record="d m C",
)
SELF_MODIFYING = Kernel(
    "self_modifying",
    sizes="N H R F d m T C own half",
    numbers="eta_max slope",
    # F: memories that project, where they are not those that are written; scale and share: factors [H, R] of eta and b.
    inputs="x[N,d,T] q[N,d,T] output[N,T] W2[N,R,m,d] W1[N,R,d,m] O2[H,R,m,d] O1[H,R,d,m] "
    "F2[N,F,m,d]? F1[N,F,d,m]? readers[H,2,d] bias[H,2] scale[H,R] share[H,R]",
    outputs="o[N,d,T] W2_end[N,R,m,d] W1_end[N,R,d,m] eta[N,T] alpha[N,T]",
    seen="eta alpha",
    shared="O2 O1 readers bias scale share",
    record="R d m C",
)


def _flat(x: Tensor | None, last: int) -> Tensor:
    if x is None:
        raise TypeError("a gate that this rule needs is missing")
    return x.reshape(-1, *x.shape[x.dim() - last :])


def _like(weights: tuple[Tensor, ...], like: FastWeights) -> FastWeights:
    return FastWeights(*(x.view(W.shape) for x, W in zip(weights, like, strict=True)))


def _after(
    now: FastWeights, momentum: FastWeights | None, T: int, state: MemoryState, rules: Rules
) -> MemoryState:
    position = state.position + T
    return MemoryState(now, state.start if position % rules.chunk else now, momentum, position)


def titans_span(
    kernel: Kernel,
    q_NdT: Tensor,
    k_NdT: Tensor,
    v_NdT: Tensor,
    gates: Gates,
    state: MemoryState,
    rules: Rules,
    origin: FastWeights | None,
) -> tuple[Tensor, MemoryState]:
    """`written_span`: tokens that begin with a chunk, whole chunks or a part of one; momentum and origin are needed."""
    assert state.momentum is not None  # noqa: S101
    assert origin is not None  # noqa: S101
    q, k, v = (_flat(x, 2) for x in (q_NdT, k_NdT, v_NdT))
    S2, S1, P2, P1, O2, O1 = (_flat(W, 2) for W in (*state.now, *state.momentum, *origin))
    (N, m, d), T = S2.shape, q.shape[-1]
    o, S2, S1, P2, P1 = kernel(
        {"N": N, "H": len(O2), "d": d, "m": m, "T": T, "C": min(rules.chunk, T)}
        | {"half": rules.half, "slope": NEGATIVE_SLOPES[rules.activation]},
        q=q, k=k, v=v, log_a=_flat(gates.log_a_NT, 1), log_theta=_flat(gates.log_theta_NT, 1),
        output=_flat(gates.output_NRT, 1), eta=_flat(gates.eta_NRT, 1), S2=S2, S1=S1, P2=P2, P1=P1, O2=O2, O1=O1,
    )  # fmt: skip
    now, momentum = (_like(weights, state.now) for weights in ((S2, S1), (P2, P1)))
    return o.view(q_NdT.shape), _after(now, momentum, T, state, rules)


def self_modifying_span(
    kernel: Kernel,
    x_NdT: Tensor,
    q_NdT: Tensor,
    gates: Gates,
    readout: Readout,
    state: MemoryState,
    rules: Rules,
    fixed: FastWeights | None,
    origin: FastWeights,
) -> tuple[Tensor, MemoryState]:
    """Many of chunk.py's `_written_chunk`: tokens that begin with a chunk, whole chunks or a part of one."""
    W2, W1 = (_flat(W, 3) for W in state.now)
    (N, R, m, d), T, H = W2.shape, x_NdT.shape[-1], len(readout.eta_Hd)

    def of_heads(factors_HR: Tensor | None) -> Tensor:
        if factors_HR is None:
            return W2.new_ones(H, R)
        return factors_HR if factors_HR.shape[-1] == R else factors_HR[..., -R:]

    F2, F1 = (None, None) if fixed is None else (_flat(W, 3) for W in fixed)
    sizes = {"N": N, "H": H, "R": R, "F": R if F2 is None else F2.shape[1], "d": d, "m": m, "T": T}
    if sizes["F"] < len(BANK) - 1:
        raise ValueError(f"self_modifying: {sizes['F']} memories project; {len(BANK) - 1} must")
    o, W2, W1, eta, alpha = kernel(
        sizes | {"C": min(rules.chunk, T), "own": F2 is None, "half": rules.half, "eta_max": rules.eta_max}
        | {"slope": NEGATIVE_SLOPES[rules.activation]},
        x=_flat(x_NdT, 2), q=_flat(q_NdT, 2), output=_flat(gates.output_NRT, 1), W2=W2, W1=W1,
        O2=origin.W2_NRmd, O1=origin.W1_NRdm, F2=F2, F1=F1,
        readers=torch.stack((readout.eta_Hd, readout.alpha_Hd), 1),
        bias=torch.stack((readout.eta_bias_H, readout.alpha_bias_H), 1),
        scale=of_heads(readout.eta_scale_HR),
        share=of_heads(readout.output_share_HR),
    )  # fmt: skip
    note("eta", eta)
    note("alpha", alpha)
    return o.view(x_NdT.shape), _after(_like((W2, W1), state.now), None, T, state, rules)
