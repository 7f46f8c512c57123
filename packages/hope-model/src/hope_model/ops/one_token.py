"""One token of every sequence, without history, by `triton/jit/step.py`; here no Triton is needed.

Letters: B sequences, H heads, R memories, d head width, m hidden width, D width, h hidden width of a level.
"""

import torch
from torch import Tensor

from hope_model.observe import note
from hope_model.ops.activations import NEGATIVE_SLOPES
from hope_model.ops.cms import LevelWeights
from hope_model.ops.deep_memory.types import FastWeights, MemoryState, Rules
from hope_model.ops.triton.launch import available, start

WIDTHS = (16, 32, 64, 128)  # of heads and hidden layers: a program holds whole matrices
ROWS, COLUMNS = 16, 256  # of a CMS matrix, that a program multiplies at once
STATES = {torch.float32, torch.float64}


def applies(x_BTD: Tensor, *others: Tensor) -> bool:
    """Whether these kernels may take a call: one token, no history, a device for Triton."""
    return x_BTD.shape[1] == 1 and not torch.is_grad_enabled() and available(x_BTD, *others)


def memory_applies(x_BTD: Tensor, rules: Rules, state: MemoryState, *, origin: bool) -> bool:
    """Whether a memory of these rules is written and read by these kernels."""
    known = rules.stable and rules.activation in NEGATIVE_SLOPES and rules.read == "after"
    known = known and origin and not (rules.tied_gates or rules.momentum_sum or rules.bank_chunk)
    m, d = state.now.W2_NRmd.shape[-2:]
    return (
        known and {m, d} <= set(WIDTHS) and state.now.W2_NRmd.dtype in STATES and applies(x_BTD, *state.now)
    )


def convolution(x_B1D: Tensor, tail_BJD: Tensor, weight_JD: Tensor) -> tuple[Tensor, Tensor]:
    """`CausalConv` of one token."""
    (B, _, D), J = x_B1D.shape, len(weight_JD)
    y, after = torch.empty_like(x_B1D), tail_BJD.new_empty(B, J - 1, D, dtype=x_B1D.dtype)
    given = [x_B1D.contiguous(), tail_BJD.contiguous(), weight_JD, y, after]
    start("step_convolution", given, [B * -(-D // COLUMNS), D], [], {"J": J, "B": COLUMNS})
    return y, after


def self_modifying(
    x_B1D: Tensor,
    q_B1D: Tensor,
    output_B1H: Tensor,
    gate_B1D: Tensor,
    parameters: tuple[Tensor, ...],
    norm_d: Tensor,
    state: MemoryState,
    origin: FastWeights,
    rules: Rules,
) -> tuple[Tensor, MemoryState]:
    """Normed and gated reads [B, 1, D] of self-modifying Titans, and the state after the token.

    Args:
        x_B1D: The layer's input behind its convolution.
        q_B1D: Queries, not yet of norm 1.
        output_B1H: Strengths before their sigmoid.
        gate_B1D: Of the output, before its silu.
        parameters: eta's reader [H, d], its bias [H], its factors [H, R] before their sigmoid; alpha's reader and bias;
            shares [H, R - 1] before theirs.
        norm_d: Weight of the heads' norm.
        state: Before the token.
        origin: First weights.
        rules: Of the memory.
    """
    y, new = (
        torch.empty_like(gate_B1D),
        [torch.empty_like(W, memory_format=torch.contiguous_format) for W in state.now],
    )
    W2 = new[0]
    B, H, R, m, d = W2.shape
    eta, alpha = W2.new_empty(B, H, 1), W2.new_empty(B, H, 1)
    (W2_now, W1_now), at_start = state.now, state.start
    given = [W2_now, x_B1D, q_B1D, output_B1H, gate_B1D, W1_now, *at_start, *origin, *parameters, norm_d]
    start(
        "step_self_modifying",
        [*(x.contiguous() for x in given), y, *new, eta, alpha],
        [B * H, H],
        [rules.eta_max, NEGATIVE_SLOPES[rules.activation]],
        {"R": R, "D": d, "M": m},
    )
    note("eta", eta)
    note("alpha", alpha)
    return y, _after(FastWeights(*new), None, state, rules)


def deltanet(
    qkv_B1E: Tensor,
    retention_B1H: Tensor,
    bias_H: Tensor,
    beta_B1H: Tensor,
    gate_B1D: Tensor,
    norm_d: Tensor,
    S_BHdd: Tensor,
) -> tuple[Tensor, Tensor]:
    """Normed and gated reads [B, 1, D] of a gated DeltaNet, and its memory after the token.

    Args:
        qkv_B1E: Projections behind their convolution [B, 1, 3 D], before their silu.
        retention_B1H: Of alpha, without its bias.
        bias_H: That bias.
        beta_B1H: Strength before its sigmoid.
        gate_B1D: Of the output, before its silu.
        norm_d: Weight of the heads' norm.
        S_BHdd: Before the token.
    """
    y, new = torch.empty_like(gate_B1D), torch.empty_like(S_BHdd, memory_format=torch.contiguous_format)
    B, H, d, _ = S_BHdd.shape
    alpha = new.new_empty(B, H, 1)
    given = (S_BHdd, qkv_B1E, retention_B1H, bias_H, beta_B1H, gate_B1D, norm_d)
    start("step_deltanet", [*(x.contiguous() for x in given), y, new, alpha], [B * H, H], [], {"D": d})
    note("alpha", alpha)
    return y, new


def titans(
    qkv_B1E: Tensor,
    retention_B1H: Tensor,
    bias_H: Tensor,
    raw_B1G: Tensor,
    gate_B1D: Tensor,
    norm_d: Tensor,
    state: MemoryState,
    origin: FastWeights,
    rules: Rules,
) -> tuple[Tensor, MemoryState]:
    """Normed and gated reads [B, 1, D] of Titans' memory, and the state after the token.

    Args:
        qkv_B1E: Projections behind their convolution [B, 1, 3 D], before their silu.
        retention_B1H: Of alpha, without its bias.
        bias_H: That bias.
        raw_B1G: eta, output strength and theta [B, 1, 3 H] before their sigmoids.
        gate_B1D: Of the output, before its silu.
        norm_d: Weight of the heads' norm.
        state: Before the token, with momentum.
        origin: First weights.
        rules: Of the memory.
    """
    assert state.momentum is not None  # noqa: S101
    both = (*state.now, *state.momentum)
    y, new = (
        torch.empty_like(gate_B1D),
        [torch.empty_like(W, memory_format=torch.contiguous_format) for W in both],
    )
    W2 = new[0]
    B, H, _, m, d = W2.shape
    eta, alpha = W2.new_empty(B, H, 1), W2.new_empty(B, H, 1)
    given = [state.now.W2_NRmd, qkv_B1E, retention_B1H, bias_H, raw_B1G, gate_B1D, state.now.W1_NRdm]
    given += [*state.start, *state.momentum, *origin, norm_d]
    start(
        "step_titans",
        [*(x.contiguous() for x in given), y, *new, eta, alpha],
        [B * H, H],
        [rules.eta_max, NEGATIVE_SLOPES[rules.activation]],
        {"D": d, "M": m, "UNIT": int(rules.unit_values)},
    )
    note("eta", eta)
    note("alpha", alpha)
    return y, _after(FastWeights(*new[:2]), FastWeights(*new[2:]), state, rules)


def _after(now: FastWeights, momentum: FastWeights | None, state: MemoryState, rules: Rules) -> MemoryState:
    position = state.position + 1
    return MemoryState(now, state.start if position % rules.chunk else now, momentum, position)


def cms_chain(
    x_B1D: Tensor, levels: list[tuple[LevelWeights, LevelWeights | None]]
) -> tuple[Tensor, list[Tensor]]:
    """What a chain of residual levels adds to x [B, 1, D], and every level's input; two launches a level.

    Args:
        x_B1D: The first level's input.
        levels: Slow weights and fast delta of each.
    """
    (B, _, D), inputs = x_B1D.shape, [x_B1D.contiguous()]
    precise = torch.promote_types(x_B1D.dtype, torch.float32)
    for n, (theta, delta) in enumerate(levels):
        h, u, last = len(theta.up), inputs[-1], n + 1 == len(levels)
        phi, to = u.new_empty(B, h, dtype=precise), torch.empty_like(u)
        up, down = (x.contiguous() for x in delta or theta)
        constants = {"DELTAS": int(delta is not None), "I": ROWS, "K": COLUMNS}
        start("step_cms_up", [phi, u, theta.up, up], [B * -(-h // ROWS), h, D], [], constants)
        constants = {"DELTAS": int(delta is not None), "LAST": int(last), "I": ROWS, "K": COLUMNS}
        start(
            "step_cms_down",
            [phi, u, theta.down, down, inputs[0], to],
            [B * -(-D // ROWS), D, h],
            [],
            constants,
        )
        inputs.append(to)
    return inputs.pop(), inputs
