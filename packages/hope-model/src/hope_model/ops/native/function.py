"""A kernel as a differentiable function: what goes in and comes out is declared once, for Python and C++.

A kernel handles N sequences, each through all its chunks; its backward redoes a chunk from a record of its beginning.
"""

import ctypes
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hope_model.ops.native.build import SUFFIXES, Kernels, compiled, fill, kernels, structure, usable

LARGEST = 2**31 - 1  # elements of a working matrix, which C++ counts in 32 bits
FLAGS = ("unit", "silu", "own")  # sizes that may be 0


class Declared(NamedTuple):
    """Shape of a tensor, by the names of sizes; `optional`: it may be None."""

    dimensions: tuple[str, ...]
    optional: bool

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape in numbers: a dimension is a sum of products, such as `T+J-1` or `parts*H*d`."""
        return tuple(
            sum(
                (-1 if sign == "-" else 1)
                * math.prod(int(f) if f.isdigit() else sizes[f] for f in factors.split("*"))
                for sign, factors in re.findall(r"([+-]?)([^+-]+)", dimension)
            )
            for dimension in self.dimensions
        )


def declared(text: str) -> dict[str, Declared]:
    """Tensors by name, from `NAME[SIZE,SIZE]`; a question mark behind it: may be None."""
    parts = re.findall(r"(\w+)\[([^\]]+)\](\??)", text)
    return {name: Declared(tuple(shape.split(",")), bool(optional)) for name, shape, optional in parts}


class Kernel:
    """NAME.cpp with its struct Args: sizes, numbers, inputs, outputs, records, then gradients of outputs and inputs.

    C++ sees addresses only, so every tensor is checked against its declared shape before its address is taken.

    Args:
        name: Of the source file and of its functions.
        sizes: Whole numbers; N comes first and counts sequences.
        inputs: Tensors with their shapes; all contiguous when it is called, of one floating-point type.
        outputs: Tensors with their shapes.
        numbers: Floating-point numbers.
        seen: Outputs without a gradient.
        shared: Inputs that several sequences share, sequence n the row n modulo their number.
        record: Sizes that a record's length depends on; empty for no records.
        chunks_a_record: Chunks that share one.
    """

    def __init__(
        self, name: str, *, sizes: str, inputs: str, outputs: str, numbers: str = "", seen: str = "", shared: str = "",
        record: str = "", chunks_a_record: int = 1,
    ) -> None:  # fmt: skip
        self.name, self.sizes, self.numbers = name, sizes.split(), numbers.split()
        self.inputs, self.outputs = declared(inputs), declared(outputs)
        self.record, self.shared, self.seen = record.split(), set(shared.split()), seen.split()
        self.chunks_a_record = chunks_a_record
        given = [output for output in self.outputs if output not in self.seen]
        names = [*self.inputs, *self.outputs, "records", *(f"g_{x}" for x in (*given, *self.inputs))]
        self._agree = False
        self.arguments = structure(name, sizes, numbers, " ".join(names))

    def applies(self, *tensors: Tensor | None) -> bool:
        """Whether the kernel is there and takes these tensors; None stands for what a rule does without."""
        return usable(*(x for x in tensors if x is not None)) and kernels(self.name) is not None

    def compiled(self) -> Kernels:
        """The compiled functions; they must be there, and have the same arguments as this process's Python.

        Asked for once a forward has decided: its backward does not ask whether kernels are still wanted.
        """
        functions = compiled(self.name)
        assert functions is not None  # noqa: S101
        if not self._agree:
            if functions.number(f"{self.name}_arguments") != ctypes.sizeof(self.arguments):
                message = f"{self.name}.cpp and its Python name other arguments"
                raise RuntimeError(message)
            self._agree = True
        return functions

    def __call__(self, sizes: dict[str, Any], **inputs: Tensor | None) -> tuple[Tensor, ...]:
        """All outputs."""
        self._check_sizes(sizes)
        tensors = [x if x is None else x.contiguous() for x in (inputs[name] for name in self.inputs)]
        self.check(sizes, dict(zip(self.inputs, tensors, strict=True)))
        keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
        outputs: tuple[Tensor, ...] = _apply(self, sizes, keep, *tensors)
        return outputs

    def records(self, sizes: Mapping[str, int], itemsize: int) -> int:
        """Numbers that all records hold."""
        if not self.record:
            return 0
        each = self.compiled().number(f"{self.name}_record", itemsize, *(sizes[s] for s in self.record))
        return sizes["N"] * -(-(sizes["T"] // sizes["C"]) // self.chunks_a_record) * each

    def check(self, sizes: dict[str, Any], tensors: dict[str, Tensor | None]) -> None:
        """Raise unless every tensor has its declared shape, the type and device of the first, and is contiguous."""
        name, first = next(iter(tensors.items()))
        if first is None or first.dtype not in SUFFIXES or first.device.type != "cpu":
            kind = "missing" if first is None else f"{first.dtype} on {first.device}"
            raise TypeError(f"{self.name}: {name} is {kind}; kernels take float32 or float64 on a CPU")
        for name, x in tensors.items():
            self._check(name, x, first, sizes)

    def run(self, part: str, sizes: dict[str, Any], tensors: dict[str, Tensor | None]) -> None:
        """Hand tensors that were checked, or made in their shapes, to `forward` or `backward` in C++."""
        dtype = next(x.dtype for x in tensors.values() if x is not None)
        values = {name: sizes[name] for name in (*self.sizes, *self.numbers)}
        self.compiled().run(f"{self.name}_{part}", dtype, fill(self.arguments, values | tensors), sizes["N"])

    def shape(self, name: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Declared shape of an input, an output or the gradient of either (of what is shared: one per sequence)."""
        if name in self.outputs or name in self.inputs:
            return (self.outputs | self.inputs)[name].shape(sizes)
        whole = self.shape(name.removeprefix("g_"), sizes)
        return (sizes["N"], *whole[1:]) if name.removeprefix("g_") in self.shared else whole

    def _check_sizes(self, sizes: Mapping[str, Any]) -> None:
        """Refuse sizes that C++ cannot count with: no chunk would end where the tokens do, or matrices overflow."""
        wrong = [name for name in self.sizes if sizes[name] < (0 if name in FLAGS else 1)]
        if wrong:
            raise ValueError(f"{self.name}: {wrong[0]} is {sizes[wrong[0]]}; it must be at least 1")
        if "C" in self.sizes and sizes["T"] % sizes["C"]:
            raise ValueError(f"{self.name}: {sizes['T']} tokens are not whole chunks of {sizes['C']}")
        widest = max((sizes[name] for name in ("d", "m", "K", "V", "C") if name in self.sizes), default=1)
        if 8 * max(sizes.get("R", 1), sizes.get("F", 1)) * (widest + 16) ** 2 > LARGEST:
            raise ValueError(
                f"{self.name}: a width of {widest} is too large for it; HOPE_NATIVE=0 does without"
            )

    def _check(self, name: str, x: Tensor | None, like: Tensor, sizes: Mapping[str, Any]) -> None:
        if x is None:
            if name != "records" and not (self.outputs | self.inputs)[name.removeprefix("g_")].optional:
                raise TypeError(f"{self.name}: {name} is missing")
            return
        if (x.dtype, x.device) != (like.dtype, like.device):
            raise TypeError(
                f"{self.name}: {name} is {x.dtype} on {x.device}, others are {like.dtype} on {like.device}"
            )
        shape = (self.records(sizes, x.element_size()),) if name == "records" else self.shape(name, sizes)
        if tuple(x.shape) != shape:
            raise ValueError(f"{self.name}: {name} has shape {list(x.shape)}, not {list(shape)}")
        if name in self.shared and sizes["N"] % len(x):
            raise ValueError(f"{self.name}: {name} has {len(x)} rows for {sizes['N']} sequences")
        bytes_used = (x.storage_offset() + x.numel()) * x.element_size()
        if not x.is_contiguous() or x.is_neg() or x.untyped_storage().nbytes() < bytes_used:
            raise ValueError(f"{self.name}: {name} does not lie in memory as its shape says")


class _Run(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, kernel: Kernel, sizes: dict[str, Any], keep: bool, *tensors: Any
    ) -> tuple[Tensor, ...]:
        inputs, x = dict(zip(kernel.inputs, tensors, strict=True)), tensors[0]
        records = x.new_empty(kernel.records(sizes, x.element_size())) if keep and kernel.record else None
        outputs = {name: x.new_empty(kernel.shape(name, sizes)) for name in kernel.outputs}
        kernel.run("forward", sizes, inputs | outputs | {"records": records})
        if keep:
            ctx.save_for_backward(records, *tensors)
            ctx.kernel, ctx.sizes = kernel, sizes
        ctx.mark_non_differentiable(*(outputs[name] for name in kernel.seen))
        return tuple(outputs.values())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        kernel, sizes, (records, *saved) = ctx.kernel, ctx.sizes, ctx.saved_tensors
        inputs = dict(zip(kernel.inputs, saved, strict=True))
        by_output = {
            f"g_{name}": g.contiguous()
            for name, g in zip(kernel.outputs, grads, strict=True)
            if name not in kernel.seen
        }
        by_input: dict[str, Any] = {}
        for name, x in inputs.items():
            new = saved[0].new_zeros if name in kernel.shared else saved[0].new_empty
            by_input[f"g_{name}"] = None if x is None else new(kernel.shape(f"g_{name}", sizes))
        tensors = inputs | {"records": records} | by_output | by_input
        kernel.check(sizes, tensors)  # hooks may have changed what was saved, and gradients
        kernel.run("backward", sizes, tensors)
        for name in kernel.shared:
            if inputs[name] is not None:
                each = by_input[f"g_{name}"]
                by_input[f"g_{name}"] = each.unflatten(0, (-1, len(inputs[name]))).sum(0)
        return None, None, None, *by_input.values()


_apply: Callable[..., Any] = _Run.apply
