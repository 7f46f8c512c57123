"""Deep memories as one time loop, the equations of the README beside it.

Letters: N leading dimensions (batch, heads), R memories, d head width, m hidden width, T tokens.
"""

import torch
from torch import Tensor

from hope_model.ops.activations import ACTIVATIONS, l2norm, shrink_factor, soft_clip
from hope_model.ops.deep_memory.types import FastWeights, Gates, MemoryState, Readout, Rules


def _mlp(weights: FastWeights, x_NRd: Tensor, rules: Rules) -> tuple[Tensor, Tensor, Tensor]:
    """M(x), hidden activation and its slope, of every memory."""
    phi, slope = ACTIVATIONS[rules.activation]((weights.W2_NRmd @ x_NRd[..., None])[..., 0])
    if rules.stable:
        s = shrink_factor(phi, -1)
        phi, slope = phi * s, slope * s
    return x_NRd + (weights.W1_NRdm @ phi[..., None])[..., 0], phi, slope


def _write_token(
    state: MemoryState,
    k_Nd: Tensor,
    target_NRd: Tensor,
    gates_t: Gates,
    rules: Rules,
    origin: FastWeights | None,
) -> tuple[FastWeights, FastWeights | None]:
    """One gated delta write of every memory; the error is taken at the chunk's start (eq. 90)."""
    with torch.set_grad_enabled(rules.through_writes and torch.is_grad_enabled()):
        now, momentum = _written(state, k_Nd, target_NRd, gates_t, rules, origin)
    if rules.through_writes:
        return now, momentum
    # What is written is a constant, but what is kept of the weights that were there is not.
    assert gates_t.log_a_NT is not None  # noqa: S101
    keep = gates_t.log_a_NT.detach().exp()[..., None, None, None]
    kept = [keep * (W - W.detach()) for W in state.now]
    if origin is not None:
        kept = [k + (1 - keep) * (W0 - W0.detach()) for k, W0 in zip(kept, origin, strict=True)]
    return FastWeights(*(W + k for W, k in zip(now, kept, strict=True))), momentum


def _written(
    state: MemoryState,
    k_Nd: Tensor,
    target_NRd: Tensor,
    gates_t: Gates,
    rules: Rules,
    origin: FastWeights | None,
) -> tuple[FastWeights, FastWeights | None]:
    assert gates_t.log_a_NT is not None  # noqa: S101
    assert gates_t.eta_NRT is not None  # noqa: S101
    k_NRd = k_Nd[..., None, :].expand_as(target_NRd)
    y, a, slope = _mlp(state.start, k_NRd, rules)
    error = y - target_NRd
    eta = gates_t.eta_NRT[..., None]
    back = (state.start.W1_NRdm.transpose(-1, -2) @ error[..., None])[..., 0] * slope
    clip = 1.0 if rules.stable else rules.clip
    write2 = -eta * (soft_clip(back, -1, clip) if clip else back)
    keep = gates_t.log_a_NT.exp()[..., None, None, None]
    erase2: Tensor | float = 0.0
    if gates_t.erase_NT is not None and rules.erase != "none":
        erase2 = gates_t.erase_NT[..., None, None, None] * (1.0 if rules.tied_gates else keep)
    if rules.stable:
        assert gates_t.output_NRT is not None  # noqa: S101
        erase1: Tensor | float = keep * gates_t.output_NRT[..., None, None]
        write1 = keep[..., 0] * gates_t.output_NRT[..., None] * (target_NRd - k_NRd)
    else:
        erase1, write1 = (
            erase2 if rules.erase == "both" else 0.0,
            -eta * (soft_clip(error, -1, clip) if clip else error),
        )
    momentum = None
    added = FastWeights(write2[..., :, None] * k_NRd[..., None, :], write1[..., :, None] * a[..., None, :])
    if gates_t.log_theta_NT is not None and state.momentum is not None:
        theta = gates_t.log_theta_NT.exp()[..., None, None, None]
        added = FastWeights(
            *(
                theta * P + (1.0 if rules.momentum_sum else 1 - theta) * w
                for P, w in zip(state.momentum, added, strict=True)
            )
        )
        momentum = added

    zero2, zero1 = origin or (torch.zeros_like(W) for W in state.now)
    D2, D1 = state.now.W2_NRmd - zero2, state.now.W1_NRdm - zero1

    def delta(D: Tensor, erase: Tensor | float, recalled: Tensor, key: Tensor, write: Tensor) -> Tensor:
        return keep * D - erase * recalled[..., :, None] @ key[..., None, :] + write

    # The output layer corrects all that it recalls, the hidden layer forgets only what was written.
    now = FastWeights(
        zero2 + delta(D2, erase2, (D2 @ k_NRd[..., None])[..., 0], k_NRd, added.W2_NRmd),
        zero1 + delta(D1, erase1, (state.now.W1_NRdm @ a[..., None])[..., 0], a, added.W1_NRdm),
    )
    return now, momentum


def _read_token(before: MemoryState, now: FastWeights, q_Nd: Tensor, rules: Rules) -> Tensor:
    weights = {"after": now, "before": before.now, "chunk": before.start}[rules.read]
    last = FastWeights(*(W[..., -1:, :, :] for W in weights))
    return _mlp(last, q_Nd[..., None, :], rules)[0][..., 0, :]


def _advance(state: MemoryState, now: FastWeights, momentum: FastWeights | None, rules: Rules) -> MemoryState:
    position, bank_chunk = state.position + 1, rules.bank_chunk or rules.chunk
    bank = now if position % bank_chunk == 0 else state.start
    last = now if position % rules.chunk == 0 else state.start
    start = (torch.cat((W[..., :-1, :, :], V[..., -1:, :, :]), -3) for W, V in zip(bank, last, strict=True))
    return MemoryState(now, FastWeights(*start), momentum, position)


def titans_memory_naive(
    q_NTd: Tensor,
    k_NTd: Tensor,
    v_NTd: Tensor,
    gates: Gates,
    state: MemoryState,
    rules: Rules,
    origin: FastWeights | None = None,
) -> tuple[Tensor, MemoryState]:
    """Titans' memory (arXiv 2501.00663, eq. 9-14): q, k and v given; only the memory is written.

    `origin`: the weights that retention pulls to, one copy for the batch [H, 1, ...]; None: zero.
    """
    outputs = []
    for t in range(q_NTd.shape[-2]):
        gates_t = Gates(*(None if g is None else g[..., t] for g in gates))
        target = v_NTd[..., t, None, :]
        now, momentum = _write_token(state, k_NTd[..., t, :], target, gates_t, rules, origin)
        outputs.append(_read_token(state, now, q_NTd[..., t, :], rules))
        state = _advance(state, now, momentum, rules)
    return torch.stack(outputs, -2), state


def self_modifying_naive(
    x_NTd: Tensor,
    q_NTd: Tensor,
    gates: Gates,
    readout: Readout,
    state: MemoryState,
    rules: Rules,
    fixed: FastWeights | None = None,
    origin: FastWeights | None = None,
) -> tuple[Tensor, MemoryState]:
    """Self-modifying Titans (eq. 83-93): the memories make k, v, eta, alpha and their own targets.

    Args:
        x_NTd: Normalised input of the memories that project.
        q_NTd: Normalised queries.
        gates: `erase_NT`, `output_NRT` and `log_theta_NT`; eta and alpha come from memories.
        readout: How the scalars are read.
        state: Five memories (k, v, eta, alpha, memory), or one where `fixed` holds the other four.
        rules: The named choices.
        fixed: Projecting memories that are never written (self-modifier off).
        origin: The weights that retention pulls to, one copy for the batch [H, R, ...]; None: zero.
    """
    outputs = []
    for t in range(x_NTd.shape[-2]):
        projecting = state.start if fixed is None else fixed
        projecting = FastWeights(*(W[..., :4, :, :] for W in projecting))
        y = _mlp(projecting, x_NTd[..., t, None, :].expand(*x_NTd.shape[:-2], 4, -1), rules)[0]
        k, v = l2norm(y[..., 0, :], -1), y[..., 1, :]
        if rules.unit_values:
            v = l2norm(v, -1)
        eta = ((y[..., 2, :] * readout.eta_Hd).sum(-1) + readout.eta_bias_H).sigmoid()
        eta_N, R = rules.eta_max * eta, state.start.W2_NRmd.shape[-3]
        scale_HR = 1.0 if readout.eta_scale_HR is None else readout.eta_scale_HR[..., -R:]
        eta_NR = eta_N[..., None] * scale_HR * eta.new_ones(R)
        log_a = torch.nn.functional.logsigmoid(
            (y[..., 3, :] * readout.alpha_Hd).sum(-1) + readout.alpha_bias_H
        )
        target = _mlp(state.start, v[..., None, :].expand(*v.shape[:-1], R, -1), rules)[0]
        if rules.stable and rules.unit_values:
            target = l2norm(target, -1)
        erase, output, log_theta = (
            None if g is None else g[..., t] for g in (gates.erase_NT, gates.output_NRT, gates.log_theta_NT)
        )
        if output is not None and readout.output_share_HR is not None:
            output = output * readout.output_share_HR[..., -R:]
        gates_t = Gates(log_a, eta_N if rules.tied_gates else erase, output, eta_NR, log_theta)
        now, momentum = _write_token(state, k, target, gates_t, rules, origin)
        outputs.append(_read_token(state, now, q_NTd[..., t, :], rules))
        state = _advance(state, now, momentum, rules)
    return torch.stack(outputs, -2), state
