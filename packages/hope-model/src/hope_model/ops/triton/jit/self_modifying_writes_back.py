"""Self-modifying Titans, backward: one memory's writes (see `self_modifying_backward.py`)."""

import triton
import triton.language as tl

from hope_model.ops.triton.jit.self_modifying_forward import (
    A_K,
    A_V,
    ALPHA,
    BEFORE,
    BETA,
    BETWEEN,
    END,
    ERROR,
    ETA,
    GAMMA,
    GRAM,
    INNER,
    KEY,
    MOVED,
    OUTPUT,
    R_K,
    S_K,
    S_V,
    SIGMA,
    SOLVED,
    TARGET,
    TARGET_INVERSE,
    VALUE,
    U,
    hidden_columns,
)
from hope_model.ops.triton.jit.tiles import (
    add,
    add_row,
    clipped_back,
    get,
    mm,
    put,
    put_row,
    row,
    scalar,
    shrunk_back,
    square,
    tile,
    unit_back,
)

# The gradients' area, laid out as the chunk's: what all memories add to, then one memory's.
G_KEY, G_VALUE, G_X, G_READS, G_U, G_U2, G_A_K, G_READ, G_RECALLED, G_TARGET = (
    tl.constexpr(n) for n in range(10)
)
# Rows that only gradients have, in the place of others.
G_S = S_K


@triton.jit
def pull_back(X, G, W, O, GW, GO, V: tl.constexpr, K: tl.constexpr, C: tl.constexpr, B: tl.constexpr):
    """W' = keep W + (1 - keep) O, backwards."""
    keep, g = tl.load(row(X, GAMMA, B) + C - 1), get(GW, V, K)
    by_keep = tl.sum(g * (get(W, V, K) - get(O, V, K)))
    add_row(row(G, GAMMA, B), tl.where(tl.arange(0, B) == C - 1, by_keep, 0.0), B)
    add(GO, (1 - keep) * g, V, K)
    put(GW, keep * g, V, K)


@triton.jit(noinline=True)
def end_back2(
    X, G, W, O, GW, GO,
    D: tl.constexpr, M: tl.constexpr, C: tl.constexpr, B: tl.constexpr, L: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """The hidden layer at the chunk's end, backwards: sets the gradient at its columns."""
    u, end, g = hidden_columns(X, M, B, L), scalar(X, END, B), get(GW, M, D)
    by_u = mm(g, get(tile(X, KEY, L, B), D, B), P)
    add_row(row(G, END, B), tl.sum(by_u * u, 0), B)
    put(tile(G, G_U2, L, B), by_u * end[None, :], M, B)
    add(tile(G, G_KEY, L, B), mm(tl.trans(g), u * end[None, :], P), D, B)
    pull_back(X, G, W, O, GW, GO, M, D, C, B)


@triton.jit(noinline=True)
def end_back1(
    X, G, W, O, GW, GO,
    D: tl.constexpr, M: tl.constexpr, C: tl.constexpr, B: tl.constexpr, L: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """The output layer's: sets the gradients at its columns and the hidden keys."""
    u, end, g = get(tile(X, U, L, B), D, B), scalar(X, END, B), get(GW, D, M)
    by_u = mm(g, get(tile(X, A_K, L, B), M, B), P)
    add_row(row(G, END, B), tl.sum(by_u * u, 0), B)
    put(tile(G, G_U, L, B), by_u * end[None, :], D, B)
    put(tile(G, G_A_K, L, B), mm(tl.trans(g), u * end[None, :], P), M, B)
    pull_back(X, G, W, O, GW, GO, D, M, C, B)


@triton.jit(noinline=True)
def solve_back(X, G, D: tl.constexpr, M: tl.constexpr, B: tl.constexpr, L: tl.constexpr, P: tl.constexpr):
    """The triangular system, backwards: G_U becomes the gradient at its right side."""
    b, gram, between = scalar(X, BETA, B), get(square(X, GRAM, B), B, B), get(square(X, BETWEEN, B), B, B)
    g_right = mm(get(tile(G, G_U, L, B), D, B), tl.trans(get(square(X, SOLVED, B), B, B)), P)
    tl.debug_barrier()
    put(tile(G, G_U, L, B), g_right, D, B)
    g_L = -mm(tl.trans(get(tile(X, U, L, B), D, B)), g_right, P)
    put_row(row(G, BETA, B), tl.sum(gram * between * g_L, 0), B)
    add(square(G, BETWEEN, B), g_L * gram * b[None, :], B, B)
    g_gram = g_L * between * b[None, :]
    a_k = get(tile(X, A_K, L, B), M, B)
    add(tile(G, G_A_K, L, B), mm(a_k, g_gram + tl.trans(g_gram), P), M, B)


@triton.jit(noinline=True)
def right_back(X, G, D: tl.constexpr, B: tl.constexpr, L: tl.constexpr):
    """Its right side b ((1 - before) moved - error), backwards: G_U becomes minus the gradient at the error."""
    b, gone, g = scalar(X, BETA, B), 1 - scalar(X, BEFORE, B), get(tile(G, G_U, L, B), D, B)
    by_moved = tl.sum(g * get(tile(X, MOVED, L, B), D, B), 0)
    by_error = tl.sum(g * get(tile(X, ERROR, L, B), D, B), 0)
    add_row(row(G, BETA, B), by_moved * gone - by_error, B)
    add_row(row(G, BEFORE, B), -b * by_moved, B)
    g = g * b[None, :]
    put(tile(G, G_U, L, B), g, D, B)
    put(tile(G, G_RECALLED, L, B), g * gone[None, :], D, B)


@triton.jit(noinline=True)
def moved_back(
    X, G, O1, GO1, D: tl.constexpr, M: tl.constexpr, B: tl.constexpr, L: tl.constexpr, P: tl.constexpr
):
    """What moved away from O1 a_k, backwards."""
    g = get(tile(G, G_RECALLED, L, B), D, B)
    add(GO1, -mm(g, tl.trans(get(tile(X, A_K, L, B), M, B)), P), D, M)
    add(tile(G, G_A_K, L, B), -mm(tl.trans(get(O1, D, M)), g, P), M, B)


@triton.jit(noinline=True)
def inner_back(
    X, G, W1, GW1, slope, D: tl.constexpr, M: tl.constexpr, B: tl.constexpr, L: tl.constexpr, P: tl.constexpr
):
    """The inner gradient, backwards; G_TARGET is set to minus the gradient at the error."""
    a_k, s_k, r_k = get(tile(X, A_K, L, B), M, B), scalar(X, S_K, B), scalar(X, R_K, B)
    y, rate = get(tile(X, INNER, L, B), M, B), -scalar(X, ETA, B)
    g_back, g_s, felt = clipped_back(get(tile(G, G_U2, L, B), M, B), y, r_k, a_k, s_k, rate, slope)
    put_row(row(G, G_S, B), g_s, B)
    put_row(row(G, ETA, B), -felt, B)
    put(tile(G, G_TARGET, L, B), get(tile(G, G_U, L, B), D, B) - mm(get(W1, D, M), g_back, P), D, B)
    add(GW1, mm(get(tile(X, ERROR, L, B), D, B), tl.trans(g_back), P), D, M)


@triton.jit(noinline=True)
def target_back(X, G, D: tl.constexpr, B: tl.constexpr, L: tl.constexpr):
    """The error recalled - target + k, backwards: G_RECALLED and (at h, of norm 1 the target) G_TARGET."""
    g = get(tile(G, G_TARGET, L, B), D, B)
    add(tile(G, G_KEY, L, B), -g, D, B)
    add(tile(G, G_RECALLED, L, B), -g, D, B)
    g_h = unit_back(g, get(tile(X, TARGET, L, B), D, B), scalar(X, TARGET_INVERSE, B))
    put(tile(G, G_TARGET, L, B), g_h, D, B)
    add(tile(G, G_VALUE, L, B), g_h, D, B)


@triton.jit(noinline=True)
def recall_back(
    X, G, W1, GW1, slope, D: tl.constexpr, M: tl.constexpr, B: tl.constexpr, L: tl.constexpr, P: tl.constexpr
):
    """W1's products with hidden keys and values, backwards; on to z, in the hidden ones' place."""
    weights = tl.trans(get(W1, D, M))
    a_k, g = get(tile(X, A_K, L, B), M, B), get(tile(G, G_RECALLED, L, B), D, B)
    g_W = mm(g, tl.trans(a_k), P)
    g_a = get(tile(G, G_A_K, L, B), M, B) + mm(weights, g, P)
    g_z = shrunk_back(g_a, a_k, scalar(X, S_K, B), scalar(G, G_S, B), slope)
    tl.debug_barrier()
    put(tile(G, G_A_K, L, B), g_z, M, B)
    a_v, g, s_v = get(tile(X, A_V, L, B), M, B), get(tile(G, G_TARGET, L, B), D, B), scalar(X, S_V, B)
    add(GW1, g_W + mm(g, tl.trans(a_v), P), D, M)
    put(tile(G, G_READ, L, B), shrunk_back(mm(weights, g, P), a_v, s_v, 0 * s_v, slope), M, B)


@triton.jit(noinline=True)
def hidden_back(
    X, G, W2, GW2, D: tl.constexpr, M: tl.constexpr, B: tl.constexpr, L: tl.constexpr, P: tl.constexpr
):
    """W2's products with keys and values, backwards."""
    weights, g_k, g_v = (
        tl.trans(get(W2, M, D)),
        get(tile(G, G_A_K, L, B), M, B),
        get(tile(G, G_READ, L, B), M, B),
    )
    add(tile(G, G_KEY, L, B), mm(weights, g_k, P), D, B)
    add(tile(G, G_VALUE, L, B), mm(weights, g_v, P), D, B)
    g_W = mm(g_k, tl.trans(get(tile(X, KEY, L, B), D, B)), P)
    add(GW2, g_W + mm(g_v, tl.trans(get(tile(X, VALUE, L, B), D, B)), P), M, D)


@triton.jit(noinline=True)
def strengths_back(X, G, SCALE, SHARE, G_SCALE, G_SHARE, eta_max, B: tl.constexpr):
    """A memory's own strengths, backwards: SIGMA and OUTPUT of G add up over memories."""
    g_eta, g_b = scalar(G, ETA, B), scalar(G, BETA, B) * scalar(X, ALPHA, B)
    scale, share = tl.load(SCALE), tl.load(SHARE)
    add_row(row(G, SIGMA, B), g_eta * eta_max * scale, B)
    add_row(row(G, OUTPUT, B), g_b * share, B)
    tl.store(G_SCALE, tl.load(G_SCALE) + tl.sum(g_eta * scalar(X, SIGMA, B)) * eta_max)
    tl.store(G_SHARE, tl.load(G_SHARE) + tl.sum(g_b * scalar(X, OUTPUT, B)))


@triton.jit
def write_back(
    X, G, W2, W1, O1, GW2, GW1, GO1, SCALE, SHARE, G_SCALE, G_SHARE, eta_max, slope,
    D: tl.constexpr, M: tl.constexpr, B: tl.constexpr, L: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """A memory's writes, backwards, from the gradients at its columns and hidden keys."""
    solve_back(X, G, D, M, B, L, P)
    tl.debug_barrier()
    right_back(X, G, D, B, L)
    tl.debug_barrier()
    moved_back(X, G, O1, GO1, D, M, B, L, P)
    inner_back(X, G, W1, GW1, slope, D, M, B, L, P)
    tl.debug_barrier()
    target_back(X, G, D, B, L)
    tl.debug_barrier()
    recall_back(X, G, W1, GW1, slope, D, M, B, L, P)
    tl.debug_barrier()
    hidden_back(X, G, W2, GW2, D, M, B, L, P)
    strengths_back(X, G, SCALE, SHARE, G_SCALE, G_SHARE, eta_max, B)
    tl.debug_barrier()
