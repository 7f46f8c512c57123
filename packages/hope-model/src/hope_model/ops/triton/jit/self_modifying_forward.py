"""Self-modifying Titans, forward: one program walks all chunks of a sequence and head, one memory after the other.

The mathematics of `ops/native/self_modifying.hpp`: R memories of weights W2 and W1, O where retention pulls to; the
first four (of F, if they are not the R that are written) make keys, values and gates. Columns u reach time t by
`within`.
"""

import triton
import triton.language as tl

from hope_model.ops.triton import areas
from hope_model.ops.triton.jit.tiles import (
    HEAD,
    NORM_EPS,
    SQUARES,
    clipped,
    column,
    decays,
    diagonal,
    get,
    get_gate,
    get_tokens,
    inverse,
    log_sigmoid,
    mm,
    put,
    put_gate,
    put_row,
    put_tokens,
    row,
    scalar,
    shrunk,
    square,
    tile,
)

# A chunk's area (see `tiles.py`): what all memories share, then one memory's.
X_, QUERY, KEY, VALUE, HIDDEN, A_Q = (tl.constexpr(n) for n in (0, 1, 2, 3, 4, 8))  # HIDDEN: of the four
A_K, A_V, TARGET, MOVED, ERROR, INNER, U = (tl.constexpr(n) for n in range(9, 16))
TILES = tl.constexpr(areas.BANK_TILES)
BETWEEN, WITHIN, GRAM, SOLVED = (tl.constexpr(n) for n in range(4))
SIGMA, ALPHA, OUTPUT, BEFORE, GAMMA, END, KEY_INVERSE, VALUE_INVERSE = (tl.constexpr(n) for n in range(8))
S_HIDDEN, S_Q, ETA, BETA, S_K, S_V, TARGET_INVERSE, R_K = (tl.constexpr(n) for n in (8, *range(12, 19)))


@triton.jit
def unit(x):
    """x / ||x|| and 1 / ||x||."""
    inverse = tl.rsqrt(tl.sum(x * x, 0) + NORM_EPS)
    return x * inverse[None, :], inverse


@triton.jit(noinline=True)
def chunk_in(X, XS, Q, n, t, T, D: tl.constexpr, C: tl.constexpr, B: tl.constexpr, L: tl.constexpr):
    """The chunk's tokens."""
    put(tile(X, X_, L, B), get_tokens(XS, n, t, T, D, C, B), D, B)
    put(tile(X, QUERY, L, B), get_tokens(Q, n, t, T, D, C, B), D, B)


@triton.jit
def project_hidden(
    X, W2, WHICH: tl.constexpr, slope, D: tl.constexpr, M: tl.constexpr, B: tl.constexpr, L: tl.constexpr,
    P: tl.constexpr,
):  # fmt: skip
    a, s = shrunk(mm(get(W2, M, D), get(tile(X, X_, L, B), D, B), P), slope)
    put(tile(X, HIDDEN + WHICH, L, B), a, M, B)
    put_row(row(X, S_HIDDEN + WHICH, B), s, B)
    return a


@triton.jit(noinline=True)
def project(
    X, W2, W1, WHICH: tl.constexpr, slope,
    D: tl.constexpr, M: tl.constexpr, B: tl.constexpr, L: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Keys or values."""
    a = project_hidden(X, W2, WHICH, slope, D, M, B, L, P)
    y, inverse = unit(get(tile(X, X_, L, B), D, B) + mm(get(W1, D, M), a, P))
    put(tile(X, KEY + WHICH, L, B), y, D, B)
    put_row(row(X, KEY_INVERSE + WHICH, B), inverse, B)


@triton.jit
def project_gate(
    X, W2, W1, READER, BIAS, WHICH: tl.constexpr, slope,
    D: tl.constexpr, M: tl.constexpr, B: tl.constexpr, L: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """What is read of a memory that gives a scalar."""
    a = project_hidden(X, W2, WHICH, slope, D, M, B, L, P)
    reader = tl.load(READER + tl.arange(0, D))[:, None]
    of_hidden = tl.sum(reader * get(W1, D, M), 0)
    raw = tl.sum(reader * get(tile(X, X_, L, B), D, B), 0) + tl.sum(of_hidden[:, None] * a, 0)
    return raw + tl.load(BIAS)


@triton.jit(noinline=True)
def project_eta(
    X, W2, W1, READER, BIAS, ETAS, at, eta_max, slope,
    D: tl.constexpr, M: tl.constexpr, C: tl.constexpr, B: tl.constexpr, L: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Inner learning rates."""
    sigma = tl.sigmoid(project_gate(X, W2, W1, READER, BIAS, 2, slope, D, M, B, L, P))
    put_row(row(X, SIGMA, B), sigma, B)
    put_gate(ETAS, eta_max * sigma, at, C, B)


@triton.jit(noinline=True)
def project_alpha(
    X, W2, W1, READER, BIAS, ALPHAS, OUTPUTS, at, slope,
    D: tl.constexpr, M: tl.constexpr, C: tl.constexpr, B: tl.constexpr, L: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Retentions, and what they leave when."""
    raw = project_gate(X, W2, W1, READER, BIAS, 3, slope, D, M, B, L, P)
    log_a = tl.where(tl.arange(0, B) < C, log_sigmoid(raw), 0.0)
    before, between = decays(log_a, B)
    a = tl.exp(log_a)
    within = between * a[None, :] + diagonal(B)
    put(square(X, BETWEEN, B), between, B, B)
    put(square(X, WITHIN, B), within, B, B)
    put_row(row(X, ALPHA, B), a, B)
    put_row(row(X, OUTPUT, B), get_gate(OUTPUTS, at, C, B), B)
    put_row(row(X, BEFORE, B), before, B)
    put_row(row(X, GAMMA, B), before * a, B)
    put_row(row(X, END, B), column(within, C - 1, B), B)
    put_gate(ALPHAS, a, at, C, B)


@triton.jit(noinline=True)
def hidden(
    X, W2, SCALE, SHARE, eta_max, slope,
    D: tl.constexpr, M: tl.constexpr, C: tl.constexpr, B: tl.constexpr, L: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Hidden keys and values of a memory, and its strengths."""
    on = tl.arange(0, B) < C
    put_row(row(X, ETA, B), tl.where(on, eta_max * scalar(X, SIGMA, B) * tl.load(SCALE), 0.0), B)
    put_row(row(X, BETA, B), scalar(X, ALPHA, B) * scalar(X, OUTPUT, B) * tl.load(SHARE), B)
    weights = get(W2, M, D)
    a_k, s_k = shrunk(mm(weights, get(tile(X, KEY, L, B), D, B), P), slope)
    put(tile(X, A_K, L, B), a_k, M, B)
    put_row(row(X, S_K, B), s_k, B)
    a_v, s_v = shrunk(mm(weights, get(tile(X, VALUE, L, B), D, B), P), slope)
    put(tile(X, A_V, L, B), a_v, M, B)
    put_row(row(X, S_V, B), s_v, B)


@triton.jit(noinline=True)
def recall(X, W1, O1, D: tl.constexpr, M: tl.constexpr, B: tl.constexpr, L: tl.constexpr, P: tl.constexpr):
    """Targets, the error at the chunk's start, and (to U) the triangular system's right side."""
    weights, a_k = get(W1, D, M), get(tile(X, A_K, L, B), M, B)
    target, inverse = unit(get(tile(X, VALUE, L, B), D, B) + mm(weights, get(tile(X, A_V, L, B), M, B), P))
    put(tile(X, TARGET, L, B), target, D, B)
    put_row(row(X, TARGET_INVERSE, B), inverse, B)
    recalled = mm(weights, a_k, P)
    error = recalled - target + get(tile(X, KEY, L, B), D, B)
    put(tile(X, ERROR, L, B), error, D, B)
    moved = recalled - mm(get(O1, D, M), a_k, P)
    put(tile(X, MOVED, L, B), moved, D, B)
    right = moved * (1 - scalar(X, BEFORE, B))[None, :] - error
    put(tile(X, U, L, B), right * scalar(X, BETA, B)[None, :], D, B)


@triton.jit(noinline=True)
def inner(X, W1, slope, D: tl.constexpr, M: tl.constexpr, B: tl.constexpr, L: tl.constexpr, P: tl.constexpr):
    """The inner gradient."""
    back = mm(tl.trans(get(W1, D, M)), get(tile(X, ERROR, L, B), D, B), P)
    y, r_k = clipped(back, get(tile(X, A_K, L, B), M, B), scalar(X, S_K, B), slope)
    put(tile(X, INNER, L, B), y, M, B)
    put_row(row(X, R_K, B), r_k, B)


@triton.jit(noinline=True)
def solve(X, D: tl.constexpr, M: tl.constexpr, B: tl.constexpr, L: tl.constexpr, P: tl.constexpr):
    """Columns of the output layer."""
    a_k = get(tile(X, A_K, L, B), M, B)
    gram = mm(tl.trans(a_k), a_k, P)
    put(square(X, GRAM, B), gram, B, B)
    solved = inverse(gram * get(square(X, BETWEEN, B), B, B) * scalar(X, BETA, B)[None, :], B)
    put(square(X, SOLVED, B), solved, B, B)
    u = mm(get(tile(X, U, L, B), D, B), solved, P)
    tl.debug_barrier()  # who stores a number need not be who loaded it
    put(tile(X, U, L, B), u, D, B)


@triton.jit
def hidden_columns(X, M: tl.constexpr, B: tl.constexpr, L: tl.constexpr):
    """Columns of the hidden layer."""
    return -get(tile(X, INNER, L, B), M, B) * scalar(X, ETA, B)[None, :]


@triton.jit
def state_read(X, W, O, x, V: tl.constexpr, K: tl.constexpr, B: tl.constexpr, P: tl.constexpr):
    gamma = scalar(X, GAMMA, B)
    o = mm(get(W, V, K), x * gamma[None, :], P)
    o += mm(get(O, V, K), x * (1 - gamma)[None, :], P)
    return o


@triton.jit(noinline=True)
def read2(
    X, W2, O2, slope, D: tl.constexpr, M: tl.constexpr, B: tl.constexpr, L: tl.constexpr, P: tl.constexpr
):
    """The hidden layer's reads."""
    q = get(tile(X, QUERY, L, B), D, B)
    z = state_read(X, W2, O2, q, M, D, B, P)
    match = mm(tl.trans(get(tile(X, KEY, L, B), D, B)), q, P)
    z += mm(hidden_columns(X, M, B, L), match * get(square(X, WITHIN, B), B, B), P)
    a_q, s_q = shrunk(z, slope)
    put(tile(X, A_Q, L, B), a_q, M, B)
    put_row(row(X, S_Q, B), s_q, B)


@triton.jit(noinline=True)
def read1(
    X, W1, O1, READS, n, t, T,
    D: tl.constexpr, M: tl.constexpr, C: tl.constexpr, B: tl.constexpr, L: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """The output layer's reads, and with them the memory's."""
    a_q = get(tile(X, A_Q, L, B), M, B)
    o = state_read(X, W1, O1, a_q, D, M, B, P)
    match = mm(tl.trans(get(tile(X, A_K, L, B), M, B)), a_q, P)
    o += mm(get(tile(X, U, L, B), D, B), match * get(square(X, WITHIN, B), B, B), P)
    put_tokens(READS, o + get(tile(X, QUERY, L, B), D, B), n, t, T, D, C, B)


@triton.jit
def advance(
    X, W, O, TO, u, key, V: tl.constexpr, K: tl.constexpr, C: tl.constexpr, B: tl.constexpr, P: tl.constexpr
):
    keep, first = tl.load(row(X, GAMMA, B) + C - 1), get(O, V, K)
    new = first + keep * (get(W, V, K) - first) + mm(u * scalar(X, END, B)[None, :], tl.trans(key), P)
    tl.debug_barrier()  # who stores a number need not be who loaded it
    put(TO, new, V, K)


@triton.jit(noinline=True)
def advance2(
    X, W2, O2, TO, D: tl.constexpr, M: tl.constexpr, C: tl.constexpr, B: tl.constexpr, L: tl.constexpr,
    P: tl.constexpr,
):  # fmt: skip
    """The hidden layer at the chunk's end."""
    advance(X, W2, O2, TO, hidden_columns(X, M, B, L), get(tile(X, KEY, L, B), D, B), M, D, C, B, P)


@triton.jit(noinline=True)
def advance1(
    X, W1, O1, TO, D: tl.constexpr, M: tl.constexpr, C: tl.constexpr, B: tl.constexpr, L: tl.constexpr,
    P: tl.constexpr,
):  # fmt: skip
    """The output layer at the chunk's end."""
    advance(X, W1, O1, TO, get(tile(X, U, L, B), D, B), get(tile(X, A_K, L, B), M, B), D, M, C, B, P)


@triton.jit
def project_all(
    X, XS, Q, OUTPUTS, F2, F1, READERS, BIAS, ETAS, ALPHAS, n, t, T, eta_max, slope,
    D: tl.constexpr, M: tl.constexpr, C: tl.constexpr, B: tl.constexpr, L: tl.constexpr, P: tl.constexpr,
    step: tl.constexpr,
):  # fmt: skip
    """Keys, values and gates; `step`: from a memory's weights to the next one's."""
    chunk_in(X, XS, Q, n, t, T, D, C, B, L)
    tl.debug_barrier()
    project(X, F2, F1, 0, slope, D, M, B, L, P)
    project(X, F2 + step, F1 + step, 1, slope, D, M, B, L, P)
    at = n * T + t
    project_eta(X, F2 + 2 * step, F1 + 2 * step, READERS, BIAS, ETAS, at, eta_max, slope, D, M, C, B, L, P)
    project_alpha(
        X, F2 + 3 * step, F1 + 3 * step, READERS + D, BIAS + 1, ALPHAS, OUTPUTS, at, slope, D, M, C, B, L, P
    )
    tl.debug_barrier()


@triton.jit
def write(
    X, W2, W1, O1, SCALE, SHARE, eta_max, slope,
    D: tl.constexpr, M: tl.constexpr, C: tl.constexpr, B: tl.constexpr, L: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """A memory's columns, from its weights at the chunk's start."""
    hidden(X, W2, SCALE, SHARE, eta_max, slope, D, M, C, B, L, P)
    tl.debug_barrier()
    recall(X, W1, O1, D, M, B, L, P)
    tl.debug_barrier()
    inner(X, W1, slope, D, M, B, L, P)
    solve(X, D, M, B, L, P)
    tl.debug_barrier()


@triton.jit(noinline=True)
def copy(W2, W1, W2_to, W1_to, D: tl.constexpr, M: tl.constexpr):
    put(W2_to, get(W2, M, D), M, D)
    put(W1_to, get(W1, D, M), D, M)


@triton.jit
def self_modifying_forward(
    XS, Q, OUTPUTS, W2, W1, O2, O1, F2, F1, READERS, BIAS, SCALE, SHARE, READS, W2_END, W1_END, ETAS, ALPHAS, KEPT,
    SCRATCH, H, T, eta_max, slope,
    D: tl.constexpr, M: tl.constexpr, C: tl.constexpr, B: tl.constexpr, L: tl.constexpr, EVERY: tl.constexpr,
    R: tl.constexpr, F: tl.constexpr, OWN: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """READS, ETAS, ALPHAS and the weights after the last token; KEPT: of all memories, each W2 and W1 (see Titans')."""
    size: tl.constexpr = M * D
    n = tl.program_id(0).to(tl.int64)
    h = n % H
    X = SCRATCH + n * (HEAD * B + SQUARES * B * B + TILES * L)
    at, first = n * R * size, h * R * size
    for r in range(R):
        i = at + r * size
        copy(W2 + i, W1 + i, W2_END + i, W1_END + i, D, M)
    if OWN:
        F2, F1 = W2_END + at, W1_END + at
    else:
        F2, F1 = F2 + n * F * size, F1 + n * F * size
    for t in range(0, T, C):
        tl.debug_barrier()
        if EVERY:
            if t % (EVERY * C) == 0:
                to = KEPT + (n * tl.cdiv(T, EVERY * C) + t // (EVERY * C)) * 2 * R * size
                for r in range(R):
                    i = at + r * size
                    copy(W2_END + i, W1_END + i, to + 2 * r * size, to + (2 * r + 1) * size, D, M)
        project_all(
            X, XS, Q, OUTPUTS, F2, F1, READERS + h * 2 * D, BIAS + h * 2, ETAS, ALPHAS, n, t, T, eta_max, slope,
            D, M, C, B, L, P, size,
        )  # fmt: skip
        for r in range(R):
            W2_r, W1_r, i = W2_END + at + r * size, W1_END + at + r * size, h * R + r
            O2_r, O1_r = O2 + first + r * size, O1 + first + r * size
            write(X, W2_r, W1_r, O1_r, SCALE + i, SHARE + i, eta_max, slope, D, M, C, B, L, P)
            if r == R - 1:
                read2(X, W2_r, O2_r, slope, D, M, B, L, P)
                tl.debug_barrier()
                read1(X, W1_r, O1_r, READS, n, t, T, D, M, C, B, L, P)
                tl.debug_barrier()
            advance2(X, W2_r, O2_r, W2_r, D, M, C, B, L, P)
            advance1(X, W1_r, O1_r, W1_r, D, M, C, B, L, P)
            tl.debug_barrier()
