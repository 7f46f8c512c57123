"""Self-modifying Titans, backward: keys, values and gates that memories make (see `self_modifying_backward.py`)."""

import triton
import triton.language as tl

from hope_model.ops.triton.jit.self_modifying_forward import (
    ALPHA,
    HIDDEN,
    KEY,
    KEY_INVERSE,
    S_HIDDEN,
    SIGMA,
    VALUE,
    X_,
)
from hope_model.ops.triton.jit.self_modifying_writes_back import G_KEY, G_VALUE, G_X
from hope_model.ops.triton.jit.tiles import add, add_row, get, mm, put, scalar, shrunk_back, tile, unit_back


@triton.jit(noinline=True)
def unit_keys_back(X, G, READERS, D: tl.constexpr, B: tl.constexpr, L: tl.constexpr):
    """Keys and values before they got norm 1; G_X begins with what reaches x beside hidden units."""
    g_k = unit_back(get(tile(G, G_KEY, L, B), D, B), get(tile(X, KEY, L, B), D, B), scalar(X, KEY_INVERSE, B))
    g_v = unit_back(
        get(tile(G, G_VALUE, L, B), D, B), get(tile(X, VALUE, L, B), D, B), scalar(X, KEY_INVERSE + 1, B)
    )
    d = tl.arange(0, D)
    g_x = g_k + g_v + tl.load(READERS + d)[:, None] * scalar(G, SIGMA, B)[None, :]
    tl.debug_barrier()
    put(tile(G, G_KEY, L, B), g_k, D, B)
    put(tile(G, G_VALUE, L, B), g_v, D, B)
    put(tile(G, G_X, L, B), g_x + tl.load(READERS + D + d)[:, None] * scalar(G, ALPHA, B)[None, :], D, B)


@triton.jit
def project_hidden_back(
    X, G, W2, GW2, WHICH: tl.constexpr, g_a, slope,
    D: tl.constexpr, M: tl.constexpr, B: tl.constexpr, L: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    s = scalar(X, S_HIDDEN + WHICH, B)
    g_z = shrunk_back(g_a, get(tile(X, HIDDEN + WHICH, L, B), M, B), s, 0 * s, slope)
    add(GW2, mm(g_z, tl.trans(get(tile(X, X_, L, B), D, B)), P), M, D)
    add(tile(G, G_X, L, B), mm(tl.trans(get(W2, M, D)), g_z, P), D, B)


@triton.jit(noinline=True)
def project_back(
    X, G, W2, W1, GW2, GW1, WHICH: tl.constexpr, slope,
    D: tl.constexpr, M: tl.constexpr, B: tl.constexpr, L: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Keys or values, backwards."""
    g = get(tile(G, G_KEY + WHICH, L, B), D, B)
    add(GW1, mm(g, tl.trans(get(tile(X, HIDDEN + WHICH, L, B), M, B)), P), D, M)
    project_hidden_back(X, G, W2, GW2, WHICH, mm(tl.trans(get(W1, D, M)), g, P), slope, D, M, B, L, P)


@triton.jit(noinline=True)
def project_gate_back(
    X, G, W2, W1, GW2, GW1, READER, G_READER, WHICH: tl.constexpr, RAW: tl.constexpr, slope,
    D: tl.constexpr, M: tl.constexpr, B: tl.constexpr, L: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """A memory that gives a scalar, backwards."""
    d, g = tl.arange(0, D), scalar(G, RAW, B)
    reader = tl.load(READER + d)[:, None]
    g_of_hidden = tl.sum(get(tile(X, HIDDEN + WHICH, L, B), M, B) * g[None, :], 1)[None, :]
    weights = get(W1, D, M)
    g_reader = tl.sum(weights * g_of_hidden, 1) + tl.sum(get(tile(X, X_, L, B), D, B) * g[None, :], 1)
    of_hidden = tl.sum(reader * weights, 0)
    add(GW1, reader * g_of_hidden, D, M)
    add_row(G_READER, g_reader, D)
    project_hidden_back(X, G, W2, GW2, WHICH, of_hidden[:, None] * g[None, :], slope, D, M, B, L, P)
