"""Equality of two forms of one op: outputs, final states and every gradient, in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from hope_model.ops.native import build
from hope_model.tree import tensors


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(params=["native", "torch"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Who computes the chunk steps: the C++ kernels or torch."""
    monkeypatch.setenv(build.SWITCH, "0" if request.param == "torch" else "1")
    if request.param == "native" and build.kernels("gated_delta") is None:
        pytest.skip("no C++ compiler")
    return str(request.param)


@pytest.fixture
def assert_same() -> Callable[..., None]:
    def check(
        naive: Callable[..., Any], fast: Callable[..., Any], *inputs: Any, within: float = 1e-10
    ) -> None:
        leaves = [x for x in tensors(inputs) if x.requires_grad]
        assert leaves
        results = []
        for form in (naive, fast):
            outputs = tensors(form(*inputs))
            weights = [torch.linspace(-3, 4, x.numel(), dtype=x.dtype).cos().view(x.shape) for x in outputs]
            total = torch.stack([(x * w).sum() for x, w in zip(outputs, weights, strict=True)]).sum()
            results.append((outputs, torch.autograd.grad(total, leaves, allow_unused=True)))
        (out1, grad1), (out2, grad2) = results
        assert len(out1) == len(out2)
        for x, y in zip(out1, out2, strict=True):
            assert (x - y).abs().max() <= within * (1 + x.abs().max())
        for g, h in zip(grad1, grad2, strict=True):
            assert (g is None) == (h is None)
            if g is not None and h is not None:
                assert (g - h).abs().max() <= within * (1 + g.abs().max())

    return check
