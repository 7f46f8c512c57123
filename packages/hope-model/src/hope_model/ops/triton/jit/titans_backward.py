"""Titans' memory, backward: weights were kept before every so many chunks; those between are redone, then walked back.

The mathematics of `ops/native/titans.cpp`; g_x is the gradient at x. What a chunk's area (`titans_forward.py`) holds is
not made anew; gradients of a chunk have an area of their own.
"""

import triton
import triton.language as tl

from hope_model.ops.triton.jit.tiles import (
    HEAD,
    SQUARES,
    add,
    add_row,
    clipped_back,
    decays_back,
    exact,
    get,
    get_tokens,
    mm,
    put,
    put_gate,
    put_row,
    put_tokens,
    row,
    scalar,
    shrunk_back,
    square,
    tile,
)
from hope_model.ops.triton.jit.titans_forward import (
    A_K,
    AIM,
    BEFORE,
    BETWEEN,
    END_U,
    END_W,
    ERROR,
    ETA,
    FADE,
    FADE_GAMMA,
    GAMMA,
    GRAM,
    INNER,
    KEY,
    OUTPUT,
    PUSH,
    R_K,
    S_K,
    SHARE,
    SOLVED,
    START,
    START_BEFORE,
    STRENGTH,
    THETA,
    TILES,
    WITHIN,
    WRITTEN,
    WRITTEN_BEFORE,
    A,
    U,
    advance1,
    advance2,
    copy,
    write_and_look,
    written1,
)
from hope_model.ops.triton.jit.titans_reads_back import (
    G_A_K,
    G_KEY,
    G_O,
    G_READ,
    G_S,
    G_U,
    G_W1,
    G_W2,
    end_back1,
    end_back1_keys,
    end_back2,
    end_back2_keys,
    kept_back1,
    kept_back2,
    read_back1,
    read_back2,
    recalled_back1,
)


@triton.jit(noinline=True)
def begin_back(G, G_READS, n, t, T, D: tl.constexpr, C: tl.constexpr, B: tl.constexpr, L: tl.constexpr):
    """The reads' gradient; zeros where steps add."""
    put(tile(G, G_O, L, B), get_tokens(G_READS, n, t, T, D, C, B), D, B)
    zeros = tl.zeros((B, B), tl.float32)
    put(square(G, BETWEEN, B), zeros, B, B)
    put(square(G, WITHIN, B), zeros, B, B)
    put(square(G, WRITTEN, B), zeros, B, B)
    zero = tl.zeros((B,), tl.float32)
    put_row(row(G, GAMMA, B), zero, B)
    put_row(row(G, START, B), zero, B)
    put_row(row(G, FADE_GAMMA, B), zero, B)
    put_row(row(G, END_U, B), zero, B)
    put_row(row(G, END_W, B), zero, B)
    put_row(row(G, PUSH, B), zero, B)


@triton.jit(noinline=True)
def solve_back(X, G, D: tl.constexpr, M: tl.constexpr, B: tl.constexpr, L: tl.constexpr, P: tl.constexpr):
    """The output layer's triangular system, backwards: u becomes right, and G's GRAM that at the keys' products."""
    c, gram = scalar(X, STRENGTH, B), get(square(X, GRAM, B), B, B)
    between, reached = get(square(X, BETWEEN, B), B, B), get(square(X, WRITTEN_BEFORE, B), B, B)
    g_right = mm(get(tile(G, G_U, L, B), D, B), tl.trans(get(square(X, SOLVED, B), B, B)), P)
    tl.debug_barrier()
    put(tile(G, G_U, L, B), g_right, D, B)
    # u = right solved, right = -(c held + w1 M_1): these are minus the gradients at M_0 and M_1.
    g_M0 = mm(tl.trans(get(tile(X, U, L, B), D, B)), g_right, P)
    g_M1 = mm(tl.trans(written1(X, D, B, L)), g_right, P)
    add(square(G, BETWEEN, B), -g_M0 * gram * c[None, :], B, B)
    put(square(G, WRITTEN_BEFORE, B), -g_M1 * gram * c[None, :], B, B)
    g_product = -(g_M0 * between + g_M1 * reached)
    put_row(row(G, STRENGTH, B), tl.sum(gram * g_product, 0), B)
    put(square(G, GRAM, B), g_product * c[None, :], B, B)


@triton.jit(noinline=True)
def gram_back(X, G, D: tl.constexpr, M: tl.constexpr, B: tl.constexpr, L: tl.constexpr, P: tl.constexpr):
    """The rest of it: to hidden keys and what is written."""
    g_gram = get(square(G, GRAM, B), B, B)
    add(tile(G, G_A_K, L, B), mm(get(tile(X, A_K, L, B), M, B), g_gram + tl.trans(g_gram), P), M, B)
    M1 = get(square(X, GRAM, B), B, B) * get(square(X, WRITTEN_BEFORE, B), B, B)
    M1 *= scalar(X, STRENGTH, B)[None, :]
    add(tile(G, G_W1, L, B), -mm(get(tile(G, G_U, L, B), D, B), tl.trans(M1), P), D, B)


@triton.jit(noinline=True)
def inner_back(
    X, G, S1, GS1, slope, D: tl.constexpr, M: tl.constexpr, B: tl.constexpr, L: tl.constexpr, P: tl.constexpr
):
    """The inner gradient, backwards: g_error to G_READ, and what of it falls to S1."""
    share, eta = scalar(X, SHARE, B), scalar(X, ETA, B)
    a_k, s_k, r_k = get(tile(X, A_K, L, B), M, B), scalar(X, S_K, B), scalar(X, R_K, B)
    g_back, g_s, felt = clipped_back(
        get(tile(G, G_W2, L, B), M, B), get(tile(X, INNER, L, B), M, B), r_k, a_k, s_k, -share * eta, slope
    )
    put_row(row(G, G_S, B), g_s, B)
    put_row(row(G, SHARE, B), -eta * felt, B)
    put_row(row(G, ETA, B), -share * felt, B)
    put(tile(G, G_READ, L, B), mm(get(S1, D, M), g_back, P), D, B)
    add(GS1, mm(get(tile(X, ERROR, L, B), D, B), tl.trans(g_back), P), D, M)


@triton.jit(noinline=True)
def aim_back(X, G, G_V, n, t, T, D: tl.constexpr, C: tl.constexpr, B: tl.constexpr, L: tl.constexpr):
    """What is written to the output layer, backwards, to values and keys."""
    share, c = scalar(X, SHARE, B), scalar(X, STRENGTH, B)
    g_w, aim = get(tile(G, G_W1, L, B), D, B), get(tile(X, AIM, L, B), D, B)
    by_aim = tl.sum(g_w * aim, 0)
    add_row(row(G, STRENGTH, B), share * by_aim, B)
    add_row(row(G, SHARE, B), c * by_aim, B)
    g_aim = g_w * (share * c)[None, :] - get(tile(G, G_READ, L, B), D, B)
    put_tokens(G_V, g_aim, n, t, T, D, C, B)
    add(tile(G, G_KEY, L, B), -g_aim, D, B)


@triton.jit(noinline=True)
def recall_back(
    X, G, S, P_, O, D: tl.constexpr, M: tl.constexpr, B: tl.constexpr, L: tl.constexpr, P: tl.constexpr
):
    """What the output layer held before the chunk, backwards, to its shares."""
    c, before, start = scalar(X, STRENGTH, B), scalar(X, BEFORE, B), scalar(X, START_BEFORE, B)
    a_k, g_held = get(tile(X, A_K, L, B), M, B), -get(tile(G, G_U, L, B), D, B)
    by_S = tl.sum(g_held * mm(get(S, D, M), a_k, P), 0)
    by_P = tl.sum(g_held * mm(get(P_, D, M), a_k, P), 0)
    by_O = tl.sum(g_held * mm(get(O, D, M), a_k, P), 0)
    add_row(row(G, STRENGTH, B), before * by_S + start * by_P + (1 - before) * by_O, B)
    put_row(row(G, BEFORE, B), c * (by_S - by_O), B)
    put_row(row(G, START_BEFORE, B), c * by_P, B)


@triton.jit
def share_back(W, GW, g, a_k, D: tl.constexpr, M: tl.constexpr, P: tl.constexpr):
    """W a_k, backwards: adds the gradient at W, returns that at a_k."""
    add(GW, mm(g, tl.trans(a_k), P), D, M)
    return mm(tl.trans(get(W, D, M)), g, P)


@triton.jit(noinline=True)
def recall_back_keys(
    X, G, S, P_, O, GS, GP, GO, D: tl.constexpr, M: tl.constexpr, B: tl.constexpr, L: tl.constexpr,
    P: tl.constexpr,
):  # fmt: skip
    """The same, to weights and hidden keys; with it the error's part."""
    before, a_k = scalar(X, BEFORE, B), get(tile(X, A_K, L, B), M, B)
    g_held = -get(tile(G, G_U, L, B), D, B) * scalar(X, STRENGTH, B)[None, :]
    g_a = share_back(O, GO, g_held * (1 - before)[None, :], a_k, D, M, P)
    g_a += share_back(P_, GP, g_held * scalar(X, START_BEFORE, B)[None, :], a_k, D, M, P)
    g_a += share_back(S, GS, g_held * before[None, :] + get(tile(G, G_READ, L, B), D, B), a_k, D, M, P)
    add(tile(G, G_A_K, L, B), g_a, M, B)


@triton.jit(noinline=True)
def hidden_back(
    X, G, S2, GS2, G_K, n, t, T, slope,
    D: tl.constexpr, M: tl.constexpr, C: tl.constexpr, B: tl.constexpr, L: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Hidden keys, backwards, to W2 and the keys."""
    g_z = shrunk_back(
        get(tile(G, G_A_K, L, B), M, B),
        get(tile(X, A_K, L, B), M, B),
        scalar(X, S_K, B),
        scalar(G, G_S, B),
        slope,
    )
    add(GS2, mm(g_z, tl.trans(get(tile(X, KEY, L, B), D, B)), P), M, D)
    put_tokens(G_K, get(tile(G, G_KEY, L, B), D, B) + mm(tl.trans(get(S2, M, D)), g_z, P), n, t, T, D, C, B)


@triton.jit(noinline=True)
def reach_back(
    X, G, G_LOG_A, G_LOG_THETA, G_OUTPUT, G_ETA, at, C: tl.constexpr, B: tl.constexpr, L: tl.constexpr
):
    """All scalars, backwards."""
    a, theta, last = scalar(X, A, B), scalar(X, THETA, B), tl.arange(0, B) == C - 1
    between, fade = get(square(X, BETWEEN, B), B, B), get(square(X, FADE, B), B, B)
    before, start_before = scalar(X, BEFORE, B), scalar(X, START_BEFORE, B)
    g_gamma, g_start = scalar(G, GAMMA, B), scalar(G, START, B)
    g_within = get(square(G, WITHIN, B), B, B)
    g_within += tl.where(last[None, :], scalar(G, END_U, B)[:, None], 0.0)
    g_written = get(square(G, WRITTEN, B), B, B)
    g_written += tl.where(last[None, :], scalar(G, END_W, B)[:, None], 0.0)
    # within = between a + I, written = written_before a + fade, gamma = before a, start = start_before a + fade_gamma
    g_reached = get(square(G, WRITTEN_BEFORE, B), B, B) + g_written * a[None, :]
    g_start_before = scalar(G, START_BEFORE, B) + g_start * a
    g_a = tl.sum(g_within * between + g_written * get(square(X, WRITTEN_BEFORE, B), B, B), 0)
    g_a += g_gamma * before + g_start * start_before + scalar(G, STRENGTH, B) * scalar(X, OUTPUT, B)
    # written_before = fade between, start_before = fade_gamma between
    fade_gamma = scalar(X, FADE_GAMMA, B)
    g_between = get(square(G, BETWEEN, B), B, B) + g_within * a[None, :]
    g_between += exact(tl.trans(fade), g_reached) + fade_gamma[:, None] * g_start_before[None, :]
    g_log_a = g_a * a + decays_back(before, between, scalar(G, BEFORE, B) + g_gamma * a, g_between)
    g_fade_gamma = scalar(G, FADE_GAMMA, B) + g_start + tl.sum(between * g_start_before[None, :], 1)
    g_fade = g_written + exact(g_reached, tl.trans(between))
    g_fade += tl.where(last[None, :], scalar(G, PUSH, B)[:, None], 0.0)
    # fade = exp(total_t - total_i), fade_gamma = exp(total_t)
    ends = fade * g_fade
    g_total = tl.sum(ends, 0) - tl.sum(ends, 1) + fade_gamma * g_fade_gamma
    put_gate(G_LOG_A, g_log_a, at, C, B)
    put_gate(G_LOG_THETA, tl.cumsum(g_total, 0, reverse=True) - theta * scalar(G, SHARE, B), at, C, B)
    put_gate(G_OUTPUT, scalar(G, STRENGTH, B) * a, at, C, B)
    put_gate(G_ETA, scalar(G, ETA, B), at, C, B)


@triton.jit
def chunk_back(
    X, G, G_READS, S2, S1, P2, P1, O2, O1, G_Q, G_K, G_V, G_LOG_A, G_LOG_THETA, G_OUTPUT, G_ETA,
    GS2, GS1, GP2, GP1, GO2, GO1, n, t, T, slope,
    D: tl.constexpr, M: tl.constexpr, C: tl.constexpr, B: tl.constexpr, L: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """A chunk backwards, from its area; gradients at S and P go from its end to its start."""
    begin_back(G, G_READS, n, t, T, D, C, B, L)
    tl.debug_barrier()
    end_back1(X, G, GS1, GP1, D, M, B, L, P)
    end_back1_keys(X, G, GS1, GP1, D, M, B, L, P)
    tl.debug_barrier()
    end_back2(X, G, GS2, GP2, D, M, B, L, P)
    end_back2_keys(X, G, GS2, GP2, D, M, B, L, P)
    recalled_back1(X, G, S1, P1, O1, D, M, B, L, P)
    tl.debug_barrier()
    kept_back1(X, G, S1, P1, O1, GS1, GP1, GO1, D, M, C, B, L, P)
    read_back1(X, G, slope, D, M, B, L, P)
    tl.debug_barrier()
    kept_back2(X, G, S2, P2, O2, GS2, GP2, GO2, D, M, C, B, L, P)
    tl.debug_barrier()
    read_back2(X, G, S2, P2, O2, G_Q, n, t, T, D, M, C, B, L, P)
    solve_back(X, G, D, M, B, L, P)
    tl.debug_barrier()
    gram_back(X, G, D, M, B, L, P)
    tl.debug_barrier()
    inner_back(X, G, S1, GS1, slope, D, M, B, L, P)
    tl.debug_barrier()
    aim_back(X, G, G_V, n, t, T, D, C, B, L)
    tl.debug_barrier()
    recall_back(X, G, S1, P1, O1, D, M, B, L, P)
    recall_back_keys(X, G, S1, P1, O1, GS1, GP1, GO1, D, M, B, L, P)
    tl.debug_barrier()
    hidden_back(X, G, S2, GS2, G_K, n, t, T, slope, D, M, C, B, L, P)
    reach_back(X, G, G_LOG_A, G_LOG_THETA, G_OUTPUT, G_ETA, n * T + t, C, B, L)
    tl.debug_barrier()


@triton.jit
def titans_backward(
    Q, K, V, LOG_A, LOG_THETA, OUTPUTS, ETAS, S2, S1, P2, P1, O2, O1, KEPT, G_READS, GS2_END, GS1_END, GP2_END, GP1_END,
    G_Q, G_K, G_V, G_LOG_A, G_LOG_THETA, G_OUTPUT, G_ETA, GS2, GS1, GP2, GP1, GO2, GO1, SCRATCH, H, T, slope,
    D: tl.constexpr, M: tl.constexpr, C: tl.constexpr, B: tl.constexpr, L: tl.constexpr, EVERY: tl.constexpr,
    P: tl.constexpr,
):  # fmt: skip
    """Gradients at all that `titans_forward` takes; those at first weights (zeros before) per sequence.

    SCRATCH: [N, EVERY + 1, area + 4 M D], chunks redone with the weights at their start, then gradients.
    """
    n, size = tl.program_id(0).to(tl.int64), M * D
    O2, O1, at = O2 + n % H * size, O1 + n % H * size, n * size
    GS2, GS1, GP2, GP1, GO2, GO1 = GS2 + at, GS1 + at, GP2 + at, GP1 + at, GO2 + at, GO1 + at
    copy(GS2_END + at, GS1_END + at, GP2_END + at, GP1_END + at, GS2, GS1, GP2, GP1, D, M)
    area: tl.constexpr = HEAD * B + SQUARES * B * B + TILES * L
    slot: tl.constexpr = area + 4 * M * D
    X = SCRATCH + n * (EVERY + 1) * slot
    G = X + EVERY * slot
    chunks = T // C
    groups = tl.cdiv(chunks, EVERY)
    for back in range(groups):
        group = groups - 1 - back
        count = tl.minimum(EVERY, chunks - group * EVERY)
        W, S = KEPT + (n * groups + group) * 4 * size, X + area
        copy(W, W + size, W + 2 * size, W + 3 * size, S, S + size, S + 2 * size, S + 3 * size, D, M)
        for j in range(count):
            x, t = X + j * slot, (group * EVERY + j) * C
            w = x + area
            write_and_look(
                x, Q, K, V, LOG_A, LOG_THETA, OUTPUTS, ETAS, w, w + size, w + 2 * size, w + 3 * size, O2, O1, n, t, T,
                slope, D, M, C, B, L, P,
            )  # fmt: skip
            if j + 1 < count:
                to = w + slot
                advance2(x, w, w + 2 * size, O2, to, to + 2 * size, D, M, C, B, L, P)
                advance1(x, w + size, w + 3 * size, O1, to + size, to + 3 * size, D, M, C, B, L, P)
        for j in range(count):
            x, t = X + (count - 1 - j) * slot, (group * EVERY + count - 1 - j) * C
            w = x + area
            chunk_back(
                x, G, G_READS, w, w + size, w + 2 * size, w + 3 * size, O2, O1, G_Q, G_K, G_V, G_LOG_A, G_LOG_THETA,
                G_OUTPUT, G_ETA, GS2, GS1, GP2, GP1, GO2, GO1, n, t, T, slope, D, M, C, B, L, P,
            )  # fmt: skip
