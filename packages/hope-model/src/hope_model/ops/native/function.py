"""A kernel as a differentiable function: what goes in and comes out is declared once, for Python and C++.

A kernel handles N sequences, each through all its chunks; its backward redoes a chunk from a record of its beginning.
"""

import ctypes
import math
import re
from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hope_model.ops.native.build import HALF, SUFFIXES, Kernels, compiled, fill, kernels, structure, usable

LARGEST = 2**31 - 1  # elements of a working matrix, which C++ counts in 32 bits
LINE = 16  # numbers of float32 in a line of the cache
FLAGS = ("unit", "silu", "own", "half")  # sizes that may be 0
MEMO = 256  # sizes whose shapes are kept


class Declared(NamedTuple):
    """Shape of a tensor: every dimension is a sum of products, of a number and sizes."""

    dimensions: tuple[tuple[tuple[int, tuple[str, ...]], ...], ...]
    optional: bool  # it may be None
    token: bool  # it may be in bfloat16

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Return the shape in numbers."""
        return tuple(
            sum(number * math.prod(sizes[name] for name in names) for number, names in terms)
            for terms in self.dimensions
        )


def declared(text: str) -> dict[str, Declared]:
    """Tensors by name, from `NAME[T+J-1,parts*H*d]`; behind it, `?`: may be None, `~`: may be in bfloat16."""
    parts = re.findall(r"(\w+)\[([^\]]+)\]([?~]?)", text)
    return {
        name: Declared(tuple(_terms(dimension) for dimension in shape.split(",")), mark == "?", mark == "~")
        for name, shape, mark in parts
    }


def _terms(dimension: str) -> tuple[tuple[int, tuple[str, ...]], ...]:
    terms = []
    for sign, product in re.findall(r"([+-]?)([^+-]+)", dimension):
        factors = product.split("*")
        number = math.prod(int(f) for f in factors if f.isdigit())
        terms.append((-number if sign == "-" else number, tuple(f for f in factors if not f.isdigit())))
    return tuple(terms)


class Kind(NamedTuple):
    """Type and place that tensors of a call share."""

    dtype: torch.dtype
    device: torch.device


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
        record: Sizes that the records' length depends on, beside the number of chunks; empty for no records.
        each: Sizes that count what threads share out of every sequence.
    """

    def __init__(
        self, name: str, *, sizes: str, inputs: str, outputs: str, numbers: str = "", seen: str = "", shared: str = "",
        record: str = "", each: str = "",
    ) -> None:  # fmt: skip
        self.name, self.sizes, self.numbers = name, sizes.split(), numbers.split()
        self.inputs, self.outputs = declared(inputs), declared(outputs)
        self.record, self.shared, self.seen = record.split(), set(shared.split()), seen.split()
        self.each = each.split()
        every = self.inputs | self.outputs
        self.tokens = {name for name, x in every.items() if x.token}
        used = {
            name for x in every.values() for terms in x.dimensions for _, names in terms for name in names
        }
        self._key = itemgetter(*self.sizes, *sorted(used - set(self.sizes)))
        self._shapes: dict[Any, dict[str, tuple[int, ...]]] = {}
        given = [output for output in self.outputs if output not in self.seen]
        names = [*self.inputs, *self.outputs, "records", *(f"g_{x}" for x in (*given, *self.inputs))]
        self._agree = False
        self.arguments = structure(name, sizes, numbers, " ".join(names))

    def applies(self, *tensors: Tensor | None) -> bool:
        """Whether the kernel is there and takes these; None stands for what a rule does without.

        A kernel of tokens wants all its inputs, in their order.
        """
        tokens = [
            x for name, x in zip(self.inputs, tensors, strict=False) if name in self.tokens and x is not None
        ]
        states = [x for x in tensors if x is not None and not any(x is token for token in tokens)]
        return usable(*states, tokens=tokens) and kernels(self.name) is not None

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
        tensors = [x if x is None else x.contiguous() for x in (inputs[name] for name in self.inputs)]
        self.check(sizes, dict(zip(self.inputs, tensors, strict=True)))
        keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
        outputs: tuple[Tensor, ...] = _apply(self, sizes, keep, *tensors)
        return outputs

    def records(self, sizes: Mapping[str, int], itemsize: int) -> int:
        """Numbers that all records hold."""
        if not self.record:
            return 0
        chunks, others = sizes["T"] // sizes["C"], (sizes[s] for s in self.record)
        return sizes["N"] * self.compiled().number(f"{self.name}_records", itemsize, chunks, *others)

    def kinds(self, inputs: Mapping[str, Tensor | None]) -> tuple[Kind, Kind]:
        """Kind of the states, and of the tokens, which may be in bfloat16 beside float32."""
        name = next((name for name in self.inputs if name in self.tokens), next(iter(self.inputs)))
        first = inputs[name]
        half = first is not None and name in self.tokens and first.dtype == torch.bfloat16
        if first is None or (first.dtype not in SUFFIXES and not half):
            dtype = "missing" if first is None else first.dtype
            raise TypeError(f"{self.name}: {name} is {dtype}; kernels take float32 or float64")
        kind = Kind(first.dtype, first.device)
        return (Kind(torch.float32, first.device) if half else kind), kind

    def empty(
        self, names: Iterable[str], sizes: Mapping[str, int], inputs: Mapping[str, Tensor | None]
    ) -> dict[str, Tensor]:
        """Memory for outputs or gradients: zeros for gradients of what is shared, which kernels add to."""
        state, token = self.kinds(inputs)
        shapes, memory = self.shapes(sizes), {}
        shared: dict[str, int] = {}
        for name in names:
            whose = name.removeprefix("g_")
            if whose in self.shared:
                shared[name] = math.prod(shapes[name])
                continue
            dtype, device = token if whose in self.tokens else state
            memory[name] = torch.empty(shapes[name], dtype=dtype, device=device)
        if shared:  # at once, each at the start of a line of the cache
            starts = [0, *accumulate(-(-count // LINE) * LINE for count in shared.values())]
            zeros = torch.zeros(starts[-1], dtype=state.dtype, device=state.device)
            for (name, count), begin in zip(shared.items(), starts, strict=False):
                memory[name] = zeros[begin : begin + count].view(shapes[name])
        return memory

    def check(self, sizes: dict[str, Any], tensors: dict[str, Tensor | None]) -> None:
        """Raise unless every tensor has its declared shape, the type and device of the others, and is contiguous."""
        self.shapes(sizes)
        state, token = self.kinds(tensors)
        for name, x in tensors.items():
            self._check(name, x, token if name.removeprefix("g_") in self.tokens else state, sizes)

    def run(self, part: str, sizes: dict[str, Any], tensors: dict[str, Tensor | None]) -> None:
        """Hand tensors that were checked, or made in their shapes, to `forward` or `backward` in C++."""
        _, token = self.kinds(tensors)
        if token.device.type != "cpu":
            raise TypeError(f"{self.name}: tensors are on {token.device}; this kernel runs on a CPU")
        values = {name: sizes[name] for name in (*self.sizes, *self.numbers)}
        name = f"{self.name}_{part}_{SUFFIXES.get(token.dtype, HALF)}"
        self.compiled().run(
            name,
            fill(self.arguments, values | tensors),
            math.prod((sizes["N"], *(sizes[size] for size in self.each))),
        )

    def shape(self, name: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Declared shape of an input, an output or the gradient of either (of what is shared: one per sequence)."""
        return self.shapes(sizes)[name]

    def shapes(self, sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        """All shapes by name, worked out once for these sizes."""
        key = self._key(sizes)
        known = self._shapes.get(key)
        if known is None:
            self._check_sizes(sizes)
            known = {name: x.shape(sizes) for name, x in (self.inputs | self.outputs).items()}
            for name, whole in list(known.items()):
                known[f"g_{name}"] = (sizes["N"], *whole[1:]) if name in self.shared else whole
            if len(self._shapes) >= MEMO:
                self._shapes.clear()
            self._shapes[key] = known
        return known

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

    def _check(self, name: str, x: Tensor | None, like: Tensor | Kind, sizes: Mapping[str, Any]) -> None:
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
        outputs = kernel.empty(kernel.outputs, sizes, inputs)
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
        wanted = [f"g_{name}" for name, x in inputs.items() if x is not None]
        by_input = dict.fromkeys(f"g_{name}" for name in inputs) | kernel.empty(wanted, sizes, inputs)
        tensors = inputs | {"records": records} | by_output | by_input
        kernel.check(sizes, tensors)  # hooks may have changed what was saved, and gradients
        kernel.run("backward", sizes, tensors)
        for name in kernel.shared:
            each = by_input[f"g_{name}"]
            if each is not None:
                by_input[f"g_{name}"] = each.unflatten(0, (-1, len(inputs[name]))).sum(0)
        return None, None, None, *by_input.values()


_apply: Callable[..., Any] = _Run.apply
