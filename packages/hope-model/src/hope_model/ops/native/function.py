"""A kernel as a differentiable function: what goes in and comes out is named once, for Python and C++.

A kernel handles N sequences, each through all its chunks; its backward redoes a chunk from a record of its beginning.
"""

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hope_model.ops.native.build import Kernels, compiled, fill, kernels, structure, usable


class Kernel:
    """NAME.cpp with its struct Args: sizes, numbers, inputs, outputs, records, then gradients of outputs and inputs.

    Args:
        name: Of the source file and of its functions.
        sizes: Whole numbers; N comes first and counts sequences.
        inputs: Tensors; all contiguous when it is called, of one floating-point type.
        outputs: OUTPUT=INPUT, shaped like that input, or a name whose shape the caller gives.
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
        self.name, self.record, self.shared, self.seen = (
            name,
            record.split(),
            set(shared.split()),
            seen.split(),
        )
        self.chunks_a_record = chunks_a_record
        self.inputs = inputs.split()
        self.outputs = dict(output.partition("=")[::2] for output in outputs.split())
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
        found = compiled(self.name)
        assert found is not None  # noqa: S101
        if not self._agree:
            if found.number(f"{self.name}_arguments") != ctypes.sizeof(self.arguments):
                message = f"{self.name}.cpp and its Python name other arguments"
                raise RuntimeError(message)
            self._agree = True
        return found

    def __call__(self, sizes: dict[str, Any], **inputs: Tensor | None) -> tuple[Tensor, ...]:
        """All outputs."""
        made = [x if x is None else x.contiguous() for x in (inputs[name] for name in self.inputs)]
        self._check(sizes["N"], dict(zip(self.inputs, made, strict=True)))
        keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in made)
        outputs: tuple[Tensor, ...] = _apply(self, sizes, keep, *made)
        return outputs

    def _check(self, N: int, inputs: dict[str, Tensor | None]) -> None:
        """C sees addresses only: what is of another type, or too short, would be read beyond its end."""
        given = {name: x for name, x in inputs.items() if x is not None}
        first = next(iter(given.values()))
        for name, x in given.items():
            if (x.dtype, x.device) != (first.dtype, first.device):
                message = f"{self.name}: {name} is {x.dtype} on {x.device}, others are {first.dtype} on {first.device}"
                raise TypeError(message)
            if len(x) == 0 or (N % len(x) if name in self.shared else len(x) != N):
                message = f"{self.name}: {name} has {len(x)} rows for {N} sequences"
                raise ValueError(message)


class _Run(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, kernel: Kernel, sizes: dict[str, Any], keep: bool, *tensors: Any
    ) -> tuple[Tensor, ...]:
        inputs, compiled = dict(zip(kernel.inputs, tensors, strict=True)), kernel.compiled()
        x = tensors[0]
        records = None
        if keep and kernel.record:
            each = compiled.number(
                f"{kernel.name}_record", x.element_size(), *(sizes[s] for s in kernel.record)
            )
            chunks = sizes["T"] // sizes["C"]
            records = x.new_empty(sizes["N"] * -(-chunks // kernel.chunks_a_record) * each)
        outputs = {
            name: x.new_empty(sizes.get(name) or inputs[like].shape) for name, like in kernel.outputs.items()
        }
        numbers = {name: value for name, value in sizes.items() if name not in outputs}
        given = numbers | inputs | outputs | {"records": records}
        compiled.run(f"{kernel.name}_forward", x.dtype, fill(kernel.arguments, given), sizes["N"])
        if keep:
            ctx.save_for_backward(records, *tensors)
            ctx.kernel, ctx.numbers = kernel, numbers
        ctx.mark_non_differentiable(*(outputs[name] for name in kernel.seen))
        return tuple(outputs.values())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        kernel, numbers, (records, *saved) = ctx.kernel, ctx.numbers, ctx.saved_tensors
        N = numbers["N"]
        by_output = {f"g_{name}": g.contiguous() for name, g in zip(kernel.outputs, grads, strict=True)}
        inputs = dict(zip(kernel.inputs, saved, strict=True))
        made: dict[str, Any] = {}
        for name, x in inputs.items():
            if x is not None:
                made[name] = x.new_zeros(N, *x.shape[1:]) if name in kernel.shared else torch.empty_like(x)
        wanted = {name: g for name, g in by_output.items() if name[2:] not in kernel.seen}
        given = (
            numbers | inputs | {"records": records} | wanted | {f"g_{name}": g for name, g in made.items()}
        )
        kernel.compiled().run(f"{kernel.name}_backward", saved[0].dtype, fill(kernel.arguments, given), N)
        for name in kernel.shared:
            if name in made:
                made[name] = made[name].unflatten(0, (-1, len(inputs[name]))).sum(0)
        return None, None, None, *(made.get(name) for name in kernel.inputs)


_apply: Callable[..., Any] = _Run.apply
