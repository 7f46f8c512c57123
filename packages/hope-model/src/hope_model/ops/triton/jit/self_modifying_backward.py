"""Self-modifying Titans, backward: chunks since a kept state are redone, then walked back, a memory at a time.

The mathematics of `ops/native/self_modifying.cpp`; g_x is the gradient at x. Weights at a chunk's start stay, the rest
of a memory's chunk is made once more when its turn comes: areas of all memories would not fit the L2 cache.
"""

import triton
import triton.language as tl

from hope_model.ops.triton.jit.self_modifying_forward import (
    A_K,
    A_Q,
    ALPHA,
    BEFORE,
    BETWEEN,
    END,
    GAMMA,
    KEY,
    OUTPUT,
    QUERY,
    S_Q,
    SIGMA,
    TILES,
    WITHIN,
    U,
    advance1,
    advance2,
    copy,
    hidden_columns,
    project_all,
    read2,
    write,
)
from hope_model.ops.triton.jit.self_modifying_projection_back import (
    project_back,
    project_gate_back,
    unit_keys_back,
)
from hope_model.ops.triton.jit.self_modifying_writes_back import (
    G_A_K,
    G_KEY,
    G_READ,
    G_READS,
    G_U,
    G_U2,
    G_VALUE,
    G_X,
    end_back1,
    end_back2,
    write_back,
)
from hope_model.ops.triton.jit.tiles import (
    HEAD,
    SQUARES,
    add,
    add_row,
    decays_back,
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


@triton.jit
def gradients(X, B: tl.constexpr, L: tl.constexpr):
    """The gradients' area, behind the chunk's."""
    return X + (HEAD * B + SQUARES * B * B + TILES * L)


@triton.jit
def kept_state(X, j, r, D: tl.constexpr, M: tl.constexpr, B: tl.constexpr, L: tl.constexpr, R: tl.constexpr):
    """W2 of memory r at the start of the j-th chunk redone, W1 behind it."""
    return X + 2 * (HEAD * B + SQUARES * B * B + TILES * L) + 2 * B + (j * R + r) * 2 * M * D


@triton.jit(noinline=True)
def begin_back(X, G_READS_, n, t, T, D: tl.constexpr, C: tl.constexpr, B: tl.constexpr, L: tl.constexpr):
    """The reads' gradient; zeros where steps add."""
    G = gradients(X, B, L)
    put(tile(G, G_READS, L, B), get_tokens(G_READS_, n, t, T, D, C, B), D, B)
    put(tile(G, G_KEY, L, B), tl.zeros((D, B), tl.float32), D, B)
    put(tile(G, G_VALUE, L, B), tl.zeros((D, B), tl.float32), D, B)
    put(square(G, BETWEEN, B), tl.zeros((B, B), tl.float32), B, B)
    put(square(G, WITHIN, B), tl.zeros((B, B), tl.float32), B, B)
    zero = tl.zeros((B,), tl.float32)
    put_row(row(G, SIGMA, B), zero, B)
    put_row(row(G, OUTPUT, B), zero, B)
    put_row(row(G, BEFORE, B), zero, B)
    put_row(row(G, GAMMA, B), zero, B)
    put_row(row(G, END, B), zero, B)


@triton.jit
def state_read_back(
    X, G, W, O, GW, GO, g, x, V: tl.constexpr, K: tl.constexpr, B: tl.constexpr, P: tl.constexpr
):
    """O = gamma W x + (1 - gamma) O x, backwards: the gradient at x."""
    gamma, x_T = scalar(X, GAMMA, B), tl.trans(x)
    by_O = mm(tl.trans(get(O, V, K)), g, P)
    moved = mm(tl.trans(get(W, V, K)), g, P) - by_O
    add_row(row(G, GAMMA, B), tl.sum(x * moved, 0), B)
    add(GW, mm(g * gamma[None, :], x_T, P), V, K)
    add(GO, mm(g * (1 - gamma)[None, :], x_T, P), V, K)
    return by_O + gamma[None, :] * moved


@triton.jit(noinline=True)
def state_read_back1(
    X, G, W, O, GW, GO, D: tl.constexpr, M: tl.constexpr, B: tl.constexpr, L: tl.constexpr, P: tl.constexpr
):
    g, a_q = get(tile(G, G_READS, L, B), D, B), get(tile(X, A_Q, L, B), M, B)
    put(tile(G, G_READ, L, B), state_read_back(X, G, W, O, GW, GO, g, a_q, D, M, B, P), M, B)


@triton.jit
def match_back(X, G, key, x, u, g, B: tl.constexpr, P: tl.constexpr):
    """U (key^T x within), backwards: gradients at key, x and u."""
    match, within = mm(tl.trans(key), x, P), get(square(X, WITHIN, B), B, B)
    g_felt = mm(tl.trans(u), g, P)
    add(square(G, WITHIN, B), g_felt * match, B, B)
    g_match = g_felt * within
    return mm(x, tl.trans(g_match), P), mm(key, g_match, P), mm(g, tl.trans(match * within), P)


@triton.jit(noinline=True)
def read_back1(
    X, G, slope, D: tl.constexpr, M: tl.constexpr, B: tl.constexpr, L: tl.constexpr, P: tl.constexpr
):
    """The output layer's reads, backwards, and on to z."""
    a_q, s_q = get(tile(X, A_Q, L, B), M, B), scalar(X, S_Q, B)
    g_key, g_x, g_u = match_back(
        X,
        G,
        get(tile(X, A_K, L, B), M, B),
        a_q,
        get(tile(X, U, L, B), D, B),
        get(tile(G, G_READS, L, B), D, B),
        B,
        P,
    )
    add(tile(G, G_U, L, B), g_u, D, B)
    add(tile(G, G_A_K, L, B), g_key, M, B)
    g_z = shrunk_back(get(tile(G, G_READ, L, B), M, B) + g_x, a_q, s_q, 0 * s_q, slope)
    tl.debug_barrier()
    put(tile(G, G_READ, L, B), g_z, M, B)


@triton.jit(noinline=True)
def state_read_back2(
    X, G, W, O, GW, GO, D: tl.constexpr, M: tl.constexpr, B: tl.constexpr, L: tl.constexpr, P: tl.constexpr
):
    g, q = get(tile(G, G_READ, L, B), M, B), get(tile(X, QUERY, L, B), D, B)
    add(tile(G, G_READS, L, B), state_read_back(X, G, W, O, GW, GO, g, q, M, D, B, P), D, B)


@triton.jit(noinline=True)
def read_back2(
    X, G, G_Q, n, t, T, D: tl.constexpr, M: tl.constexpr, C: tl.constexpr, B: tl.constexpr, L: tl.constexpr,
    P: tl.constexpr,
):  # fmt: skip
    """The hidden layer's reads, backwards, to the queries."""
    g_key, g_x, g_u = match_back(
        X, G, get(tile(X, KEY, L, B), D, B), get(tile(X, QUERY, L, B), D, B), hidden_columns(X, M, B, L),
        get(tile(G, G_READ, L, B), M, B), B, P,
    )  # fmt: skip
    add(tile(G, G_U2, L, B), g_u, M, B)
    add(tile(G, G_KEY, L, B), g_key, D, B)
    put_tokens(G_Q, get(tile(G, G_READS, L, B), D, B) + g_x, n, t, T, D, C, B)


@triton.jit(noinline=True)
def gates_back(X, G, G_OUTPUTS, G_BIAS, eta_max, at, C: tl.constexpr, B: tl.constexpr, L: tl.constexpr):
    """Gates, backwards: to SIGMA and ALPHA of G go the gradients at what is read of their memories."""
    a, before, sigma = scalar(X, ALPHA, B), scalar(X, BEFORE, B), scalar(X, SIGMA, B)
    between, g_gamma, g_output = get(square(X, BETWEEN, B), B, B), scalar(G, GAMMA, B), scalar(G, OUTPUT, B)
    # within = between a + I, gamma = before a
    last = tl.arange(0, B)[None, :] == C - 1
    g_within = get(square(G, WITHIN, B), B, B) + tl.where(last, scalar(G, END, B)[:, None], 0.0)
    g_a = tl.sum(g_within * between, 0) + g_gamma * before
    g_between = get(square(G, BETWEEN, B), B, B) + g_within * a[None, :]
    g_log_a = g_output * scalar(X, OUTPUT, B) + g_a * a
    g_log_a += decays_back(before, between, scalar(G, BEFORE, B) + g_gamma * a, g_between)
    on = tl.arange(0, B) < C
    g_eta, g_alpha = scalar(G, SIGMA, B) * sigma * (1 - sigma), tl.where(on, g_log_a * (1 - a), 0.0)
    put_gate(G_OUTPUTS, g_output, at, C, B)
    tl.debug_barrier()
    put_row(row(G, SIGMA, B), g_eta, B)
    put_row(row(G, ALPHA, B), g_alpha, B)
    tl.store(G_BIAS, tl.load(G_BIAS) + tl.sum(g_eta))
    tl.store(G_BIAS + 1, tl.load(G_BIAS + 1) + tl.sum(g_alpha))


@triton.jit(noinline=True)
def tokens_back(G, G_XS, n, t, T, D: tl.constexpr, C: tl.constexpr, B: tl.constexpr, L: tl.constexpr):
    put_tokens(G_XS, get(tile(G, G_X, L, B), D, B), n, t, T, D, C, B)


@triton.jit(noinline=True)
def memory_back(
    X, O2, O1, GW2, GW1, GO2, GO1, G_Q, SCALE, SHARE, G_SCALE, G_SHARE, n, h, r, j, t, T, eta_max, slope,
    D: tl.constexpr, M: tl.constexpr, C: tl.constexpr, B: tl.constexpr, L: tl.constexpr, R: tl.constexpr,
    P: tl.constexpr,
):  # fmt: skip
    """A memory's chunk, redone and backwards."""
    size: tl.constexpr = M * D
    G, W2, of_head, of_sequence = gradients(X, B, L), kept_state(X, j, r, D, M, B, L, R), h * R + r, n * R + r
    W1 = W2 + size
    O2, O1, GO2, GO1 = (
        O2 + of_head * size,
        O1 + of_head * size,
        GO2 + of_sequence * size,
        GO1 + of_sequence * size,
    )
    GW2, GW1 = GW2 + of_sequence * size, GW1 + of_sequence * size
    SCALE, SHARE = SCALE + of_head, SHARE + of_head
    write(X, W2, W1, O1, SCALE, SHARE, eta_max, slope, D, M, C, B, L, P)
    end_back2(X, G, W2, O2, GW2, GO2, D, M, C, B, L, P)
    tl.debug_barrier()
    end_back1(X, G, W1, O1, GW1, GO1, D, M, C, B, L, P)
    tl.debug_barrier()
    if r == R - 1:
        read2(X, W2, O2, slope, D, M, B, L, P)
        tl.debug_barrier()
        state_read_back1(X, G, W1, O1, GW1, GO1, D, M, B, L, P)
        tl.debug_barrier()
        read_back1(X, G, slope, D, M, B, L, P)
        tl.debug_barrier()
        state_read_back2(X, G, W2, O2, GW2, GO2, D, M, B, L, P)
        tl.debug_barrier()
        read_back2(X, G, G_Q, n, t, T, D, M, C, B, L, P)
        tl.debug_barrier()
    G_SCALE, G_SHARE = G_SCALE + of_sequence, G_SHARE + of_sequence
    write_back(X, G, W2, W1, O1, GW2, GW1, GO1, SCALE, SHARE, G_SCALE, G_SHARE, eta_max, slope, D, M, B, L, P)


@triton.jit(noinline=True)
def redo_memory(
    X, O2, O1, SCALE, SHARE, h, r, j, eta_max, slope,
    D: tl.constexpr, M: tl.constexpr, C: tl.constexpr, B: tl.constexpr, L: tl.constexpr, R: tl.constexpr,
    P: tl.constexpr,
):  # fmt: skip
    """A memory's chunk, to its weights at the next one's start."""
    size: tl.constexpr = M * D
    W2, of_head = kept_state(X, j, r, D, M, B, L, R), h * R + r
    to = W2 + 2 * R * size
    O1 += of_head * size
    write(X, W2, W2 + size, O1, SCALE + of_head, SHARE + of_head, eta_max, slope, D, M, C, B, L, P)
    advance2(X, W2, O2 + of_head * size, to, D, M, C, B, L, P)
    advance1(X, W2 + size, O1, to + size, D, M, C, B, L, P)
    tl.debug_barrier()


@triton.jit(noinline=True)
def redo_projection(
    X, XS, Q, OUTPUTS, F2, F1, READERS, BIAS, n, h, j, t, T, eta_max, slope,
    D: tl.constexpr, M: tl.constexpr, C: tl.constexpr, B: tl.constexpr, L: tl.constexpr,
    R: tl.constexpr, F: tl.constexpr, OWN: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Keys, values and gates; eta and alpha of the chunk, outputs already, go before the kept states."""
    size: tl.constexpr = M * D
    seen = kept_state(X, 0, 0, D, M, B, L, R) - 2 * B - (n * T + t)
    READERS, BIAS = READERS + h * 2 * D, BIAS + h * 2
    if OWN:
        F2 = kept_state(X, j, 0, D, M, B, L, R)
        F1 = F2 + size
    else:
        F2, F1 = F2 + n * F * size, F1 + n * F * size
    project_all(
        X, XS, Q, OUTPUTS, F2, F1, READERS, BIAS, seen, seen + B, n, t, T, eta_max, slope,
        D, M, C, B, L, P, 2 * size if OWN else size,
    )  # fmt: skip


@triton.jit(noinline=True)
def project_all_back(
    X, F2, F1, GF2, GF1, READERS, G_READERS, G_XS, G_OUTPUTS, G_BIAS, n, h, j, t, T, eta_max, slope,
    D: tl.constexpr, M: tl.constexpr, C: tl.constexpr, B: tl.constexpr, L: tl.constexpr,
    R: tl.constexpr, F: tl.constexpr, OWN: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Keys, values and gates, backwards."""
    size: tl.constexpr = M * D
    step: tl.constexpr = 2 * size if OWN else size
    G, of_sequence = gradients(X, B, L), n * F * size
    if OWN:
        F2 = kept_state(X, j, 0, D, M, B, L, R)
        F1 = F2 + size
    else:
        F2, F1 = F2 + of_sequence, F1 + of_sequence
    GF2, GF1 = GF2 + of_sequence, GF1 + of_sequence
    READERS, G_READERS = READERS + h * 2 * D, G_READERS + n * 2 * D
    gates_back(X, G, G_OUTPUTS, G_BIAS + n * 2, eta_max, n * T + t, C, B, L)
    tl.debug_barrier()
    unit_keys_back(X, G, READERS, D, B, L)
    tl.debug_barrier()
    project_back(X, G, F2, F1, GF2, GF1, 0, slope, D, M, B, L, P)
    tl.debug_barrier()
    project_back(X, G, F2 + step, F1 + step, GF2 + size, GF1 + size, 1, slope, D, M, B, L, P)
    tl.debug_barrier()
    project_gate_back(
        X, G, F2 + 2 * step, F1 + 2 * step, GF2 + 2 * size, GF1 + 2 * size, READERS, G_READERS, 2, SIGMA, slope,
        D, M, B, L, P,
    )  # fmt: skip
    tl.debug_barrier()
    project_gate_back(
        X, G, F2 + 3 * step, F1 + 3 * step, GF2 + 3 * size, GF1 + 3 * size, READERS + D, G_READERS + D, 3, ALPHA, slope,
        D, M, B, L, P,
    )  # fmt: skip
    tl.debug_barrier()
    tokens_back(G, G_XS, n, t, T, D, C, B, L)


@triton.jit(noinline=True)
def clear(X, V: tl.constexpr, K: tl.constexpr):
    put(X, tl.zeros((V, K), tl.float32), V, K)


@triton.jit
def self_modifying_backward(
    XS, Q, OUTPUTS, W2, W1, O2, O1, F2, F1, READERS, BIAS, SCALE, SHARE, KEPT, G_READS_, GW2_END, GW1_END,
    G_XS, G_Q, G_OUTPUTS, GW2, GW1, GO2, GO1, GF2, GF1, G_READERS, G_BIAS, G_SCALE, G_SHARE,
    SCRATCH, H, T, eta_max, slope,
    D: tl.constexpr, M: tl.constexpr, C: tl.constexpr, B: tl.constexpr, L: tl.constexpr, EVERY: tl.constexpr,
    R: tl.constexpr, F: tl.constexpr, OWN: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Gradients at all that `self_modifying_forward` takes; those that sequences share (zeros before) per sequence.

    SCRATCH: [N, area, area of gradients, eta and alpha of a chunk, EVERY states]. Steps get arguments as they are and
    find their sequence's part: what is computed here would be spilt at every call.
    """
    size: tl.constexpr = M * D
    area: tl.constexpr = HEAD * B + SQUARES * B * B + TILES * L
    n = tl.program_id(0).to(tl.int64)
    h = n % H
    X = SCRATCH + n * (2 * area + 2 * B + EVERY * 2 * R * size)
    for r in range(R):
        i = (n * R + r) * size
        copy(GW2_END + i, GW1_END + i, GW2 + i, GW1 + i, D, M)
    if not OWN:
        for f in range(F):
            clear(GF2 + (n * F + f) * size, M, D)
            clear(GF1 + (n * F + f) * size, D, M)
    chunks = T // C
    groups = tl.cdiv(chunks, EVERY)
    for back in range(groups):
        group = groups - 1 - back
        count = tl.minimum(EVERY, chunks - group * EVERY)
        tl.debug_barrier()
        for r in range(R):
            kept, to = KEPT + ((n * groups + group) * R + r) * 2 * size, kept_state(X, 0, r, D, M, B, L, R)
            copy(kept, kept + size, to, to + size, D, M)
        for step in range(2 * count - 1):
            redo = step < count - 1
            j = tl.where(redo, step, 2 * count - 2 - step)
            t = (group * EVERY + j) * C
            tl.debug_barrier()
            redo_projection(
                X, XS, Q, OUTPUTS, F2, F1, READERS, BIAS, n, h, j, t, T, eta_max, slope, D, M, C, B, L, R, F,
                OWN, P,
            )  # fmt: skip
            if redo:
                for r in range(R):
                    redo_memory(X, O2, O1, SCALE, SHARE, h, r, j, eta_max, slope, D, M, C, B, L, R, P)
            else:
                begin_back(X, G_READS_, n, t, T, D, C, B, L)
                tl.debug_barrier()
                for r in range(R):
                    memory_back(
                        X, O2, O1, GW2, GW1, GO2, GO1, G_Q, SCALE, SHARE, G_SCALE, G_SHARE, n, h, r, j, t, T, eta_max,
                        slope, D, M, C, B, L, R, P,
                    )  # fmt: skip
                project_all_back(
                    X, F2, F1, GW2 if OWN else GF2, GW1 if OWN else GF1, READERS, G_READERS, G_XS, G_OUTPUTS, G_BIAS,
                    n, h, j, t, T, eta_max, slope, D, M, C, B, L, R, F, OWN, P,
                )  # fmt: skip
