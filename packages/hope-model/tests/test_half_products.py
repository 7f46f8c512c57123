"""Products rounded to bfloat16 inside the memory kernels: how far from the token loop in float64, and when."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from hope_model import LanguageModel, ModelConfig
from hope_model.ops.deep_memory import (
    FastWeights,
    Gates,
    MemoryState,
    Readout,
    Rules,
    self_modifying,
    self_modifying_naive,
    titans_memory,
    titans_memory_naive,
)
from hope_model.ops.gated_delta import gated_delta_naive, recurrence
from hope_model.ops.native import build
from hope_model.ops.native.function import Kernel
from hope_model.tree import tensors, tree_map

pytestmark = pytest.mark.skipif(build.kernels("gated_delta") is None, reason="no C++ compiler")
B, H, T = 2, 2, 75
# Of a tensor's norm. A rounding is 2^-9; gradients pass through many products, and through activations whose slope
# jumps where a rounding changes a sign.
OUTPUTS, GRADIENTS = 2**-6, 2**-3


class Inputs:
    """Random inputs as models have them: keys of norm 1, weights that keep activations near 1."""

    def __init__(self, d: int, m: int, chunk: int) -> None:
        torch.manual_seed(0)
        self.d, self.m, self.chunk = d, m, chunk

    def leaf(self, x: Tensor) -> Tensor:
        return x.detach().requires_grad_()

    def unit(self) -> Tensor:
        return self.leaf(normalize(torch.randn(B, H, T, self.d, dtype=torch.float64), dim=-1))

    def strength(self, *shape: int, top: float = 1.8) -> Tensor:
        return self.leaf(top * torch.rand(B, H, *shape, T, dtype=torch.float64))

    def decay(self) -> Tensor:
        return self.leaf(-0.1 * torch.rand(B, H, T, dtype=torch.float64))

    def weights(self, *lead: int) -> FastWeights:
        d, m = self.d, self.m
        W2, W1 = (torch.randn(*lead, *shape, dtype=torch.float64) for shape in ((m, d), (d, m)))
        return FastWeights(self.leaf(W2), self.leaf(W1 * d**-0.5))

    def gated_delta(self, half: bool) -> tuple[Callable[..., Any], Callable[..., Any], tuple[Any, ...]]:
        S = self.leaf(torch.randn(B, H, self.d, self.d, dtype=torch.float64) * self.d**-0.5)
        inputs = (self.unit(), self.unit(), self.unit(), self.decay(), self.strength(), S)
        return gated_delta_naive, lambda *x: recurrence(*x, chunk=self.chunk, half=half), inputs

    def titans(self, half: bool) -> tuple[Callable[..., Any], Callable[..., Any], tuple[Any, ...]]:
        now, momentum = self.weights(B, H, 1), FastWeights(*(self.leaf(W / 9) for W in self.weights(B, H, 1)))
        gates = Gates(self.decay(), None, self.strength(1), self.strength(1, top=0.1), self.decay())
        state = MemoryState(now, now, momentum, 0)
        inputs = (self.unit(), self.unit(), self.unit(), gates, state, Rules(self.chunk, half=half))
        return titans_memory_naive, titans_memory, (*inputs, self.weights(H, 1))

    def self_modifying(self, half: bool) -> tuple[Callable[..., Any], Callable[..., Any], tuple[Any, ...]]:
        now = self.weights(B, H, 5)
        e, a = (self.leaf(torch.randn(H, self.d, dtype=torch.float64) * self.d**-0.5) for _ in range(2))
        bias, shares = torch.zeros(H, dtype=torch.float64), torch.rand(H, 5, dtype=torch.float64)
        readout = Readout(e, bias, self.leaf(shares), a, bias + 3, self.leaf(shares))
        gates = Gates(None, None, self.strength(1), None, None)
        rules = Rules(self.chunk, half=half)
        inputs = (self.unit(), self.unit(), gates, readout, MemoryState(now, now, None, 0), rules)
        return self_modifying_naive, self_modifying, (*inputs, None, self.weights(H, 5))


def results(form: Callable[..., Any], inputs: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs and gradients."""
    leaves = [x for x in tensors(inputs) if x.requires_grad]
    outputs = [x for x in tensors(form(*inputs)) if x.requires_grad]
    weights = [torch.linspace(-3, 4, x.numel()).cos().view(x.shape).to(x) for x in outputs]
    return [x.detach() for x in outputs], list(torch.autograd.grad(outputs, leaves, weights))


@pytest.mark.parametrize(("d", "m", "chunk"), [(20, 37, 16), (64, 64, 32), (17, 19, 9)])
@pytest.mark.parametrize("op", ["gated_delta", "titans", "self_modifying"])
def test_error_of_rounded_products(op: str, d: int, m: int, chunk: int) -> None:
    naive, fast, inputs = getattr(Inputs(d, m, chunk), op)(half=True)
    exact = results(naive, inputs)
    singles = {id(x): x.detach().float().requires_grad_(x.requires_grad) for x in tensors(inputs)}
    single = tree_map(lambda x: singles[id(x)], inputs)
    rounded = results(fast, single)
    for ours, theirs, within in zip(rounded, exact, (OUTPUTS, GRADIENTS), strict=True):
        assert len(ours) == len(theirs)
        apart = [float((x - y).norm() / y.norm()) for x, y in zip(ours, theirs, strict=True)]
        assert max(apart) < within, apart
    again = results(getattr(Inputs(d, m, chunk), op)(half=False)[1], inputs)  # float64 is never rounded
    assert max(float((x - y).abs().max()) for x, y in zip(again[0], exact[0], strict=True)) < 1e-10


@pytest.mark.parametrize("variant", ["gated_deltanet", "titans", "self_modifying_titans"])
def test_only_bfloat16_autocast_rounds_products(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told = set()
    run = Kernel.run

    def watch(kernel: Kernel, part: str, sizes: dict[str, Any], inputs: dict[str, Tensor | None]) -> None:
        if "half" in kernel.sizes:
            told.add((part, bool(sizes["half"])))
        run(kernel, part, sizes, inputs)

    monkeypatch.setattr(Kernel, "run", watch)
    model = LanguageModel(ModelConfig(variant=variant, vocab_size=16, dim=32, head_dim=16, layers=1))
    for half in (False, True):
        told.clear()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            logits, _ = model(torch.arange(20)[None] % 16)
        logits.float().sum().backward()
        assert told == {("forward", half), ("backward", half)}
