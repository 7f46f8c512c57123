"""Titans' memory, forward: one program walks all chunks of a sequence and head.

The mathematics of `ops/native/titans_memory.hpp`: S weights, P their momentum, O where retention pulls to; layer 2
reads keys, layer 1 hidden units. Columns w (written) reach time t by `written`, columns u (erased) by `within`.
"""

import triton
import triton.language as tl

from hope_model.ops.triton import areas
from hope_model.ops.triton.jit.tiles import (
    HEAD,
    SQUARES,
    clipped,
    column,
    decays,
    diagonal,
    exact,
    get,
    get_gate,
    get_tokens,
    inverse,
    mm,
    one_minus_exp,
    put,
    put_row,
    put_tokens,
    row,
    scalar,
    shrunk,
    square,
    tile,
)

# A chunk's area (see `tiles.py`).
KEY, QUERY, AIM, ERROR, U, A_K, A_Q, INNER = (tl.constexpr(n) for n in range(8))
TILES = tl.constexpr(areas.TITANS_TILES)
BETWEEN, WRITTEN_BEFORE, FADE, WITHIN, WRITTEN, GRAM, SOLVED = (tl.constexpr(n) for n in range(7))
# Scalars of tokens: what of S, P and O is left before and after t, and at the chunk's end.
A, THETA, SHARE, OUTPUT, ETA, STRENGTH = (tl.constexpr(n) for n in range(6))
BEFORE, START_BEFORE, GAMMA, START, FADE_GAMMA = (tl.constexpr(n) for n in range(6, 11))
END_U, END_W, PUSH, S_K, R_K, S_Q = (tl.constexpr(n) for n in range(11, 17))


@triton.jit(noinline=True)
def chunk_in(X, Q, K, V, n, t, T, D: tl.constexpr, C: tl.constexpr, B: tl.constexpr, L: tl.constexpr):
    """The chunk's tokens."""
    key = get_tokens(K, n, t, T, D, C, B)
    put(tile(X, KEY, L, B), key, D, B)
    put(tile(X, AIM, L, B), get_tokens(V, n, t, T, D, C, B) - key, D, B)
    put(tile(X, QUERY, L, B), get_tokens(Q, n, t, T, D, C, B), D, B)


@triton.jit(noinline=True)
def reach(X, LOG_A, LOG_THETA, OUTPUTS, ETAS, at, C: tl.constexpr, B: tl.constexpr, L: tl.constexpr):
    """All scalars of the chunk: what of S, P, O, u and w is left when."""
    log_a, log_theta = get_gate(LOG_A, at, C, B), get_gate(LOG_THETA, at, C, B)
    output = get_gate(OUTPUTS, at, C, B)
    before, between = decays(log_a, B)
    fade_before, fade_between = decays(log_theta, B)
    a, theta, share = tl.exp(log_a), tl.exp(log_theta), one_minus_exp(log_theta)
    fade, fade_gamma = fade_between * theta[None, :] + diagonal(B), fade_before * theta
    # Of w_i k_i^T and of P_0 in S_{t-1}; S_t keeps a_t of it and takes the momentum.
    written_before, start_before = exact(fade, between), tl.sum(fade_gamma[:, None] * between, 0)
    written, within = written_before * a[None, :] + fade, between * a[None, :] + diagonal(B)
    put(square(X, BETWEEN, B), between, B, B)
    put(square(X, WITHIN, B), within, B, B)
    put(square(X, FADE, B), fade, B, B)
    put(square(X, WRITTEN_BEFORE, B), written_before, B, B)
    put(square(X, WRITTEN, B), written, B, B)
    put_row(row(X, A, B), a, B)
    put_row(row(X, THETA, B), theta, B)
    put_row(row(X, SHARE, B), share, B)
    put_row(row(X, OUTPUT, B), output, B)
    put_row(row(X, ETA, B), get_gate(ETAS, at, C, B), B)
    put_row(row(X, STRENGTH, B), a * output, B)
    put_row(row(X, BEFORE, B), before, B)
    put_row(row(X, START_BEFORE, B), start_before, B)
    put_row(row(X, GAMMA, B), before * a, B)
    put_row(row(X, START, B), start_before * a + fade_gamma, B)
    put_row(row(X, FADE_GAMMA, B), fade_gamma, B)
    put_row(row(X, END_U, B), column(within, C - 1, B), B)
    put_row(row(X, END_W, B), column(written, C - 1, B), B)
    put_row(row(X, PUSH, B), column(fade, C - 1, B), B)


@triton.jit(noinline=True)
def hidden(X, S2, slope, D: tl.constexpr, M: tl.constexpr, B: tl.constexpr, L: tl.constexpr, P: tl.constexpr):
    """Hidden keys."""
    a_k, s_k = shrunk(mm(get(S2, M, D), get(tile(X, KEY, L, B), D, B), P), slope)
    put(tile(X, A_K, L, B), a_k, M, B)
    put_row(row(X, S_K, B), s_k, B)


@triton.jit
def written1(X, D: tl.constexpr, B: tl.constexpr, L: tl.constexpr):
    """Columns w of the output layer."""
    strength = scalar(X, SHARE, B) * scalar(X, STRENGTH, B)
    return get(tile(X, AIM, L, B), D, B) * strength[None, :]


@triton.jit
def written2(X, M: tl.constexpr, B: tl.constexpr, L: tl.constexpr):
    """Columns w of the hidden layer."""
    rate = -scalar(X, SHARE, B) * scalar(X, ETA, B)
    return get(tile(X, INNER, L, B), M, B) * rate[None, :]


@triton.jit(noinline=True)
def recall(
    X, S1, P1, O1, D: tl.constexpr, M: tl.constexpr, B: tl.constexpr, L: tl.constexpr, P: tl.constexpr
):
    """The error at the chunk's start, and (to U) what the output layer would hold had the chunk written nothing."""
    a_k, before = get(tile(X, A_K, L, B), M, B), scalar(X, BEFORE, B)
    recalled = mm(get(S1, D, M), a_k, P)
    put(tile(X, ERROR, L, B), recalled - get(tile(X, AIM, L, B), D, B), D, B)
    held = recalled * before[None, :]
    held += mm(get(P1, D, M), a_k * scalar(X, START_BEFORE, B)[None, :], P)
    held += mm(get(O1, D, M), a_k * (1 - before)[None, :], P)
    put(tile(X, U, L, B), held, D, B)


@triton.jit(noinline=True)
def inner(X, S1, slope, D: tl.constexpr, M: tl.constexpr, B: tl.constexpr, L: tl.constexpr, P: tl.constexpr):
    """The inner gradient."""
    back = mm(tl.trans(get(S1, D, M)), get(tile(X, ERROR, L, B), D, B), P)
    y, r_k = clipped(back, get(tile(X, A_K, L, B), M, B), scalar(X, S_K, B), slope)
    put(tile(X, INNER, L, B), y, M, B)
    put_row(row(X, R_K, B), r_k, B)


@triton.jit(noinline=True)
def solve(X, D: tl.constexpr, M: tl.constexpr, B: tl.constexpr, L: tl.constexpr, P: tl.constexpr):
    """Columns u of the output layer, from what it would hold; M_0 = gram between c, M_1 = gram written_before c."""
    a_k, c = get(tile(X, A_K, L, B), M, B), scalar(X, STRENGTH, B)
    gram = mm(tl.trans(a_k), a_k, P)
    put(square(X, GRAM, B), gram, B, B)
    gram *= c[None, :]
    solved = inverse(gram * get(square(X, BETWEEN, B), B, B), B)
    put(square(X, SOLVED, B), solved, B, B)
    right = get(tile(X, U, L, B), D, B) * c[None, :]
    right += mm(written1(X, D, B, L), gram * get(square(X, WRITTEN_BEFORE, B), B, B), P)
    u = -mm(right, solved, P)
    tl.debug_barrier()
    put(tile(X, U, L, B), u, D, B)


@triton.jit
def state_read(
    X, S, P_, O, x, V: tl.constexpr, K: tl.constexpr, B: tl.constexpr, L: tl.constexpr, P: tl.constexpr
):
    gamma = scalar(X, GAMMA, B)
    o = mm(get(S, V, K), x * gamma[None, :], P)
    o += mm(get(P_, V, K), x * scalar(X, START, B)[None, :], P)
    o += mm(get(O, V, K), x * (1 - gamma)[None, :], P)
    return o


@triton.jit(noinline=True)
def read2(
    X, S2, P2, O2, slope, D: tl.constexpr, M: tl.constexpr, B: tl.constexpr, L: tl.constexpr, P: tl.constexpr
):
    """The hidden layer's reads."""
    q = get(tile(X, QUERY, L, B), D, B)
    z = state_read(X, S2, P2, O2, q, M, D, B, L, P)
    match = mm(tl.trans(get(tile(X, KEY, L, B), D, B)), q, P)
    z += mm(written2(X, M, B, L), match * get(square(X, WRITTEN, B), B, B), P)
    a_q, s_q = shrunk(z, slope)
    put(tile(X, A_Q, L, B), a_q, M, B)
    put_row(row(X, S_Q, B), s_q, B)


@triton.jit(noinline=True)
def read1(
    X, S1, P1, O1, O, n, t, T,
    D: tl.constexpr, M: tl.constexpr, C: tl.constexpr, B: tl.constexpr, L: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """The output layer's reads, and with them the memory's."""
    a_q = get(tile(X, A_Q, L, B), M, B)
    o = state_read(X, S1, P1, O1, a_q, D, M, B, L, P)
    match = mm(tl.trans(get(tile(X, A_K, L, B), M, B)), a_q, P)
    o += mm(get(tile(X, U, L, B), D, B), match * get(square(X, WITHIN, B), B, B), P)
    o += mm(written1(X, D, B, L), match * get(square(X, WRITTEN, B), B, B), P)
    put_tokens(O, o + get(tile(X, QUERY, L, B), D, B), n, t, T, D, C, B)


@triton.jit
def advance(
    X, S, P_, O, to_S, to_P, key, S_to, P_to,
    V: tl.constexpr, K: tl.constexpr, C: tl.constexpr, B: tl.constexpr, L: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    gamma, start = tl.load(row(X, GAMMA, B) + C - 1), tl.load(row(X, START, B) + C - 1)
    keep, key_T = tl.load(row(X, FADE_GAMMA, B) + C - 1), tl.trans(key)
    weights, momentum, first = get(S, V, K), get(P_, V, K), get(O, V, K)
    new = first + gamma * (weights - first) + start * momentum + mm(to_S, key_T, P)
    momentum = keep * momentum + mm(to_P, key_T, P)
    tl.debug_barrier()  # who stores a number need not be who loaded it
    put(S_to, new, V, K)
    put(P_to, momentum, V, K)


@triton.jit(noinline=True)
def advance2(
    X, S, P_, O, S_to, P_to,
    D: tl.constexpr, M: tl.constexpr, C: tl.constexpr, B: tl.constexpr, L: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """The hidden layer at the chunk's end."""
    w = written2(X, M, B, L)
    to_S, to_P = w * scalar(X, END_W, B)[None, :], w * scalar(X, PUSH, B)[None, :]
    advance(X, S, P_, O, to_S, to_P, get(tile(X, KEY, L, B), D, B), S_to, P_to, M, D, C, B, L, P)


@triton.jit(noinline=True)
def advance1(
    X, S, P_, O, S_to, P_to,
    D: tl.constexpr, M: tl.constexpr, C: tl.constexpr, B: tl.constexpr, L: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """The output layer at the chunk's end."""
    w = written1(X, D, B, L)
    to_S = w * scalar(X, END_W, B)[None, :] + get(tile(X, U, L, B), D, B) * scalar(X, END_U, B)[None, :]
    to_P = w * scalar(X, PUSH, B)[None, :]
    advance(X, S, P_, O, to_S, to_P, get(tile(X, A_K, L, B), M, B), S_to, P_to, D, M, C, B, L, P)


@triton.jit(noinline=True)
def write_and_look(
    X, Q, K, V, LOG_A, LOG_THETA, OUTPUTS, ETAS, S2, S1, P2, P1, O2, O1, n, t, T, slope,
    D: tl.constexpr, M: tl.constexpr, C: tl.constexpr, B: tl.constexpr, L: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """A chunk but for its outputs: all that its area holds, from the weights at its start."""
    tl.debug_barrier()
    chunk_in(X, Q, K, V, n, t, T, D, C, B, L)
    reach(X, LOG_A, LOG_THETA, OUTPUTS, ETAS, n * T + t, C, B, L)
    tl.debug_barrier()
    hidden(X, S2, slope, D, M, B, L, P)
    tl.debug_barrier()
    recall(X, S1, P1, O1, D, M, B, L, P)
    tl.debug_barrier()
    inner(X, S1, slope, D, M, B, L, P)
    solve(X, D, M, B, L, P)
    tl.debug_barrier()
    read2(X, S2, P2, O2, slope, D, M, B, L, P)
    tl.debug_barrier()


@triton.jit(noinline=True)
def copy(S2, S1, P2, P1, S2_to, S1_to, P2_to, P1_to, D: tl.constexpr, M: tl.constexpr):
    put(S2_to, get(S2, M, D), M, D)
    put(S1_to, get(S1, D, M), D, M)
    put(P2_to, get(P2, M, D), M, D)
    put(P1_to, get(P1, D, M), D, M)


@triton.jit
def titans_forward(
    Q, K, V, LOG_A, LOG_THETA, OUTPUTS, ETAS, S2, S1, P2, P1, O2, O1, O, S2_END, S1_END, P2_END, P1_END, KEPT, SCRATCH,
    H, T, slope,
    D: tl.constexpr, M: tl.constexpr, C: tl.constexpr, B: tl.constexpr, L: tl.constexpr, EVERY: tl.constexpr,
    P: tl.constexpr,
):  # fmt: skip
    """Reads O and the weights after the last token; KEPT: S2, S1, P2, P1 before every so many chunks (0: none).

    SCRATCH: [N, area]; first weights: [H, ...], sequence n has those of head n modulo H.
    """
    n, size = tl.program_id(0).to(tl.int64), M * D
    at = n * size
    copy(S2 + at, S1 + at, P2 + at, P1 + at, S2_END + at, S1_END + at, P2_END + at, P1_END + at, D, M)
    S2, S1, P2, P1 = S2_END + at, S1_END + at, P2_END + at, P1_END + at
    O2, O1 = O2 + n % H * size, O1 + n % H * size
    X = SCRATCH + n * (HEAD * B + SQUARES * B * B + TILES * L)
    for t in range(0, T, C):
        tl.debug_barrier()
        if EVERY:
            if t % (EVERY * C) == 0:
                to = KEPT + (n * tl.cdiv(T, EVERY * C) + t // (EVERY * C)) * 4 * size
                copy(S2, S1, P2, P1, to, to + size, to + 2 * size, to + 3 * size, D, M)
        write_and_look(
            X, Q, K, V, LOG_A, LOG_THETA, OUTPUTS, ETAS, S2, S1, P2, P1, O2, O1, n, t, T, slope, D, M, C, B, L,
            P,
        )  # fmt: skip
        read1(X, S1, P1, O1, O, n, t, T, D, M, C, B, L, P)
        tl.debug_barrier()
        advance2(X, S2, P2, O2, S2, P2, D, M, C, B, L, P)
        advance1(X, S1, P1, O1, S1, P1, D, M, C, B, L, P)
