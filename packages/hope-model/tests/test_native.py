"""C++ kernels equal torch at real sizes, whatever the threads; they are compiled once; without them torch goes on."""

import ctypes
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hope_model import LanguageModel, ModelConfig
from hope_model.layers.basic import CausalConv, GatedOutput, split_heads
from hope_model.ops.deep_memory.native_span import SELF_MODIFYING, TITANS
from hope_model.ops.gated_delta.native import KERNEL as GATED_DELTA
from hope_model.ops.native import build
from hope_model.ops.native.convolution import KERNEL as CONVOLUTION
from hope_model.ops.native.heads import GATED_NORM, SPLIT_HEADS

KERNELS = (SELF_MODIFYING, TITANS, GATED_DELTA, CONVOLUTION, SPLIT_HEADS, GATED_NORM)
MADE = {kernel.name: kernel for kernel in KERNELS}
VARIANTS = ["self_modifying_titans", "titans", "gated_deltanet"]


def result(variant: str, dtype: torch.dtype, length: int = 75) -> list[torch.Tensor]:
    """Logits and every gradient, at head width 64 and two chunks and a bit."""
    torch.manual_seed(0)
    config = ModelConfig(variant=variant, vocab_size=64, dim=128, layers=1, head_dim=64)
    model, tokens = LanguageModel(config).to(dtype), torch.randint(64, (3, length))
    logits, _ = model(tokens)
    logits.logsumexp(-1).square().sum().backward()
    return [logits.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


def difference(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    assert len(one) == len(other)
    apart = [(x - y).abs().max() / (1 + x.abs().max()) for x, y in zip(one, other, strict=True)]
    return float(torch.stack(apart).max())  # not a number where any is not


@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-11), (torch.float32, 1e-4)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_kernels_equal_torch(
    variant: str, dtype: torch.dtype, within: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    native = result(variant, dtype)
    monkeypatch.setenv(build.SWITCH, "0")
    assert difference(native, result(variant, dtype)) < within


@pytest.mark.parametrize("variant", VARIANTS)
def test_threads_change_no_bit(variant: str) -> None:
    """Of the kernel: torch's own products may differ, so its part is compared at one thread."""
    if build.kernels("gated_delta") is None:
        pytest.skip("no C++ compiler")
    one = result(variant, torch.float64)
    run = build.Kernels.run

    def on_three(*args: Any) -> None:
        torch.set_num_threads(3)
        run(*args)
        torch.set_num_threads(1)

    for team in (build._team(os.getpid()), None):  # torch's threads, and our own
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(build.Kernels, "run", on_three)
            patch.setattr(build, "_team", lambda _, team=team: team)
            assert difference(one, result(variant, torch.float64)) == 0


@pytest.fixture
def afresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], Any]:
    """Compile into an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return lambda: build.compiled.__wrapped__("gated_delta")


@pytest.mark.parametrize("compiler", ["none", "fails"])
def test_without_a_compiler_torch_goes_on_and_says_so(
    compiler: str, afresh: Callable[[], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if compiler == "none":
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.delenv("CXX", raising=False)
    else:
        monkeypatch.setenv("CXX", "false")
    with pytest.warns(
        RuntimeWarning, match="without its C\\+\\+ kernels.*Install a C\\+\\+ compiler.*HOPE_NATIVE=0"
    ):
        assert afresh() is None
    assert sorted(path.name for path in tmp_path.rglob("*.so")) == []


def test_switched_off_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(build.SWITCH, "0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert build.kernels("no such kernel") is None
    assert os.environ[build.SWITCH] == "0"


@pytest.mark.parametrize("name", list(MADE))
def test_python_and_cpp_agree_about_the_arguments(name: str) -> None:
    found = build.kernels(name)
    if found is None:
        pytest.skip("no C++ compiler")
    assert found.number(f"{name}_arguments") == ctypes.sizeof(MADE[name].arguments)


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize(
    ("d", "T", "parts", "unit"), [(5, 1, 1, 1), (64, 67, 3, 3), (16, 130, 3, 2), (3, 64, 2, 0)]
)
def test_heads_are_split_as_in_torch(
    d: int, T: int, parts: int, unit: int, silu: bool, assert_same: Callable[..., None]
) -> None:
    if build.kernels("split_heads") is None:
        pytest.skip("no C++ compiler")

    def split(twice: bool) -> Callable[[torch.Tensor], Any]:
        return lambda x: split_heads(x, 2, parts=parts, unit=unit, silu=silu, twice=twice)

    torch.manual_seed(0)
    x = 4 * torch.randn(3, T, parts * 2 * d, dtype=torch.float64)
    x[0, 0] = 0  # has no direction
    assert_same(split(True), split(False), x.requires_grad_(), within=1e-12)


@pytest.mark.parametrize(("d", "T"), [(5, 1), (64, 67), (16, 130)])
def test_gated_output_is_that_of_torch(
    d: int, T: int, assert_same: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    if build.kernels("gated_norm") is None:
        pytest.skip("no C++ compiler")
    torch.manual_seed(0)
    layer = GatedOutput(2 * d, d, 0.5, 0.5).double()
    torch.nn.init.normal_(layer.norm.weight)
    o, x = torch.randn(3, 2, T, d, dtype=torch.float64), torch.randn(3, T, 2 * d, dtype=torch.float64)
    leaves = (o.requires_grad_(), x.requires_grad_(), *layer.parameters())

    def form(native: str) -> Callable[..., torch.Tensor]:
        def call(*inputs: torch.Tensor) -> torch.Tensor:
            monkeypatch.setenv(build.SWITCH, native)
            return layer(*inputs[:2])

        return call

    assert_same(form("0"), form("1"), *leaves, within=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_silu_of_extremes(dtype: torch.dtype) -> None:
    x = torch.tensor([0.0, -0.0, 1e-30, 80, -80, 1e4, -1e4, float("nan"), 0.3, -0.3], dtype=dtype)
    (y,) = split_heads(x[None, None], 1, unit=0, silu=True)
    torch.testing.assert_close(y.flatten(), torch.nn.functional.silu(x), equal_nan=True)


def in_half(form: Callable[..., Any], dtype: torch.dtype) -> list[torch.Tensor]:
    """Outputs and gradients where tokens come in bfloat16, or with the same numbers in another type."""
    torch.manual_seed(0)
    tokens = [torch.randn(2, 70, 48).bfloat16().to(dtype).requires_grad_() for _ in range(3)]
    outputs = form(dtype, *tokens)
    torch.autograd.backward(
        outputs, [torch.cos(torch.arange(x.numel())).view(x.shape).to(x) for x in outputs]
    )
    return [*(x.detach().double() for x in outputs), *(x.grad.double() for x in tokens if x.grad is not None)]


def convolved(
    dtype: torch.dtype, x: torch.Tensor, y: torch.Tensor, _: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    layer = CausalConv(48, 4, twice=dtype == torch.float64)
    torch.nn.init.normal_(layer.weight)
    return layer.to(torch.promote_types(dtype, torch.float32))(x, y[:, :3])


def split_and_joined(dtype: torch.dtype, *tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
    twice = dtype == torch.float64
    parts = split_heads(torch.cat(tokens, -1), 3, parts=3, unit=2, silu=True, twice=twice)
    layer = GatedOutput(48, 16, 0.5, 0.5, twice=twice).to(dtype)
    layer.out = torch.nn.Identity()
    return (*parts, layer(sum(parts), tokens[0]))


@pytest.mark.parametrize("form", [convolved, split_and_joined])
def test_tokens_in_bfloat16_are_computed_in_float32(form: Callable[..., Any]) -> None:
    """Of the largest entry, a rounding to bfloat16 is 2^-9, and no result has gone through more than three."""
    if build.kernels("split_heads") is None:
        pytest.skip("no C++ compiler")
    half, exact = in_half(form, torch.bfloat16), in_half(form, torch.float64)
    assert len(half) == len(exact)
    apart = [float((x - y).abs().max() / y.abs().max()) for x, y in zip(half, exact, strict=True)]
    assert max(apart) < 3 * 2**-9
