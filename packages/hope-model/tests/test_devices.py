"""Kernels, compilation and half precision: other ways to compute the same numbers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hope_model import LanguageModel, ModelConfig
from hope_model.ops.activations import l2norm
from hope_model.ops.deep_memory import FastWeights, Gates, MemoryState, Rules, titans_memory
from hope_model.ops.gated_delta import gated_delta, gated_delta_naive
from hope_model.ops.gated_delta.kernels import fla_kernel, from_fla, to_fla
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

    q, k, v = draw(T, 16), l2norm(draw(T, 16), -1), draw(T, 8)
    log_a, beta = F.logsigmoid(draw(T) + 3), 2 * draw(T).sigmoid()
    beta[..., 1] = 0
    return tuple(x.requires_grad_() for x in (q, k, v, log_a, beta, draw(8, 16)))


def naive(q: Tensor, k: Tensor, v: Tensor, log_a: Tensor, beta: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    b = log_a.exp() * beta
    return gated_delta_naive(q, k, b[..., None] * v, log_a, b, S)[:2]


def by_fla(*inputs: Tensor) -> tuple[Tensor, Tensor]:
    """What `gated_delta` does on CUDA, with fla's documented loop in the place of its kernel."""
    return from_fla(*their_loop(**to_fla(*inputs)), inputs[2], inputs[5])


@pytest.mark.parametrize("lead", [(2, 3), (4,), (2, 1, 3)])
def test_kernel_is_called_in_its_own_letters(lead: tuple[int, ...], assert_same: Callable[..., None]) -> None:
    # An initial state passes through float32.
    assert_same(naive, by_fla, *drawn(lead, 9, torch.float64), within=1e-6)


@pytest.mark.parametrize("logit", [-80.0, -89.0, -104.0, -300.0])
def test_a_retention_near_zero_stays_finite(logit: float, assert_same: Callable[..., None]) -> None:
    """beta was b / a, and 0 / 0 from a logit of -104 on, infinite from -89 on."""
    q, k, v, log_a, beta, S = drawn((2, 3), 9, torch.float32)
    gate = F.logsigmoid(torch.where(torch.arange(9) % 3 == 1, logit, log_a.detach())).requires_grad_()
    for form in (by_fla, gated_delta):
        assert_same(naive, form, q, k, v, gate, beta, S, within=1e-5)
        outputs = form(q, k, v, gate, beta, S)
        grads = torch.autograd.grad(outputs[0].sum() + outputs[1].sum(), (q, k, v, gate, beta, S))
        assert all(x.isfinite().all() for x in (*outputs, *grads))


@pytest.mark.skipif(
    not torch.cuda.is_available() or fla_kernel() is None, reason="needs a CUDA device and hope-model[cuda]"
)
def test_kernel_on_cuda_is_the_torch_form() -> None:
    inputs = drawn((2, 3), 130, torch.float32, "cuda")
    results = []
    for form in (gated_delta, naive):
        o, S_T = form(*inputs)
        results.append((o, S_T, *torch.autograd.grad(o.sin().sum() + S_T.cos().sum(), inputs)))
    for x, y in zip(*results, strict=True):
        assert (x - y).abs().max() < 2e-2 * (1 + y.abs().max())


def test_without_the_extra_everything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU the kernels are not even looked for."""
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: pytest.fail("looked for a CUDA library"))
    inputs = drawn((2, 3), 9, torch.float32)
    assert torch.isfinite(gated_delta(*inputs)[0]).all()


@pytest.mark.parametrize("raised", ["ImportError('no packaging')", "RuntimeError('no driver')"])
def test_a_library_that_cannot_be_imported_is_done_without(
    raised: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fla-core imports `packaging`, which it does not declare."""
    (tmp_path / "fla").mkdir()
    (tmp_path / "fla/__init__.py").write_text(f"raise {raised}\n")
    monkeypatch.syspath_prepend(tmp_path)
    fla_kernel.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match="flash-linear-attention cannot be imported") as caught:
            assert [fla_kernel(), fla_kernel()] == [None, None]
        assert len(caught) == 1
    finally:
        fla_kernel.cache_clear()


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
    compiled = torch.compile(gated_delta, backend="aot_eager", fullgraph=True)
    for x, y in zip(gated_delta(*inputs), compiled(*inputs), strict=True):
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
