"""Titans' memory, backward: what a chunk's end and its reads took of weights and columns; see `titans_backward.py`."""

import triton
import triton.language as tl

from hope_model.ops.triton.jit.tiles import (
    add,
    add_row,
    get,
    mm,
    put,
    put_tokens,
    row,
    scalar,
    shrunk_back,
    square,
    tile,
)
from hope_model.ops.triton.jit.titans_forward import (
    A_K,
    A_Q,
    END_U,
    END_W,
    FADE_GAMMA,
    GAMMA,
    KEY,
    PUSH,
    QUERY,
    S_K,
    S_Q,
    START,
    WITHIN,
    WRITTEN,
    U,
    written1,
    written2,
)

# The gradients' area, laid out as the chunk's: tiles of keys, columns and reads; squares and rows by the same names.
G_KEY, G_A_K, G_W1, G_W2, G_U, G_READ, G_O, G_AIM = (tl.constexpr(n) for n in range(8))
# Rows that only gradients have, in the place of others.
G_S = S_K


@triton.jit(noinline=True)
def end_back1(
    X, G, GS, GP, D: tl.constexpr, M: tl.constexpr, B: tl.constexpr, L: tl.constexpr, P: tl.constexpr
):
    """What S and P took of the output layer's columns, backwards: sets the gradients at w1 and u."""
    a_k, w = get(tile(X, A_K, L, B), M, B), written1(X, D, B, L)
    by_S = mm(get(GS, D, M), a_k, P)
    add_row(row(G, END_U, B), tl.sum(by_S * get(tile(X, U, L, B), D, B), 0), B)
    add_row(row(G, END_W, B), tl.sum(by_S * w, 0), B)
    put(tile(G, G_U, L, B), by_S * scalar(X, END_U, B)[None, :], D, B)
    g_w = by_S * scalar(X, END_W, B)[None, :]
    by_P = mm(get(GP, D, M), a_k, P)
    add_row(row(G, PUSH, B), tl.sum(by_P * w, 0), B)
    put(tile(G, G_W1, L, B), g_w + by_P * scalar(X, PUSH, B)[None, :], D, B)


@triton.jit(noinline=True)
def end_back1_keys(
    X, G, GS, GP, D: tl.constexpr, M: tl.constexpr, B: tl.constexpr, L: tl.constexpr, P: tl.constexpr
):
    """The same: sets the gradient at a_k."""
    g_key = mm(tl.trans(get(GP, D, M)), written1(X, D, B, L) * scalar(X, PUSH, B)[None, :], P)
    sent = written1(X, D, B, L) * scalar(X, END_W, B)[None, :]
    sent += get(tile(X, U, L, B), D, B) * scalar(X, END_U, B)[None, :]
    put(tile(G, G_A_K, L, B), g_key + mm(tl.trans(get(GS, D, M)), sent, P), M, B)


@triton.jit(noinline=True)
def end_back2(
    X, G, GS, GP, D: tl.constexpr, M: tl.constexpr, B: tl.constexpr, L: tl.constexpr, P: tl.constexpr
):
    """The hidden layer's: sets the gradient at w2."""
    k, w = get(tile(X, KEY, L, B), D, B), written2(X, M, B, L)
    by_S = mm(get(GS, M, D), k, P)
    add_row(row(G, END_W, B), tl.sum(by_S * w, 0), B)
    g_w = by_S * scalar(X, END_W, B)[None, :]
    by_P = mm(get(GP, M, D), k, P)
    add_row(row(G, PUSH, B), tl.sum(by_P * w, 0), B)
    put(tile(G, G_W2, L, B), g_w + by_P * scalar(X, PUSH, B)[None, :], M, B)


@triton.jit(noinline=True)
def end_back2_keys(
    X, G, GS, GP, D: tl.constexpr, M: tl.constexpr, B: tl.constexpr, L: tl.constexpr, P: tl.constexpr
):
    """The same: sets the gradient at k."""
    w = written2(X, M, B, L)
    g_key = mm(tl.trans(get(GS, M, D)), w * scalar(X, END_W, B)[None, :], P)
    put(tile(G, G_KEY, L, B), g_key + mm(tl.trans(get(GP, M, D)), w * scalar(X, PUSH, B)[None, :], P), D, B)


@triton.jit
def kept_back(
    X, G, S, P_, O, GS, GP, GO, g_o, x,
    V: tl.constexpr, K: tl.constexpr, C: tl.constexpr, B: tl.constexpr, L: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """S, P and O, backwards: what is left of them at the chunk's end, and what reads x of them gave."""
    gamma, start = scalar(X, GAMMA, B), scalar(X, START, B)
    c, x_T = tl.arange(0, B), tl.trans(x)
    end_gamma, end_start = tl.load(row(X, GAMMA, B) + C - 1), tl.load(row(X, START, B) + C - 1)
    end_keep = tl.load(row(X, FADE_GAMMA, B) + C - 1)
    g_S, g_P, weights, momentum, first = (
        get(GS, V, K),
        get(GP, V, K),
        get(S, V, K),
        get(P_, V, K),
        get(O, V, K),
    )
    by_gamma, by_start = tl.sum(g_S * (weights - first)), tl.sum(g_S * momentum)
    by_keep = tl.sum(g_P * momentum)
    add_row(row(G, GAMMA, B), tl.where(c == C - 1, by_gamma, 0.0), B)
    add_row(row(G, START, B), tl.where(c == C - 1, by_start, 0.0), B)
    add_row(row(G, FADE_GAMMA, B), tl.where(c == C - 1, by_keep, 0.0), B)
    add(GO, (1 - end_gamma) * g_S + mm(g_o * (1 - gamma)[None, :], x_T, P), V, K)
    put(GP, end_start * g_S + end_keep * g_P + mm(g_o * start[None, :], x_T, P), V, K)
    put(GS, end_gamma * g_S + mm(g_o * gamma[None, :], x_T, P), V, K)


@triton.jit(noinline=True)
def kept_back1(
    X, G, S, P_, O, GS, GP, GO,
    D: tl.constexpr, M: tl.constexpr, C: tl.constexpr, B: tl.constexpr, L: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    kept_back(
        X, G, S, P_, O, GS, GP, GO,
        get(tile(G, G_O, L, B), D, B), get(tile(X, A_Q, L, B), M, B), D, M, C, B, L, P,
    )  # fmt: skip


@triton.jit(noinline=True)
def kept_back2(
    X, G, S, P_, O, GS, GP, GO,
    D: tl.constexpr, M: tl.constexpr, C: tl.constexpr, B: tl.constexpr, L: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    kept_back(
        X, G, S, P_, O, GS, GP, GO,
        get(tile(G, G_READ, L, B), M, B), get(tile(X, QUERY, L, B), D, B), M, D, C, B, L, P,
    )  # fmt: skip


@triton.jit
def recalled_back(
    X, G, S, P_, O, g_o, x, V: tl.constexpr, K: tl.constexpr, B: tl.constexpr, L: tl.constexpr,
    P: tl.constexpr,
):  # fmt: skip
    """Gradient at x of gamma S x + start P x + (1 - gamma) O x."""
    gamma, start = scalar(X, GAMMA, B), scalar(X, START, B)
    by_O = mm(tl.trans(get(O, V, K)), g_o, P)
    moved = mm(tl.trans(get(S, V, K)), g_o, P) - by_O
    by_P = mm(tl.trans(get(P_, V, K)), g_o, P)
    add_row(row(G, GAMMA, B), tl.sum(x * moved, 0), B)
    add_row(row(G, START, B), tl.sum(x * by_P, 0), B)
    return by_O + gamma[None, :] * moved + start[None, :] * by_P


@triton.jit(noinline=True)
def recalled_back1(
    X, G, S, P_, O, D: tl.constexpr, M: tl.constexpr, B: tl.constexpr, L: tl.constexpr, P: tl.constexpr
):
    g_x = recalled_back(
        X, G, S, P_, O, get(tile(G, G_O, L, B), D, B), get(tile(X, A_Q, L, B), M, B), D, M, B, L, P
    )
    put(tile(G, G_READ, L, B), g_x, M, B)


@triton.jit
def match_back(
    X, G, WHICH: tl.constexpr, match, columns, g_o, B: tl.constexpr, L: tl.constexpr, P: tl.constexpr
):
    """Columns (match reach), backwards: gradients at match and columns; adds that at reach."""
    decay = get(square(X, WHICH, B), B, B)
    g_felt = mm(tl.trans(columns), g_o, P)
    add(square(G, WHICH, B), g_felt * match, B, B)
    return g_felt * decay, mm(g_o, tl.trans(match * decay), P)


@triton.jit(noinline=True)
def read_back1(
    X, G, slope, D: tl.constexpr, M: tl.constexpr, B: tl.constexpr, L: tl.constexpr, P: tl.constexpr
):
    """The output layer's reads, backwards, through its columns; and on to z."""
    g_o, a_k, a_q = (
        get(tile(G, G_O, L, B), D, B),
        get(tile(X, A_K, L, B), M, B),
        get(tile(X, A_Q, L, B), M, B),
    )
    match = mm(tl.trans(a_k), a_q, P)
    g_match, g_w = match_back(X, G, WRITTEN, match, written1(X, D, B, L), g_o, B, L, P)
    add(tile(G, G_W1, L, B), g_w, D, B)
    by_u, g_u = match_back(X, G, WITHIN, match, get(tile(X, U, L, B), D, B), g_o, B, L, P)
    add(tile(G, G_U, L, B), g_u, D, B)
    g_match += by_u
    add(tile(G, G_A_K, L, B), mm(a_q, tl.trans(g_match), P), M, B)
    g_a_q = get(tile(G, G_READ, L, B), M, B) + mm(a_k, g_match, P)
    s_q = scalar(X, S_Q, B)
    g_z = shrunk_back(g_a_q, a_q, s_q, tl.zeros_like(s_q), slope)
    tl.debug_barrier()
    put(tile(G, G_READ, L, B), g_z, M, B)


@triton.jit(noinline=True)
def read_back2(
    X, G, S, P_, O, G_Q, n, t, T,
    D: tl.constexpr, M: tl.constexpr, C: tl.constexpr, B: tl.constexpr, L: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """The hidden layer's reads, backwards, to the queries."""
    g_z, k, q = (
        get(tile(G, G_READ, L, B), M, B),
        get(tile(X, KEY, L, B), D, B),
        get(tile(X, QUERY, L, B), D, B),
    )
    g_match, g_w = match_back(X, G, WRITTEN, mm(tl.trans(k), q, P), written2(X, M, B, L), g_z, B, L, P)
    add(tile(G, G_W2, L, B), g_w, M, B)
    add(tile(G, G_KEY, L, B), mm(q, tl.trans(g_match), P), D, B)
    g_q = (
        get(tile(G, G_O, L, B), D, B)
        + mm(k, g_match, P)
        + recalled_back(X, G, S, P_, O, g_z, q, M, D, B, L, P)
    )
    put_tokens(G_Q, g_q, n, t, T, D, C, B)
