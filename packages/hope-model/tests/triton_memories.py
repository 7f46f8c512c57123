"""Memories by their Triton kernels are the token loop, in float32; run by test_triton_interpreter.py only."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpretedFunction

from hope_model import CMSConfig, LanguageModel, MemoryConfig, ModelConfig
from hope_model.ops.cms.fused import _written
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
from hope_model.ops.deep_memory.kernels import TRITON_SELF_MODIFYING, TRITON_TITANS
from hope_model.ops.triton import cms, launch
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


class Draw:
    """Tensors for one call: B sequences, H heads, widths d and m."""

    def __init__(self, *, T: int, B: int, H: int, d: int, m: int, position: int, chunk: int) -> None:
        self.T, self.B, self.H, self.d, self.m = T, B, H, d, m
        self.position, self.rules = position, Rules(chunk=chunk)
        self.generator = torch.Generator().manual_seed(T)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def leaf(self, *shape: int) -> Tensor:
        return self.normal(*shape).requires_grad_()

    def unit(self) -> Tensor:
        return F.normalize(self.normal(self.B, self.H, self.T, self.d), dim=-1).requires_grad_()

    def strength(self, top: float) -> Tensor:
        return (top * self.normal(self.B, self.H, 1, self.T).sigmoid()).requires_grad_()

    def weights(self, *lead: int) -> FastWeights:
        W2, W1 = self.normal(*lead, self.m, self.d), 0.5 * self.normal(*lead, self.d, self.m)
        return FastWeights(W2.requires_grad_(), W1.requires_grad_())

    def state(self, memories: int, momentum: FastWeights | None) -> MemoryState:
        now = self.weights(self.B, self.H, memories)
        inside = self.position % self.rules.chunk
        start = self.weights(self.B, self.H, memories) if inside else now
        return MemoryState(now, start, momentum, self.position)


def titans_inputs(**sizes: int) -> Inputs:
    draw = Draw(**sizes)
    B, H, T, d = draw.B, draw.H, draw.T, draw.d
    log_a, log_theta = (F.logsigmoid(draw.normal(B, H, T) + 2).requires_grad_() for _ in range(2))
    gates = Gates(log_a, None, draw.strength(2), draw.strength(0.1), log_theta)
    state = draw.state(1, draw.weights(B, H, 1))
    return draw.unit(), draw.unit(), draw.leaf(B, H, T, d), gates, state, draw.rules, draw.weights(H, 1)


def bank_inputs(*, self_modify: bool = True, **sizes: int) -> Inputs:
    draw = Draw(**sizes)
    B, H, d = draw.B, draw.H, draw.d
    written = 5 if self_modify else 1
    share = draw.normal(H, 5).sigmoid().requires_grad_()
    readout = Readout(draw.leaf(H, d), draw.leaf(H), draw.leaf(H, 5), draw.leaf(H, d), draw.leaf(H), share)
    gates = Gates(None, None, draw.strength(2), None, None)
    fixed = None if self_modify else draw.weights(B, H, 4)
    state = draw.state(written, None)
    return draw.unit(), draw.unit(), gates, readout, state, draw.rules, fixed, draw.weights(H, written)


def results(form: Callable[..., Any], inputs: Inputs) -> list[Tensor]:
    """Outputs, final states and every gradient (a memory that does not exist has no share: those are 0)."""
    leaves = list({id(x): x for x in tensors(inputs) if x.requires_grad}.values())
    outputs = tensors(form(*inputs))
    weights = [torch.linspace(-3, 4, x.numel()).cos().view(x.shape) for x in outputs]
    total = torch.stack([(x * w).sum() for x, w in zip(outputs, weights, strict=True)]).sum()
    return [*outputs, *torch.autograd.grad(total, leaves)]


def farthest(fast: Callable[..., Any], naive: Callable[..., Any], inputs: Inputs) -> float:
    """Largest difference between two forms, of each result's largest entry."""
    pairs = zip(results(fast, inputs), results(naive, inputs), strict=True)
    return max(((x - y).abs().max() / y.abs().max()).item() for x, y in pairs)


SPLITS = [
    # A chunk and a part; sequences share first weights.
    ({"T": 13, "B": 2, "H": 1, "d": 16, "m": 16, "position": 0, "chunk": 8}, 2),
    # Goes on inside a chunk; three whole chunks, a state kept before every second; heads differ.
    ({"T": 17, "B": 1, "H": 2, "d": 16, "m": 32, "position": 3, "chunk": 5}, 1),
    ({"T": 1, "B": 2, "H": 1, "d": 16, "m": 16, "position": 0, "chunk": 32}, 1),
]


@pytest.mark.parametrize(("sizes", "spans"), SPLITS)
def test_titans_kernels_are_the_token_loop(
    sizes: dict[str, int], spans: int, launches: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TRITON_TITANS, "chunks_a_record", 2)
    assert farthest(titans_memory, titans_memory_naive, titans_inputs(**sizes)) < 1e-5
    assert launches == ["titans_forward"] * spans + ["titans_backward"] * spans


@pytest.mark.parametrize("self_modify", [True, False])
@pytest.mark.parametrize(("sizes", "spans"), SPLITS)
def test_self_modifying_kernels_are_the_token_loop(
    sizes: dict[str, int],
    spans: int,
    launches: list[str],
    monkeypatch: pytest.MonkeyPatch,
    *,
    self_modify: bool,
) -> None:
    monkeypatch.setattr(TRITON_SELF_MODIFYING, "chunks_a_record", 2)
    inputs = bank_inputs(**sizes, self_modify=self_modify)
    assert farthest(self_modifying, self_modifying_naive, inputs) < 1e-5
    assert launches == ["self_modifying_forward"] * spans + ["self_modifying_backward"] * spans


@pytest.mark.parametrize(("precision", "least", "most"), [("high", 1e-4, 0.01), ("medium", 1e-3, 0.1)])
@pytest.mark.parametrize("kind", ["titans", "self_modifying"])
def test_rounded_operands_stay_near(kind: str, precision: str, least: float, most: float) -> None:
    """TF32 and bf16: 11 and 8 bits in products, state and sums in float32."""
    titans = kind == "titans"
    forms = (titans_memory, titans_memory_naive) if titans else (self_modifying, self_modifying_naive)
    draw = titans_inputs if titans else bank_inputs
    inputs = draw(T=20, B=1, H=1, d=16, m=16, position=0, chunk=10)
    torch.set_float32_matmul_precision(precision)
    try:
        assert least < farthest(*forms, inputs) < most
    finally:
        torch.set_float32_matmul_precision("highest")


def test_equal_keys_at_full_strength() -> None:
    """Writes of one key reflect what the others wrote: terms of a series for the inverse would reach 1e14."""
    inputs = titans_inputs(T=32, B=1, H=1, d=16, m=16, position=0, chunk=32)
    q, k, v, gates, *rest = inputs
    k = k.detach()[:, :, :1].expand_as(k)
    gates = gates._replace(log_a_NT=0 * gates.log_a_NT, output_NRT=0 * gates.output_NRT + 2)
    with torch.no_grad():
        o, naive = (form(q, k, v, gates, *rest)[0] for form in (titans_memory, titans_memory_naive))
    # Float32 products differ between processors: 2.4e-5 was the most, and the token loop itself has 4e-7.
    assert (o - naive).abs().max() < 1e-4 * naive.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("later", "bound"), [(False, 0.2), (True, 0.5), (True, 0.0)])
def test_a_cms_level_is_written(
    dtype: torch.dtype, bound: float, monkeypatch: pytest.MonkeyPatch, *, later: bool
) -> None:
    """Delta in float32; theta + delta rounded once (the interpreter cuts where a GPU rounds)."""
    monkeypatch.setattr(cms, "TILE", 64)
    torch.manual_seed(0)

    delta, total = (torch.randn(3, 24, 9), torch.randn(3, 24, 9)) if later else (None, None)
    gradient, theta = torch.randn(3, 24, 9).to(dtype), torch.randn(24, 9)
    how = {"rate": 0.3, "retention": 0.9, "bound": bound}
    reference = _written(delta, gradient, total, theta, **how)
    precise, rounded = cms.written(delta, gradient, total, theta, **how)
    assert (precise.dtype, rounded.dtype) == (torch.float32, dtype)
    assert (precise - reference).abs().max() < 1e-6 * reference.abs().max()
    most = 1e-6 if dtype == torch.float32 else 8e-3
    assert (rounded - theta - reference).abs().max() < most * (theta + reference).abs().max()
    norm = torch.linalg.matrix_norm(precise)
    assert not bound or (norm < 1.0001 * bound * torch.linalg.matrix_norm(theta)).all()


@pytest.mark.parametrize(
    ("variant", "kernels"),
    [
        ("titans", {"titans_forward": 2, "titans_backward": 2}),
        ("hope_attention", {"cms_accumulate": 12, "cms_bound": 12}),
    ],
)
def test_the_model_uses_them(variant: str, kernels: dict[str, int], launches: list[str]) -> None:
    torch.manual_seed(0)
    levels = CMSConfig(periods=[8, 16], teach_scale=0.5)
    model = LanguageModel(
        ModelConfig(variant=variant, vocab_size=64, dim=32, layers=1, head_dim=32, cms=levels)
    )
    tokens = torch.randint(64, (1, 40))
    results = []
    for switch in ("1", "0"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(launch.SWITCH, switch)
            logits, _ = model(tokens)
        results.append([logits, *torch.autograd.grad(logits.square().mean(), model.parameters())])
    assert Counter(launches) == kernels
    for x, y in zip(*results, strict=True):
        assert (x - y).abs().max() < 1e-5 * (1 + y.abs().max())


@pytest.mark.parametrize("declined", ["float64", "width", "chunk", "no momentum"])
def test_others_take_the_torch_form(declined: str, launches: list[str]) -> None:
    d, chunk = 8 if declined == "width" else 16, 65 if declined == "chunk" else 4
    inputs = titans_inputs(T=4, B=1, H=1, d=d, m=16, position=0, chunk=chunk)
    q, k, v, gates, state, rules, origin = inputs
    if declined == "no momentum":
        gates, state = gates._replace(log_theta_NT=None), state._replace(momentum=None)
    if declined == "float64":
        q, k, v = (x.double() for x in (q, k, v))
        gates = Gates(*(g if g is None else g.double() for g in gates))
        state, origin = (FastWeights(*(W.double() for W in weights)) for weights in (state.now, origin))
        state = MemoryState(state, state, state, 0)
    titans_memory(q, k, v, gates, state, rules, origin)
    assert launches == []


STEPS = {
    "hope": {"step_convolution": 1, "step_self_modifying": 1, "step_cms_up": 2, "step_cms_down": 2},
    "titans": {"step_convolution": 1, "step_titans": 1},
    "hope_deltanet": {"step_convolution": 1, "step_deltanet": 1, "step_cms_up": 2, "step_cms_down": 2},
}


@pytest.mark.parametrize(
    ("variant", "dtype", "bound"),
    [*((variant, torch.float64, 1e-12) for variant in STEPS), ("titans", torch.float32, 1e-5)],
)
def test_decoding_by_kernels_is_the_stream(
    variant: str, dtype: torch.dtype, bound: float, launches: list[str]
) -> None:
    """One token a call over chunks' and segments' ends, two sequences: logits and states of the torch form."""
    torch.manual_seed(0)
    memory = MemoryConfig(chunk=4, hidden=16)
    if dtype == torch.float64:  # numbers that float32 holds exactly, as kernels take them
        memory = MemoryConfig(chunk=4, hidden=16, activation="relu", eta_max=0.125)
    levels = CMSConfig(periods=[4, 8], teach_scale=0.5)
    sizes = {"vocab_size": 64, "dim": 32, "layers": 1, "head_dim": 16, "hidden": 40}
    model = LanguageModel(ModelConfig(variant=variant, memory=memory, cms=levels, **sizes)).to(dtype)
    for name, weight in model.named_parameters():
        if weight.dim() < 3:  # gates and biases that differ between heads
            weight.data += 0.1 * torch.randn(weight.shape, dtype=dtype) * (name.count("norm") + 1)
    tokens, forms = torch.randint(64, (2, 10)), []
    with torch.no_grad():
        _, first = model(tokens[:, :3])
        launches.clear()
        for switch in ("1", "0"):
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv(launch.SWITCH, switch)
                state, logits = first, []
                for token in tokens[:, 3:].T:
                    row, state = model(token[:, None], state)
                    logits.append(row)
            forms.append([*logits, *tensors(state.blocks)])
    assert Counter(launches) == {name: 7 * count for name, count in STEPS[variant].items()}
    for x, y in zip(*forms, strict=True):
        assert x.dtype == y.dtype
        assert (x - y).abs().max() < bound * (1e-3 + y.abs().max())


@pytest.mark.parametrize(
    ("variant", "tokens", "history"),
    [("titans", 1, True), ("titans", 2, False), ("hope_paper", 1, False), ("hope_attention", 1, False)],
)
def test_other_calls_are_not_by_steps(
    variant: str, tokens: int, launches: list[str], *, history: bool
) -> None:
    """Those of a training or a prompt, of other rules, of levels side by side."""
    torch.manual_seed(0)
    cms = CMSConfig(wiring="independent")
    model = LanguageModel(
        ModelConfig(variant=variant, vocab_size=64, dim=32, layers=1, head_dim=16, conv=1, cms=cms)
    )
    with torch.set_grad_enabled(history):
        model(torch.zeros(1, tokens, dtype=torch.int64))
    assert not [name for name in launches if name.startswith("step_")]
