"""A CMS level's write, two launches a matrix: accumulate and take norms, then bound and add the slow weights.

The mathematics of `cms_written`. A program has a tile of one sequence's matrix; partial sums of squares are stored, not
added at once, so that results do not depend on who comes first.
"""

import triton
import triton.language as tl


@triton.jit
def cms_accumulate(
    DELTA, GRADIENT, TOTAL, THETA, NEW, SUMS, tiles, size, step, retention,
    FIRST: tl.constexpr, MORE: tl.constexpr, B: tl.constexpr, S: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """NEW = retention DELTA - step (GRADIENT + TOTAL); no DELTA if FIRST, TOTAL only if MORE. SUMS: of NEW², THETA²."""
    program = tl.program_id(0)
    i = (program % tiles) * B + tl.arange(0, B)
    at, on = (program // tiles).to(tl.int64) * size + i, i < size
    g = tl.load(GRADIENT + at, on, 0.0).to(tl.float32)
    if MORE:
        g += tl.load(TOTAL + at, on, 0.0)
    new = -step * g
    if not FIRST:
        new += retention * tl.load(DELTA + at, on, 0.0)
    theta = tl.load(THETA + i, on, 0.0).to(tl.float32)
    tl.store(NEW + at, new, on)
    tl.store(SUMS + 2 * program, tl.sum(new * new, 0))
    tl.store(SUMS + 2 * program + 1, tl.sum(theta * theta, 0))


@triton.jit
def cms_bound(
    NEW, THETA, WEIGHTS, SUMS, tiles, size, bound, ignored,
    FIRST: tl.constexpr, MORE: tl.constexpr, B: tl.constexpr, S: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """NEW shrunk to a norm of `bound` (0: none) times THETA's, and WEIGHTS = THETA + NEW."""
    program = tl.program_id(0)
    n = (program // tiles).to(tl.int64)
    s = tl.arange(0, S)
    sums = SUMS + 2 * (n * tiles + s)
    norm = tl.sqrt(tl.sum(tl.load(sums, s < tiles, 0.0), 0))
    largest = bound * tl.sqrt(tl.sum(tl.load(sums + 1, s < tiles, 0.0), 0))
    share = tl.where(bound > 0, tl.minimum(largest / tl.maximum(norm, 1e-30), 1.0), 1.0)
    i = (program % tiles) * B + tl.arange(0, B)
    on = i < size
    new = tl.load(NEW + n * size + i, on, 0.0) * share
    tl.store(NEW + n * size + i, new, on)
    weights = tl.load(THETA + i, on, 0.0).to(tl.float32) + new
    tl.store(WEIGHTS + n * size + i, weights.to(WEIGHTS.dtype.element_ty), on)
