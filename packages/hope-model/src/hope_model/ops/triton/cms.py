"""A CMS level's write by `jit/cms.py`; here no Triton is needed."""

import torch
from torch import Tensor

from hope_model.ops.triton.launch import available, start

TILE = 4096  # elements of a program: sixteen a thread


def write_applies(theta: Tensor, gradient: Tensor) -> bool:
    """Whether Triton takes these."""
    floats = {torch.float32, torch.bfloat16}
    return {theta.dtype, gradient.dtype} <= floats and available(theta, gradient)


def written(
    delta_BOI: Tensor | None,
    gradient_BOI: Tensor,
    total_BOI: Tensor | None,
    theta_OI: Tensor,
    *,
    rate: float,
    retention: float,
    bound: float,
) -> tuple[Tensor, Tensor]:
    """`cms_written` of one matrix by gradient + total: its delta, and theta + delta in the gradient's precision."""
    gradient_BOI, theta_OI = gradient_BOI.contiguous(), theta_OI.contiguous()
    B, size = len(gradient_BOI), theta_OI.numel()
    tiles = -(-size // TILE)
    new = torch.empty_like(gradient_BOI, dtype=torch.float32)
    weights, sums = torch.empty_like(gradient_BOI), new.new_empty(B * tiles, 2)
    delta, total = (new if x is None else x.contiguous() for x in (delta_BOI, total_BOI))
    constants = {"FIRST": int(delta_BOI is None), "MORE": int(total_BOI is not None), "B": TILE}
    constants["S"] = 1 << (tiles - 1).bit_length()
    shape = [B * tiles, tiles, size]
    start(
        "cms_accumulate",
        [delta, gradient_BOI, total, theta_OI, new, sums],
        shape,
        [rate, retention],
        constants,
    )
    start("cms_bound", [new, theta_OI, weights, sums], shape, [bound, 0.0], constants)
    return new, weights
