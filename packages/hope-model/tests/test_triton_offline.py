"""Triton's kernels compiled for GPUs that are not there: registers must not spill, tiles must fit shared memory."""

import re
import subprocess
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from hope_model.ops import one_token
from hope_model.ops.triton.areas import EVERY
from hope_model.ops.triton.launch import OPTIONS

pytestmark = pytest.mark.skipif(
    find_spec("triton") is None, reason="Triton is not installed (pip install triton)"
)
SHARED = {80: 163 * 1024, 90: 227 * 1024}  # bytes a program may have on an A100, an H100
# The other arguments are tensors.
KINDS = dict.fromkeys(("H", "T", "width", "hidden"), "i32") | {"slope": "fp32", "eta_max": "fp32"}
# Widths of head and hidden layer, chunk; bytes of stack a thread: what is spilt, and what calls of steps save.
KERNELS = {
    "titans_forward": (64, 32, 32, 0),
    "self_modifying_forward": (64, 64, 32, 0),
    "titans_backward": (64, 32, 32, 256),
    "self_modifying_backward": (64, 64, 32, 256),
}


def usage(
    name: str, sizes: tuple[int, int, int], arch: int, precision: str, cubin: Path
) -> tuple[int, int, int]:
    """Of a kernel of chunks."""
    d, m, C = sizes
    constants = {"D": d, "M": m, "C": C, "B": C, "L": max(d, m) * C, "EVERY": EVERY, "P": precision}
    constants |= {"R": 5, "F": 5, "OWN": 1} if "self_modifying" in name else {}
    return compiled_usage(name, name, constants, arch, cubin)


def compiled_usage(
    module: str, name: str, constants: dict[str, Any], arch: int, cubin: Path
) -> tuple[int, int, int]:
    """Registers and stack of a thread, shared memory of a program."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(import_module(f"hope_model.ops.triton.jit.{module}"), name)
    types = {x: "constexpr" if x in constants else KINDS.get(x, "*fp32") for x in kernel.arg_names}
    aligned = [n for n, x in enumerate(types) if types[x] == "*fp32" or x == "T"]
    source = ASTSource(kernel, types, constants, {(n,): [["tt.divisibility", 16]] for n in aligned})
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=OPTIONS)
    cubin.write_bytes(compiled.asm["cubin"])
    command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", str(cubin)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = re.findall(rf"Function {name}:\s+REG:(\d+) STACK:(\d+)", text)[0]
    return int(registers), int(stack), compiled.metadata.shared


def each(*, largest: bool) -> list[Any]:
    """Every kernel and device; a backward takes half a minute to compile: all are long, but the `largest` on one."""
    return [
        pytest.param(
            name,
            arch,
            marks=pytest.mark.long
            if "back" in name and not (largest and (name, arch) == ("self_modifying_backward", 80))
            else (),
        )
        for name in KERNELS
        for arch in SHARED
    ]


@pytest.mark.parametrize(("name", "arch"), each(largest=True))
def test_a_kernel_fits(
    name: str, arch: int, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    *sizes, most = KERNELS[name]
    registers, stack, shared = usage(name, tuple(sizes), arch, "tf32", tmp_path / "cubin")
    record_property("usage", f"{registers} registers, {stack} B of stack, {shared} B shared")
    assert stack <= most
    assert shared <= SHARED[arch]


STEPS = {
    "step_convolution": {"J": 4, "B": 256},
    "step_self_modifying": {"R": 5, "D": 64, "M": 64},
    "step_titans": {"D": 64, "M": 32, "UNIT": 1},
    "step_deltanet": {"D": 64},
    "step_cms_up": {"DELTAS": 1, "I": one_token.ROWS, "K": one_token.COLUMNS},
    "step_cms_down": {"DELTAS": 1, "LAST": 1, "I": one_token.ROWS, "K": one_token.COLUMNS},
}


@pytest.mark.parametrize("arch", SHARED)
@pytest.mark.parametrize("name", STEPS)
def test_a_kernel_of_one_token_fits(name: str, arch: int, tmp_path: Path) -> None:
    constants = STEPS[name] | {"P": "tf32"}
    _, stack, shared = compiled_usage("step", name, constants, arch, tmp_path / "cubin")
    assert stack == 0
    assert shared <= SHARED[arch]


@pytest.mark.long
@pytest.mark.parametrize(("name", "arch"), each(largest=False))
def test_products_in_bf16(name: str, arch: int, tmp_path: Path) -> None:
    """The interpreter rounds operands itself: only here are they of that type."""
    assert usage(name, (16, 16, 16), arch, "bf16", tmp_path / "cubin")[1] <= KERNELS[name][-1]
