"""Where C sees only addresses: other types, missing rows, spoilt sequences, threads, forks, the cache."""

import multiprocessing
import os
from typing import Any

import pytest
import torch

from hope_model import LanguageModel, ModelConfig
from hope_model.layers.basic import CausalConv
from hope_model.ops.deep_memory import FastWeights, Gates, MemoryState, Rules, titans_memory
from hope_model.ops.gated_delta import recurrence
from hope_model.ops.native import build
from hope_model.ops.native.convolution import KERNEL as CONVOLUTION
from hope_model.state import clone

pytestmark = pytest.mark.skipif(build.kernels("gated_delta") is None, reason="no C++ compiler")
DOUBLE = {"dtype": torch.float64}


def delta(B: int, d: int = 5, T: int = 11) -> list[torch.Tensor]:
    """Inputs of the recurrence whose widths fill no vector."""
    torch.manual_seed(0)
    q, k, w = (torch.randn(B, T, d, **DOUBLE) for _ in range(3))
    k = torch.nn.functional.normalize(k, dim=-1)
    log_a, b, S = -torch.rand(B, T, **DOUBLE), torch.rand(B, T, **DOUBLE), torch.randn(B, d, d, **DOUBLE)
    return [q, k, w, log_a, b, S]


def memory(B: int = 2, d: int = 3, m: int = 5, T: int = 9) -> tuple[Any, ...]:
    torch.manual_seed(0)
    q, k, v = (torch.nn.functional.normalize(torch.randn(B, 1, T, d, **DOUBLE), dim=-1) for _ in range(3))
    first = FastWeights(torch.randn(1, 1, m, d, **DOUBLE), torch.randn(1, 1, d, m, **DOUBLE))
    now = FastWeights(*(W.expand(B, *W.shape).clone() for W in first))
    momentum = FastWeights(*(torch.zeros_like(W) for W in now))
    one = torch.full((B, 1, T), -0.1, **DOUBLE)
    gates = Gates(one, None, -10 * one[:, :, None], -one[:, :, None], one)
    return q, k, v, gates, MemoryState(now, now, momentum, 0), Rules(chunk=4), first


def test_a_spoilt_sequence_leaves_the_others_alone() -> None:
    """Its infinities must not stay in what pads rows to whole vectors."""
    inputs = delta(3)
    inputs[2][0, 3] = float("nan")
    leaves = [x.requires_grad_() for x in inputs]
    o, S, _ = recurrence(*leaves, chunk=4)
    grads = torch.autograd.grad(o[1:].square().sum() + S[1:].square().sum(), leaves)
    assert o[0].isnan().any()
    assert all(g[1:].isfinite().all() for g in grads)
    alone = [x[1:].detach().requires_grad_() for x in inputs]
    o, S, _ = recurrence(*alone, chunk=4)
    for g, h in zip(grads, torch.autograd.grad(o.square().sum() + S.square().sum(), alone), strict=True):
        assert torch.equal(g[1:], h)


@pytest.mark.parametrize("variant", ["titans", "self_modifying_titans"])
def test_a_memory_that_is_spoilt_is_seen(variant: str) -> None:
    """ReLU keeps what is not a number, and only in the sequences that have it."""
    torch.manual_seed(0)
    model = LanguageModel(ModelConfig(variant=variant, vocab_size=16, dim=10, head_dim=5, layers=1)).double()
    tokens = torch.randint(16, (3, 40))
    with torch.no_grad():
        state = clone(model.initial(3))
        clean, _ = model(tokens, state)
        state.blocks[0].mixer.memory.now.W2_NRmd[0] = float("nan")
        spoilt, _ = model(tokens, state)
    assert spoilt[0].isnan().any()
    assert torch.equal(spoilt[1:], clean[1:])


def test_gates_of_another_type_run_as_in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v, gates, *others = memory()
    other = gates._replace(eta_NRT=gates.eta_NRT.float())
    found, _ = titans_memory(q, k, v, other, *others)
    monkeypatch.setenv(build.SWITCH, "0")
    expected, _ = titans_memory(q, k, v, other, *others)
    assert (found - expected).abs().max() < 1e-12


def test_gates_of_too_few_sequences_are_refused() -> None:
    q, k, v, gates, *others = memory()
    with pytest.raises(ValueError, match=r"titans: log_a has shape \[1, 8\], not \[2, 8\]"):
        titans_memory(q, k, v, gates._replace(log_a_NT=gates.log_a_NT[:1]), *others)


def test_a_kernel_refuses_what_it_would_read_beyond() -> None:
    x, tail, weight = torch.randn(2, 5, 4), torch.randn(2, 2, 4), torch.randn(1, 3, 4)
    sizes = {"N": 2, "T": 5, "D": 4, "J": 3}
    with pytest.raises(TypeError, match=r"convolution: weight is torch.float64"):
        CONVOLUTION(sizes, x=x, tail=tail, weight=weight.double())
    with pytest.raises(TypeError, match=r"convolution: tail is torch.float32 .* others are torch.bfloat16"):
        CONVOLUTION(sizes, x=x.bfloat16(), tail=tail, weight=weight)
    with pytest.raises(ValueError, match=r"convolution: x has shape \[1, 5, 4\], not \[2, 5, 4\]"):
        CONVOLUTION(sizes, x=x[:1], tail=tail, weight=weight)


@pytest.mark.parametrize("variant", ["gated_deltanet", "titans", "self_modifying_titans"])
def test_a_model_in_half_precision_runs(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    config = ModelConfig(variant=variant, vocab_size=16, dim=32, head_dim=16, layers=1)
    model, tokens = LanguageModel(config).bfloat16(), torch.randint(16, (2, 40))
    native, _ = model(tokens)
    monkeypatch.setenv(build.SWITCH, "0")
    in_torch, _ = model(tokens)
    assert (native.float() - in_torch.float()).abs().max() < 0.01 * in_torch.float().abs().max()


def test_no_sequence_is_no_work() -> None:
    conv = CausalConv(4, 3)
    y, tail = conv(torch.zeros(0, 5, 4), conv.initial(0))
    assert (y.shape, tail.shape) == ((0, 5, 4), (0, 2, 4))


def test_a_backward_goes_on_where_kernels_are_no_longer_wanted() -> None:
    x = torch.randn(2, 6, 8, requires_grad=True)
    y, _ = CausalConv(8, 3)(x, torch.zeros(2, 2, 8))
    with build.without_kernels():
        y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.ones_like(x))


def _in_a_child(queue: Any) -> None:
    torch.set_num_threads(2)
    o, _, _ = recurrence(*delta(4))
    queue.put(float(o.sum()))


def test_a_forked_child_computes() -> None:
    """The parent's threads are not in it."""
    if not hasattr(os, "fork"):
        pytest.skip("no fork")
    torch.set_num_threads(2)
    expected = float(recurrence(*delta(4))[0].sum())
    torch.set_num_threads(1)  # torch's own threads do not survive a fork either
    context: Any = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_in_a_child, args=(queue,))
    child.start()
    child.join(60)
    alive = child.is_alive()
    child.kill()
    assert not alive
    assert queue.get() == expected
