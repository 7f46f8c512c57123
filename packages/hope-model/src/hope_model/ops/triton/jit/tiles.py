"""Pieces of the kernels: where tiles lie, products, decays, the triangular inverse, activations and their backwards.

As in `ops/native`, a tile is [rows, tokens]. Letters: D head width, M hidden width, C tokens of a chunk, B >= C columns
of a tile (a power of two; those beyond C are zero), P precision of products.

A kernel is a sequence of steps, functions that are not inlined: each loads tiles from a scratch area that the L2 cache
holds, and stores what it makes. So a step's registers are free for the next (as one function each kernel spilt 2 KB a
thread), and a barrier stands between any two.
"""

import triton
import triton.language as tl

from hope_model.ops.triton import areas

HEAD, SQUARES = tl.constexpr(areas.ROWS), tl.constexpr(areas.SQUARES)
SOFTENING = tl.constexpr(0.01)  # as in ops/activations.py
NORM_EPS = tl.constexpr(1e-6)


@triton.jit
def row(X, which: tl.constexpr, B: tl.constexpr):
    """The address of a row [B] in an area: rows come first, then squares [B, B], then tiles, L apart."""
    return X + which * B


@triton.jit
def square(X, which: tl.constexpr, B: tl.constexpr):
    return X + (HEAD * B + which * B * B)


@triton.jit
def tile(X, which: tl.constexpr, L: tl.constexpr, B: tl.constexpr):
    return X + (HEAD * B + SQUARES * B * B + which * L)


@triton.jit
def matrix(X, rows: tl.constexpr, columns: tl.constexpr):
    """Pointers to a [rows, columns] matrix."""
    return X + (tl.arange(0, rows)[:, None] * columns + tl.arange(0, columns)[None, :])


@triton.jit
def get(X, rows: tl.constexpr, columns: tl.constexpr):
    return tl.load(matrix(X, rows, columns))


@triton.jit
def put(X, x, rows: tl.constexpr, columns: tl.constexpr):
    tl.store(matrix(X, rows, columns), x)


@triton.jit
def add(X, x, rows: tl.constexpr, columns: tl.constexpr):
    x += tl.load(matrix(X, rows, columns))
    tl.debug_barrier()  # who stores a number need not be who loaded it
    tl.store(matrix(X, rows, columns), x)


@triton.jit
def scalar(X, which: tl.constexpr, B: tl.constexpr):
    """A row, one scalar a token."""
    return tl.load(X + which * B + tl.arange(0, B))


@triton.jit
def put_row(X, x, B: tl.constexpr):
    tl.store(X + tl.arange(0, B), x)


@triton.jit
def add_row(X, x, B: tl.constexpr):
    x += tl.load(X + tl.arange(0, B))
    tl.debug_barrier()
    tl.store(X + tl.arange(0, B), x)


@triton.jit
def tokens(X, n, t, T, rows: tl.constexpr, C: tl.constexpr, B: tl.constexpr):
    """Pointers to tokens [t, t + B) of sequence n of [N, rows, T], and which of them are the chunk's."""
    c = tl.arange(0, B)
    return X + n * rows * T + (tl.arange(0, rows)[:, None] * T + (t + c)[None, :]), c[None, :] < C


@triton.jit
def get_tokens(X, n, t, T, rows: tl.constexpr, C: tl.constexpr, B: tl.constexpr):
    at, on = tokens(X, n, t, T, rows, C, B)
    return tl.load(at, on, 0.0)


@triton.jit
def put_tokens(X, x, n, t, T, rows: tl.constexpr, C: tl.constexpr, B: tl.constexpr):
    at, on = tokens(X, n, t, T, rows, C, B)
    tl.store(at, x, on)


@triton.jit
def get_gate(X, at, C: tl.constexpr, B: tl.constexpr):
    """A chunk's scalars, from `at` on."""
    c = tl.arange(0, B)
    return tl.load(X + at + c, c < C, 0.0)


@triton.jit
def put_gate(X, x, at, C: tl.constexpr, B: tl.constexpr):
    c = tl.arange(0, B)
    tl.store(X + at + c, x, c < C)


@triton.jit
def rounded(x, bits: tl.constexpr):
    """Drop `bits` of a float32's mantissa: the interpreter multiplies exactly, tensor cores do not."""
    half: tl.constexpr = 1 << (bits - 1)
    mask: tl.constexpr = -(1 << bits)
    return ((x.to(tl.int32, bitcast=True) + half) & mask).to(tl.float32, bitcast=True)


@triton.jit
def mm(a, b, P: tl.constexpr):
    """Product of operands in the precision P (see `launch.precision`), summed in float32."""
    if P == "bf16":
        product = tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16))
    elif P == "rounded to bf16":
        product = tl.dot(rounded(a, 16), rounded(b, 16), input_precision="ieee")
    elif P == "rounded to tf32":
        product = tl.dot(rounded(a, 13), rounded(b, 13), input_precision="ieee")
    else:
        product = tl.dot(a, b, input_precision=P)
    return product


@triton.jit
def exact(a, b):
    """Product in float32, made of three in TF32: float32's own keeps whole rows in registers."""
    return tl.dot(a, b, input_precision="tf32x3")


@triton.jit
def diagonal(B: tl.constexpr):
    c = tl.arange(0, B)
    return tl.where(c[:, None] == c[None, :], 1.0, 0.0)


@triton.jit
def column(x, c: tl.constexpr, B: tl.constexpr):
    """Column c of [B, B] as [B]."""
    return tl.sum(tl.where(tl.arange(0, B)[None, :] == c, x, 0.0), 1)


@triton.jit
def inverse(L, B: tl.constexpr):
    """(I + L)^-1 of strictly upper triangular L, from inverses of diagonal blocks of 1, 2, 4, ... tokens.

    Two blocks X and Z with the corner Y between them give -X Y Z; two products do it for all pairs of a size. The
    series (I - L)(I + L^2)(I + L^4)... takes as many, but its terms cancel: for equal keys at strength 2 in float32
    its error is 131,072 where the inverse is 2.
    """
    c = tl.arange(0, B)
    apart = c[:, None] ^ c[None, :]
    X = tl.where(apart == 0, 1.0, tl.where(apart == 1, -L, 0.0))
    for level in tl.static_range(1, 6):
        if B >> level > 1:
            X -= exact(exact(X, tl.where(apart >> level == 1, L, 0.0)), X)
    return X


@triton.jit
def decays(log_a, B: tl.constexpr):
    """Before [B] = a_1 ... a_{t-1}; between [B, B] = a_{i+1} ... a_{t-1} where i < t, else 0."""
    c = tl.arange(0, B)
    total = tl.cumsum(log_a, 0)
    before = total - log_a
    later = c[:, None] < c[None, :]
    between = tl.where(later, tl.exp(tl.where(later, before[None, :] - total[:, None], 0.0)), 0.0)
    return tl.exp(before), between


@triton.jit
def decays_back(before, between, g_before, g_between):
    """Gradient at log a."""
    ends = between * g_between
    g_pre = tl.sum(ends, 0) + before * g_before
    # log a_j is in `before` of every later token, and in what is subtracted for every source from j on.
    return tl.cumsum(g_pre - tl.sum(ends, 1), 0, reverse=True) - g_pre


@triton.jit
def sloped(x, at, slope):
    """The product of x and the activation's slope where its value is `at`."""
    return tl.where(at > 0, x, x * slope)


@triton.jit
def shrunk(z, slope):
    """a = s phi(z) and s = (SOFTENING + ||phi(z)||^2)^-1/2."""
    phi = sloped(z, z, slope)
    s = tl.rsqrt(tl.sum(phi * phi, 0) + SOFTENING)
    return phi * s[None, :], s


@triton.jit
def shrunk_back(g, a, s, g_s, slope):
    """Gradient at z from those at a and s."""
    pull = tl.sum(g * a, 0) + s * g_s
    return sloped((g - a * pull[None, :]) * s[None, :], a, slope)


@triton.jit
def clipped(back, a, s, slope):
    """The inner gradient y = r x, x = s phi' back, and r = (1 + ||x||^2)^-1/2."""
    x = sloped(back * s[None, :], a, slope)
    r = tl.rsqrt(1.0 + tl.sum(x * x, 0))
    return x * r[None, :], r


@triton.jit
def clipped_back(g, y, r, a, s, rate, slope):
    """Gradients at back, s and rate from the one at rate y."""
    felt = tl.sum(g * y, 0)
    g_back = sloped((g - y * felt[None, :]) * (rate * r * s)[None, :], a, slope)
    return g_back, rate * felt * r * r / s, felt


@triton.jit
def one_minus_exp(x):
    """1 - exp(x) of x <= 0, by its series where that would cancel."""
    series = -x * (1 + x / 2 * (1 + x / 3 * (1 + x / 4 * (1 + x / 5))))
    return tl.where(x > -0.1, series, 1 - tl.exp(x))


@triton.jit
def log_sigmoid(x):
    e = tl.exp(-tl.abs(x))
    series = e * (1 - e * (1 / 2 - e * (1 / 3 - e * (1 / 4 - e * (1 / 5 - e / 6)))))
    return tl.minimum(x, 0.0) - tl.where(e < 0.05, series, tl.log(1 + e))


@triton.jit
def unit_back(g, y, inverse):
    """Gradient at x from that at y = x / ||x||."""
    return (g - y * tl.sum(g * y, 0)[None, :]) * inverse[None, :]
