"""Kernels, compilation and half precision: other ways to compute the same numbers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hope_model import LanguageModel, ModelConfig
from hope_model.ops.activations import l2norm
from hope_model.ops.deep_memory import FastWeights, Gates, MemoryState, Rules, titans_memory
from hope_model.ops.gated_delta import gated_delta, gated_delta_naive
from hope_model.ops.gated_delta.kernels import Kernels, gated_delta_kernels, kernels
from hope_model.tree import tensors


def their_loop(
    q: Tensor, k: Tensor, v: Tensor, *, g: Tensor, beta: Tensor | None = None, **rest: Any
) -> tuple[Tensor, Tensor]:
    """What flash-linear-attention documents of its kernels: tensors [B, T, H, .], state [B, H, K, V]."""
    assert rest["scale"] == 1.0
    assert all(x.is_contiguous() for x in (q, k, v, g))
    S, outputs = rest["initial_state"].double(), []
    for t in range(q.shape[1]):
        S = g[:, t, :, None, None].exp() * S
        u = v[:, t]
        if beta is not None:
            u = beta[:, t, :, None] * (u - (S * k[:, t, :, :, None]).sum(-2))
        S = S + k[:, t, :, :, None] * u[:, :, None]
        outputs.append((S * q[:, t, :, :, None]).sum(-2))
    return torch.stack(outputs, 1), S


def drawn(lead: tuple[int, ...], T: int, dtype: torch.dtype, device: str = "cpu") -> tuple[Tensor, ...]:
    torch.manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*lead, *shape, dtype=dtype, device=device)

    q, k, w = draw(T, 16), l2norm(draw(T, 16), -1), draw(T, 8)
    log_a = F.logsigmoid(draw(T) + 3)
    b = log_a.exp() * 2 * draw(T).sigmoid()
    b[..., 1] = 0
    w = w * b[..., None]
    return tuple(x.requires_grad_() for x in (q, k, w, log_a, b, draw(8, 16)))


@pytest.mark.parametrize("erase", [True, False])
@pytest.mark.parametrize("lead", [(2, 3), (4,), (2, 1, 3)])
def test_kernels_are_called_in_their_own_letters(
    lead: tuple[int, ...], erase: bool, assert_same: Callable[..., None]
) -> None:
    fake = Kernels(their_loop, their_loop)
    q, k, w, log_a, b, S = drawn(lead, 9, torch.float64)
    inputs = (q, k, w, log_a, b if erase else None, S)
    assert_same(
        lambda *x: gated_delta_naive(*x)[:2],
        lambda *x: gated_delta_kernels(fake, *x),
        *inputs,
        within=2e-5,  # FLOOR, and an initial state that passes through float32
    )


@pytest.mark.skipif(
    not torch.cuda.is_available() or kernels() is None, reason="needs a CUDA device and hope-model[cuda]"
)
@pytest.mark.parametrize("erase", [True, False])
def test_kernels_on_cuda_are_the_torch_form(erase: bool) -> None:
    inputs = drawn((2, 3), 130, torch.float32, "cuda")
    q, k, w, log_a, b, S = inputs
    results = []
    for form in (gated_delta, gated_delta_naive):
        o, S_T, _ = form(q, k, w, log_a, b if erase else None, S)
        used = [x for x in inputs if erase or x is not b]
        results.append((o, S_T, *torch.autograd.grad(o.sin().sum() + S_T.cos().sum(), used)))
    for x, y in zip(*results, strict=True):
        assert (x - y).abs().max() < 2e-2 * (1 + y.abs().max())


def test_without_the_extra_everything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU the kernels are not even looked for."""
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: pytest.fail("looked for a CUDA library"))
    inputs = drawn((2, 3), 9, torch.float32)
    assert torch.isfinite(gated_delta(*inputs)[0]).all()


def chunk_inputs(C: int) -> tuple[Tensor, ...]:
    """q, k, v, gates, and both layers' weights of one memory per head."""
    torch.manual_seed(0)
    lead = (2, 2)
    q, k, v = (l2norm(torch.randn(*lead, C, 8), -1) for _ in range(3))
    log_a, erase = torch.rand(*lead, C), torch.rand(*lead, C)
    output, eta = torch.rand(*lead, 1, C), 0.1 * torch.rand(*lead, 1, C)
    W2, W1 = torch.randn(*lead, 1, 8, 8), torch.randn(*lead, 1, 8, 8) * 8**-0.5
    return tuple(x.requires_grad_() for x in (q, k, v, -log_a / 10, erase, output, eta, W2, W1))


def chunk_step(*inputs: Tensor) -> tuple[Tensor, ...]:
    q, k, v, log_a, erase, output, eta, W2, W1 = inputs
    fast = FastWeights(W2, W1)
    gates = Gates(log_a, erase, output, eta, None)
    o, state = titans_memory(q, k, v, gates, MemoryState(fast, fast, None, 0), Rules(chunk=16))
    return (o, *tensors(state.now))


def test_chunk_step_compiles() -> None:
    """One graph without breaks, the same numbers and gradients. (Inductor takes 80 s for its C++; it agrees too.)"""
    inputs = chunk_inputs(16)
    compiled = torch.compile(chunk_step, backend="aot_eager", fullgraph=True)
    results = []
    for form in (chunk_step, compiled):
        outputs = form(*inputs)
        total = torch.stack([x.cos().sum() for x in outputs]).sum()
        results.append((*outputs, *torch.autograd.grad(total, inputs)))
    for x, y in zip(*results, strict=True):
        assert (x - y).abs().max() < 1e-5 * (1 + x.abs().max())


def test_recurrence_compiles() -> None:
    inputs = drawn((2, 3), 70, torch.float32)
    compiled = torch.compile(lambda *x: gated_delta(*x)[:2], backend="aot_eager", fullgraph=True)
    for x, y in zip(gated_delta(*inputs)[:2], compiled(*inputs), strict=True):
        assert (x - y).abs().max() < 1e-5 * (1 + x.abs().max())


@pytest.mark.parametrize("variant", ["hope", "titans", "gated_deltanet", "titans_mac"])
def test_bf16_training_step_has_float32_state_and_finite_gradients(variant: str) -> None:
    torch.manual_seed(0)
    model = LanguageModel(ModelConfig(variant=variant, vocab_size=29, dim=32, layers=2, head_dim=16))
    tokens = torch.randint(0, 29, (2, 150))
    with torch.autocast("cpu", torch.bfloat16):
        logits, state = model(tokens[:, :-1])
    F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    mixer = state.blocks[0].mixer
    memory = getattr(mixer, "memory", mixer)
    fast = tensors(getattr(memory, "memory", memory))
    kinds = {x.dtype for x in fast if x.dim() > 3}
    assert kinds == {torch.float32}
    if variant == "hope":
        assert {x.dtype for x in tensors(state.blocks[0].channel[0].delta)} == {torch.float32}
