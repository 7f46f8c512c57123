"""Titans' kernels are the token loop, in float32; collected by test_triton_interpreter.py only (TRITON_INTERPRET=1)."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpretedFunction

from hope_model import LanguageModel, ModelConfig
from hope_model.ops.deep_memory import (
    FastWeights,
    Gates,
    MemoryState,
    Rules,
    titans_memory,
    titans_memory_naive,
)
from hope_model.ops.deep_memory.kernels import TRITON_TITANS
from hope_model.ops.triton import launch
from hope_model.tree import tensors

Inputs = tuple[Any, ...]


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patch Triton's language once per test: the interpreter does it at every call of a function."""
    patched = []

    def call(self: InterpretedFunction, *args: Any, **kwargs: Any) -> Any:
        if not patched:
            patched.append(interpreter._patch_lang(interpreter.tl.standard.sum.fn))
        return self.rewrite()(*args, **kwargs)

    monkeypatch.setattr(InterpretedFunction, "__call__", call)


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Kernels that ran, by name."""
    names: list[str] = []
    run = InterpretedFunction.run

    def counted(self: InterpretedFunction, *args: Any, **kwargs: Any) -> Any:
        names.append(self.__name__)
        return run(self, *args, **kwargs)

    monkeypatch.setattr(InterpretedFunction, "run", counted)
    return names


def drawn(T: int, *, B: int, H: int, d: int, m: int, position: int, chunk: int) -> Inputs:
    generator = torch.Generator().manual_seed(T)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def weights(*lead: int) -> FastWeights:
        return FastWeights(
            draw(*lead, 1, m, d).requires_grad_(), (0.5 * draw(*lead, 1, d, m)).requires_grad_()
        )

    q, k = (F.normalize(draw(B, H, T, d), dim=-1).requires_grad_() for _ in range(2))
    log_a, log_theta = (F.logsigmoid(draw(B, H, T) + 2).requires_grad_() for _ in range(2))
    output, eta = ((top * draw(B, H, 1, T).sigmoid()).requires_grad_() for top in (2, 0.1))
    now = weights(B, H)
    start = weights(B, H) if position % chunk else now
    state = MemoryState(now, start, weights(B, H), position)
    gates = Gates(log_a, None, output, eta, log_theta)
    return q, k, draw(B, H, T, d).requires_grad_(), gates, state, Rules(chunk=chunk), weights(H)


def results(form: Callable[..., Any], inputs: Inputs) -> list[Tensor]:
    """Outputs, final states and every gradient."""
    leaves = list({id(x): x for x in tensors(inputs) if x.requires_grad}.values())
    outputs = tensors(form(*inputs))
    weights = [torch.linspace(-3, 4, x.numel()).cos().view(x.shape) for x in outputs]
    total = torch.stack([(x * w).sum() for x, w in zip(outputs, weights, strict=True)]).sum()
    return [*outputs, *torch.autograd.grad(total, leaves)]


def farthest(inputs: Inputs) -> float:
    """Largest difference from the token loop, of each result's largest entry."""
    pairs = zip(results(titans_memory, inputs), results(titans_memory_naive, inputs), strict=True)
    return max(((x - y).abs().max() / y.abs().max()).item() for x, y in pairs)


@pytest.mark.parametrize(
    ("T", "B", "H", "d", "m", "position", "chunk", "kernels"),
    [
        (37, 2, 1, 16, 16, 0, 16, 2),  # two chunks and a part; sequences share first weights
        (
            26,
            1,
            2,
            16,
            32,
            3,
            5,
            2,
        ),  # goes on inside a chunk; four whole chunks, two states kept; heads differ
        (1, 1, 1, 32, 16, 0, 32, 1),
    ],
)
def test_kernels_are_the_token_loop(
    T: int, B: int, H: int, d: int, m: int, position: int, chunk: int, kernels: int,
    launches: list[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(TRITON_TITANS, "chunks_a_record", 3)
    inputs = drawn(T, B=B, H=H, d=d, m=m, position=position, chunk=chunk)
    assert farthest(inputs) < 1e-5
    assert launches == ["titans_forward"] * kernels + ["titans_backward"] * kernels


@pytest.mark.parametrize(("precision", "least", "most"), [("high", 1e-4, 3e-3), ("medium", 1e-3, 0.03)])
def test_rounded_operands_stay_near(precision: str, least: float, most: float) -> None:
    """TF32 and bf16: 11 and 8 bits in products, state and sums in float32."""
    inputs = drawn(32, B=1, H=1, d=16, m=16, position=0, chunk=16)
    torch.set_float32_matmul_precision(precision)
    try:
        assert least < farthest(inputs) < most
    finally:
        torch.set_float32_matmul_precision("highest")


def test_equal_keys_at_full_strength() -> None:
    """Writes of one key reflect what the others wrote: terms of a series for the inverse would reach 1e14."""
    q, k, v, gates, state, rules, origin = drawn(32, B=1, H=1, d=16, m=16, position=0, chunk=32)
    k = k.detach()[:, :, :1].expand_as(k)
    gates = gates._replace(log_a_NT=0 * gates.log_a_NT, output_NRT=0 * gates.output_NRT + 2)
    with torch.no_grad():
        o, naive = (
            form(q, k, v, gates, state, rules, origin)[0] for form in (titans_memory, titans_memory_naive)
        )
    assert (o - naive).abs().max() < 1e-5 * naive.abs().max()


def test_the_model_uses_them(launches: list[str]) -> None:
    torch.manual_seed(0)
    model = LanguageModel(ModelConfig(variant="titans", vocab_size=64, dim=32, layers=1, head_dim=32))
    tokens = torch.randint(64, (1, 40))
    results = []
    for switch in ("1", "0"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(launch.SWITCH, switch)
            logits, _ = model(tokens)
        results.append([logits, *torch.autograd.grad(logits.square().mean(), model.parameters())])
    assert launches == ["titans_forward"] * 2 + ["titans_backward"] * 2
    for x, y in zip(*results, strict=True):
        assert (x - y).abs().max() < 1e-5 * (1 + y.abs().max())


@pytest.mark.parametrize("declined", ["float64", "width", "chunk", "no momentum"])
def test_others_take_the_torch_form(declined: str, launches: list[str]) -> None:
    sizes = {"B": 1, "H": 1, "d": 8 if declined == "width" else 16, "m": 16, "position": 0}
    q, k, v, gates, state, rules, origin = drawn(4, **sizes, chunk=65 if declined == "chunk" else 4)
    if declined == "no momentum":
        gates, state = gates._replace(log_theta_NT=None), state._replace(momentum=None)
    if declined == "float64":
        q, k, v = (x.double() for x in (q, k, v))
        gates = Gates(*(g if g is None else g.double() for g in gates))
        state, origin = (FastWeights(*(W.double() for W in weights)) for weights in (state.now, origin))
        state = MemoryState(state, state, state, 0)
    titans_memory(q, k, v, gates, state, rules, origin)
    assert launches == []
