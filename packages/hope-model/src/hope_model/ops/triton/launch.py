"""A Triton kernel in the place of a C++ one: the same declared tensors, checked the same way, one launch a call."""

import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from hope_model.ops.native.function import Kernel
from hope_model.ops.triton.areas import EVERY, columns

SWITCH = "HOPE_TRITON"  # 0: torch's own operations on CUDA too
WIDTHS = (16, 32, 64)  # of heads and hidden layers: wider tiles do not fit a thread's registers
LONGEST = 64  # chunk, in tokens
# Eight warps: a tile's part of a thread is small enough. `enable_fp_fusion` is Triton's default, which it warns of.
OPTIONS: dict[str, Any] = {"num_warps": 8, "num_stages": 1, "enable_fp_fusion": True}
# By torch.set_float32_matmul_precision; "highest" multiplies float32 as three products of TF32.
PRECISIONS = {"highest": "tf32x3", "high": "tf32", "medium": "bf16"}

# An operator of torch's, so that tensors without memory pass through it and launches can be counted.
OPERATOR = "hope_model::triton"
torch.library.define(
    OPERATOR,
    "(str function, Tensor(a!)[] tensors, int[] whole, float[] numbers, str[] names, int[] constants, str how) -> ()",
)


@torch.library.impl(OPERATOR, "CompositeExplicitAutograd")
def _launch(
    function: str,
    tensors: list[Tensor],
    whole: list[int],
    numbers: list[float],
    names: list[str],
    constants: list[int],
    how: str,
) -> None:
    family = function.split("_", maxsplit=1)[0]
    module = family if family in ("cms", "step") else function
    kernel = getattr(import_module(f"hope_model.ops.triton.jit.{module}"), function)
    N, *rest = whole
    options = dict(zip(names, constants, strict=True)) | {"P": how} | OPTIONS
    device = tensors[0].device
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[(N,)](*tensors, *rest, *numbers, **options)


torch.library.register_fake(OPERATOR, lambda *_: None)


@cache
def installed() -> bool:
    """Whether Triton can be imported."""
    return find_spec("triton") is not None


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on any device."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def precision() -> str:
    """Of products, as torch is told; state and sums stay in float32."""
    name = PRECISIONS[torch.get_float32_matmul_precision()]
    return f"rounded to {name}" if interpreted() and name != "tf32x3" else name


def available(*tensors: Tensor) -> bool:
    """Whether Triton may take tensors of this device: of CUDA, or interpreted."""
    first = tensors[0]
    if os.environ.get(SWITCH) == "0" or not installed() or 0 in first.shape:
        return False
    same = all(x.device == first.device for x in tensors)
    return same and (first.device.type == "cuda" or interpreted())


def start(
    function: str, tensors: list[Tensor], whole: list[int], numbers: list[float], constants: Mapping[str, int]
) -> None:
    """Launch a kernel; `whole`: programs, then its whole numbers."""
    torch.ops.hope_model.triton(
        function, tensors, whole, numbers, list(constants), list(constants.values()), precision()
    )


class TritonKernel(Kernel):
    """Functions NAME_forward and NAME_backward of Triton, which take what a C++ kernel of that name takes.

    Args:
        like: The C++ kernel.
        scratch: Floats that a program's working memory holds, from sizes and part.
        record: Floats of a kept state, from sizes.
    """

    def __init__(
        self,
        like: Kernel,
        scratch: Callable[[Mapping[str, int], str], int],
        record: Callable[[Mapping[str, int]], int],
    ) -> None:
        vars(self).update(vars(like))
        self.scratch, self.state, self.chunks_a_record = scratch, record, EVERY

    def applies(self, *tensors: Tensor | None) -> bool:
        """Whether Triton takes these: float32 on CUDA, or interpreted."""
        given = [x for x in tensors if x is not None]
        return all(x.dtype == torch.float32 for x in given) and available(*given)

    def takes(self, chunk: int, m: int, d: int, *tensors: Tensor | None) -> bool:
        """Whether it applies to these, and its tiles hold the chunk and both widths."""
        return chunk <= LONGEST and {m, d} <= set(WIDTHS) and self.applies(*tensors)

    def records(self, sizes: Mapping[str, int], _itemsize: int) -> int:
        """Numbers that all records hold."""
        return sizes["N"] * -(-(sizes["T"] // sizes["C"]) // self.chunks_a_record) * self.state(sizes)

    def run(self, part: str, sizes: dict[str, Any], tensors: dict[str, Tensor | None]) -> None:
        """Launch, with tensors that were checked, or made in their shapes."""
        first = next(x for x in tensors.values() if x is not None)
        B, L = columns(sizes["C"]), max(sizes["d"], sizes["m"]) * columns(sizes["C"])
        every = 0 if tensors["records"] is None else self.chunks_a_record
        constants = {"D": sizes["d"], "M": sizes["m"], "C": sizes["C"], "B": B, "L": L, "EVERY": every}
        constants |= {x.upper(): int(sizes[x]) for x in ("R", "F", "own") if x in self.sizes}
        scratch = first.new_empty(sizes["N"], self.scratch(sizes, part))
        given = [first if x is None else x for x in tensors.values()]
        whole, numbers = [sizes[x] for x in ("N", "H", "T")], [sizes[x] for x in self.numbers]
        start(f"{self.name}_{part}", [*given, scratch], whole, numbers, constants)
