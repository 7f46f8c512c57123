"""What trains in bf16, and what stays in float32 (or float64) whatever autocast does around it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def full_precision(x: Tensor) -> Iterator[Callable[[Tensor], Tensor]]:
    """Autocast off inside; yields a cast that lifts half precision to float32 and leaves float64 alone."""
    with torch.autocast(x.device.type, enabled=False):
        yield lambda tensor: tensor if tensor.dtype == torch.float64 else tensor.float()


def for_products(x: Tensor) -> Tensor:
    """Return x as autocast hands it to a product: cast once where several products take it."""
    kind = x.device.type
    if not torch.is_autocast_enabled(kind) or x.dtype == torch.float64:
        return x
    return x.to(torch.get_autocast_dtype(kind))


def half_products(x: Tensor) -> bool:
    """Whether autocast multiplies in bfloat16 here: then memories may, with states and sums in float32."""
    kind = x.device.type
    return torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.bfloat16


def pick_precision(name: str, device: torch.device) -> str:
    """`auto` takes bf16 where the hardware multiplies it."""
    if name != "auto":
        return name
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if fast else "fp32"
