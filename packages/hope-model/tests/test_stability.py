"""Nothing overflows: short versions of examples/stability.py."""

import pytest
import torch
import torch.nn.functional as F

from hope_model import CMSConfig, LanguageModel, ModelConfig
from hope_model.bench_settings import choices
from hope_model.ops.cms import LevelWeights
from hope_model.ops.deep_memory import FastWeights, Gates, MemoryState, Rules, titans_memory
from hope_model.state import metrics

V = 32


def build(variant: str, **memory: int) -> LanguageModel:
    torch.manual_seed(0)
    cms = {"periods": [16, 64, 256], "teach_scale": 0.3}
    size = {"vocab_size": V, "dim": 16, "layers": 2, "head_dim": 8}
    return LanguageModel(ModelConfig.named(variant, cms=cms, memory=memory, **size))


@pytest.mark.parametrize("chunk", [1, 7, 256])
@pytest.mark.parametrize("tokens", ["random", "constant"])
def test_hope_stays_finite_at_every_chunk_length(chunk: int, tokens: str) -> None:
    """Weights ten times their usual size, so that gates saturate and memories are written hard."""
    model = build("hope", chunk=chunk)
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(10)
    length = 150 if chunk == 1 else 700
    x = torch.randint(V, (1, length)) if tokens == "random" else torch.ones(1, length, dtype=torch.int64)
    with torch.inference_mode():
        logits, state = model(x)
    assert logits.isfinite().all()
    for block, built in zip(state.blocks, model.blocks, strict=True):
        for level, slow in zip(block.channel, built.channel.levels, strict=True):  # type: ignore[union-attr, arg-type]
            for delta, theta in zip(level.delta or (), LevelWeights(slow.up, slow.down), strict=False):
                assert delta.norm() <= model.config.cms.delta_bound * theta.norm() * (1 + 1e-5)


@pytest.mark.parametrize("variant", choices())
def test_training_at_three_times_the_rate_stays_finite(variant: str) -> None:
    model = build(variant)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-2, weight_decay=0.1, betas=(0.9, 0.95))
    for step in range(12):
        tokens = torch.randint(V, (2, 90), generator=torch.Generator().manual_seed(step))
        logits, _ = model(tokens[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        assert loss.isfinite()
        assert norm.isfinite()
        optimizer.step()


def test_bound_is_what_keeps_a_long_stream_of_strong_writes_finite() -> None:
    """At a hundredfold teach_scale: with the bound the deltas stay small, without they grow."""
    tokens = torch.randint(V, (1, 4096), generator=torch.Generator().manual_seed(0))
    sizes = {}
    for bound in (0.1, 0.0):
        torch.manual_seed(0)
        cms = CMSConfig(periods=[16, 64], teach_scale=10.0, delta_bound=bound)
        model = LanguageModel(
            ModelConfig(variant="hope_attention", vocab_size=V, dim=16, layers=1, head_dim=8, cms=cms)
        )
        with torch.inference_mode():
            logits, state = model(tokens)
        sizes[bound] = metrics(state)["delta_norm_0"]
        if bound:
            assert logits.isfinite().all()
            assert logits.abs().max() < 10
    assert not sizes[0.0] < 10 * sizes[0.1]  # a NaN counts as growth


@pytest.mark.parametrize("chunk", [1, 16])
def test_outer_gradient_does_not_explode_through_a_memory_that_has_grown(chunk: int) -> None:
    """Keys that are alike and an output layer six times its first size, as early training on text makes them.

    Unclipped, each hidden write overshoots what the output layer then has to follow: the gradient of the last
    read at the first state is 2,190 with chunks of one token, clipped 0.15.
    """
    draw, size, T, d, m = torch.Generator().manual_seed(0), 6.0, 256, 64, 32

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    mean = 2 * normal(d)
    q, k, v = (F.normalize(normal(1, 1, T, d) + mean, dim=-1) for _ in range(3))
    first = FastWeights(normal(1, 1, m, d), normal(1, 1, d, m) * size * d**-0.5)
    state = FastWeights(*(W[None].requires_grad_() for W in first))
    momentum = FastWeights(*(torch.zeros_like(W) for W in state))
    one = torch.ones(1, 1, 1, T, dtype=torch.float64)
    gates = Gates(-0.01 * one[:, 0], None, one, 0.1 * one, -0.7 * one[:, 0])
    o, _ = titans_memory(q, k, v, gates, MemoryState(state, state, momentum, 0), Rules(chunk=chunk), first)
    aim = torch.arange(d, dtype=torch.float64).sin()
    for gradient in torch.autograd.grad(o[0, 0, -1] @ aim, state):
        assert 0.01 < gradient.norm() < 1
