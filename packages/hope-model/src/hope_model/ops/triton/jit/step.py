"""One token of every sequence: what a stream that writes text does between two tokens, one launch a layer's part.

Programs hold a memory's whole matrices, so products with one vector are sums along rows or columns. All arithmetic is
in the precision of states. Letters: B sequences, H heads, N = B H, R memories, D head width, M hidden width.
"""

import triton
import triton.language as tl

from hope_model.ops.triton.jit.tiles import NORM_EPS, SOFTENING, get, put, sloped


@triton.jit
def vector(X, at, size: tl.constexpr, F: tl.constexpr):
    return tl.load(X + at + tl.arange(0, size)).to(F)


@triton.jit
def times(W, x):
    """W x."""
    return tl.sum(W * x[None, :], 1)


@triton.jit
def unit(x):
    return x * tl.rsqrt(tl.sum(x * x, 0) + NORM_EPS)


@triton.jit
def sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def hidden(W2, x, slope):
    """Shrunk activation and its factor."""
    z = times(W2, x)
    phi = sloped(z, z, slope)
    s = tl.rsqrt(tl.sum(phi * phi, 0) + SOFTENING)
    return phi * s, s


@triton.jit
def memory(W2, W1, x, slope):
    """M(x)."""
    a, _ = hidden(W2, x, slope)
    return x + times(W1, a)


@triton.jit
def inner_write(W1, error, a, s, slope):
    """The inner gradient at the hidden layer, clipped softly."""
    x = sloped(tl.sum(W1 * error[:, None], 0) * s, a, slope)
    return x * tl.rsqrt(1 + tl.sum(x * x, 0))


@triton.jit
def gated(o, GATE, NORM, Y, n, D: tl.constexpr, F: tl.constexpr):
    """A head's read, normed, times silu(gate)."""
    gate = vector(GATE, n * D, D, F)
    o *= tl.rsqrt(tl.sum(o * o, 0) / D + NORM_EPS) * vector(NORM, 0, D, F)
    tl.store(Y + n * D + tl.arange(0, D), (o * gate * sigmoid(gate)).to(Y.dtype.element_ty))


@triton.jit
def step_self_modifying(
    W2, XS, Q, OUTPUT, GATE, W1, S2, S1, O2, O1, ETA, ETA_BIAS, SCALE, ALPHA, ALPHA_BIAS, SHARE, NORM,
    Y, W2_NEW, W1_NEW, ETAS, ALPHAS, H, eta_max, slope,
    R: tl.constexpr, D: tl.constexpr, M: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """One head's token: memories S at the chunk's start project and make targets, W are written, the last is read."""
    F: tl.constexpr = W2.dtype.element_ty
    size: tl.constexpr = M * D
    n = tl.program_id(0).to(tl.int64)
    h = n % H
    at, first = n * R * size, h * R * size
    x, q = unit(vector(XS, n * D, D, F)), unit(vector(Q, n * D, D, F))
    k = unit(memory(get(S2 + at, M, D), get(S1 + at, D, M), x, slope))
    i = at + size
    v = unit(memory(get(S2 + i, M, D), get(S1 + i, D, M), x, slope))
    i += size
    raw = tl.sum(memory(get(S2 + i, M, D), get(S1 + i, D, M), x, slope) * vector(ETA, h * D, D, F), 0)
    eta = eta_max * sigmoid(raw + tl.load(ETA_BIAS + h).to(F))
    i += size
    raw = tl.sum(memory(get(S2 + i, M, D), get(S1 + i, D, M), x, slope) * vector(ALPHA, h * D, D, F), 0)
    keep = sigmoid(raw + tl.load(ALPHA_BIAS + h).to(F))
    tl.store(ETAS + n, eta)
    tl.store(ALPHAS + n, keep)
    strength = 2 * keep * sigmoid(tl.load(OUTPUT + n).to(F))
    for r in range(R):
        i, o = at + r * size, first + r * size
        W = get(S1 + i, D, M)
        a, s = hidden(get(S2 + i, M, D), k, slope)
        target = unit(memory(get(S2 + i, M, D), W, v, slope))
        inner = inner_write(W, k + times(W, a) - target, a, s, slope)
        rate = 2 * eta * sigmoid(tl.load(SCALE + h * R + r).to(F))
        share = sigmoid(tl.load(SHARE + h * (R - 1) + r, r < R - 1, 0.0).to(F))
        b = strength * tl.where(r < R - 1, share, 1.0)
        W, pull = get(W2 + i, M, D), get(O2 + o, M, D).to(F)
        W2_r = pull + keep * (W - pull) - (rate * inner)[:, None] * k[None, :]
        W, pull = get(W1 + i, D, M), get(O1 + o, D, M).to(F)
        W1_r = pull + keep * (W - pull) + (b * (target - k - times(W, a)))[:, None] * a[None, :]
        put(W2_NEW + i, W2_r, M, D)
        put(W1_NEW + i, W1_r, D, M)
        if r == R - 1:
            gated(memory(W2_r, W1_r, q, slope), GATE, NORM, Y, n, D, F)


@triton.jit
def projections(QKV, n, H, D: tl.constexpr, F: tl.constexpr):
    """A head's q and k of norm 1, and v, after their silu."""
    at = (n // H) * 3 * H * D + (n % H) * D
    q, k, v = vector(QKV, at, D, F), vector(QKV, at + H * D, D, F), vector(QKV, at + 2 * H * D, D, F)
    return unit(q * sigmoid(q)), unit(k * sigmoid(k)), v * sigmoid(v)


@triton.jit
def step_deltanet(
    S, QKV, RETENTION, BIAS, BETA, GATE, NORM, Y, NEW, ALPHAS, H, D: tl.constexpr, P: tl.constexpr
):
    """One head's token of the gated delta rule."""
    F: tl.constexpr = S.dtype.element_ty
    n = tl.program_id(0).to(tl.int64)
    q, k, v = projections(QKV, n, H, D, F)
    keep = sigmoid(tl.load(RETENTION + n).to(F) + tl.load(BIAS + n % H).to(F))
    b = 2 * keep * sigmoid(tl.load(BETA + n).to(F))
    old = get(S + n * D * D, D, D)
    new = keep * old + (b * (v - times(old, k)))[:, None] * k[None, :]
    put(NEW + n * D * D, new, D, D)
    tl.store(ALPHAS + n, keep)
    gated(times(new, q), GATE, NORM, Y, n, D, F)


@triton.jit
def step_titans(
    W2, QKV, RETENTION, BIAS, RAW, GATE, W1, S2, S1, P2, P1, O2, O1, NORM,
    Y, W2_NEW, W1_NEW, P2_NEW, P1_NEW, ETAS, ALPHAS, H, eta_max, slope,
    D: tl.constexpr, M: tl.constexpr, UNIT: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """One head's token of Titans' memory with momentum; RAW: eta, output strength and theta before their sigmoids."""
    F: tl.constexpr = W2.dtype.element_ty
    size: tl.constexpr = M * D
    n = tl.program_id(0).to(tl.int64)
    h = n % H
    at, first = n * size, h * size
    q, k, v = projections(QKV, n, H, D, F)
    if UNIT:
        v = unit(v)
    raw = RAW + (n // H) * 3 * H + h
    eta = eta_max * sigmoid(tl.load(raw).to(F))
    theta = sigmoid(tl.load(raw + 2 * H).to(F))
    keep = sigmoid(tl.load(RETENTION + n).to(F) + tl.load(BIAS + h).to(F))
    b = 2 * keep * sigmoid(tl.load(raw + H).to(F))
    tl.store(ETAS + n, eta)
    tl.store(ALPHAS + n, keep)
    W = get(S1 + at, D, M)
    a, s = hidden(get(S2 + at, M, D), k, slope)
    inner = inner_write(W, k + times(W, a) - v, a, s, slope)
    P2_n = theta * get(P2 + at, M, D) - (1 - theta) * (eta * inner)[:, None] * k[None, :]
    P1_n = theta * get(P1 + at, D, M) + (1 - theta) * (b * (v - k))[:, None] * a[None, :]
    put(P2_NEW + at, P2_n, M, D)
    put(P1_NEW + at, P1_n, D, M)
    W, pull = get(W2 + at, M, D), get(O2 + first, M, D).to(F)
    W2_n = pull + keep * (W - pull) + P2_n
    W, pull = get(W1 + at, D, M), get(O1 + first, D, M).to(F)
    W1_n = pull + keep * (W - pull) - (b * times(W, a))[:, None] * a[None, :] + P1_n
    put(W2_NEW + at, W2_n, M, D)
    put(W1_NEW + at, W1_n, D, M)
    gated(memory(W2_n, W1_n, q, slope), GATE, NORM, Y, n, D, F)


@triton.jit
def step_convolution(X, TAIL, WEIGHT, Y, AFTER, width, J: tl.constexpr, B: tl.constexpr, P: tl.constexpr):
    """Columns [B] of one sequence: the sum over J taps, and the last J - 1 inputs."""
    tiles = tl.cdiv(width, B)
    n = (tl.program_id(0) // tiles).to(tl.int64)
    d = (tl.program_id(0) % tiles) * B + tl.arange(0, B)
    on = d < width
    x = tl.load(X + n * width + d, on, 0.0)
    y = x * tl.load(WEIGHT + (J - 1) * width + d, on, 0.0)
    for j in range(J - 1):
        at = n * (J - 1) * width + j * width + d
        old = tl.load(TAIL + at, on, 0.0)
        y += old * tl.load(WEIGHT + j * width + d, on, 0.0)
        if j > 0:
            tl.store(AFTER + at - width, old.to(AFTER.dtype.element_ty), on)
    tl.store(AFTER + n * (J - 1) * width + (J - 2) * width + d, x.to(AFTER.dtype.element_ty), on)
    tl.store(Y + n * width + d, y.to(Y.dtype.element_ty), on)


@triton.jit
def fast_rows(THETA, DELTA, X, n, i, outputs, inputs, DELTAS: tl.constexpr, F: tl.constexpr, K: tl.constexpr):
    """Rows i of (theta + delta) x."""
    total = tl.zeros(i.shape, F)
    for begin in range(0, inputs, K):
        c = begin + tl.arange(0, K)
        on = (i[:, None] < outputs) & (c[None, :] < inputs)
        at = i[:, None].to(tl.int64) * inputs + c[None, :]
        W = tl.load(THETA + at, on, 0.0).to(F)
        if DELTAS:
            W += tl.load(DELTA + n * outputs * inputs + at, on, 0.0)
        total += tl.sum(W * tl.load(X + n * inputs + c, c < inputs, 0.0).to(F)[None, :], 1)
    return total


@triton.jit
def step_cms_up(
    PHI, U, THETA, DELTA, hidden, width,
    DELTAS: tl.constexpr, I: tl.constexpr, K: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """PHI = silu((theta + delta) u), I rows a program."""
    F: tl.constexpr = PHI.dtype.element_ty
    tiles = tl.cdiv(hidden, I)
    n = (tl.program_id(0) // tiles).to(tl.int64)
    i = (tl.program_id(0) % tiles) * I + tl.arange(0, I)
    z = fast_rows(THETA, DELTA, U, n, i, hidden, width, DELTAS, F, K)
    tl.store(PHI + n * hidden + i, z * sigmoid(z), i < hidden)


@triton.jit
def step_cms_down(
    PHI, U, THETA, DELTA, X, TO, width, hidden,
    DELTAS: tl.constexpr, LAST: tl.constexpr, I: tl.constexpr, K: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """TO = u + (theta + delta) phi; if LAST without the chain's input x."""
    F: tl.constexpr = PHI.dtype.element_ty
    tiles = tl.cdiv(width, I)
    n = (tl.program_id(0) // tiles).to(tl.int64)
    i = (tl.program_id(0) % tiles) * I + tl.arange(0, I)
    y = fast_rows(THETA, DELTA, PHI, n, i, width, hidden, DELTAS, F, K)
    at, on = n * width + i, i < width
    y += tl.load(U + at, on, 0.0).to(F)
    if LAST:
        y -= tl.load(X + at, on, 0.0).to(F)
    tl.store(TO + at, y.to(TO.dtype.element_ty), on)
