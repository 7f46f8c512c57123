"""The hybrid optimiser: who gets what, what a step does, and that its memory survives."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hope_train.config import OptimConfig
from hope_train.optim import Named, Optimizer


def parameters() -> dict[str, Named]:
    torch.manual_seed(0)
    matrix = [("a.weight", nn.Parameter(torch.randn(8, 4)))]
    other = [
        ("embed", nn.Parameter(torch.randn(16, 4))),
        ("norm", nn.Parameter(torch.ones(4))),
        ("memory", nn.Parameter(torch.randn(2, 3, 4))),
    ]
    return {"matrix": matrix, "other": other}


def named(groups: dict[str, Named]) -> dict[str, nn.Parameter]:
    return {name: p for group in groups.values() for name, p in group}


def give_gradients(groups: dict[str, Named], seed: int) -> None:
    torch.manual_seed(seed)
    for p in named(groups).values():
        p.grad = torch.randn_like(p)


def test_counts() -> None:
    assert Optimizer(parameters(), OptimConfig()).counts() == {"muon": 32, "adamw": 64 + 4 + 24}
    assert Optimizer(parameters(), OptimConfig(name="adamw")).counts() == {"adamw": 32 + 64 + 4 + 24}


def test_only_tensors_with_two_axes_decay() -> None:
    groups = parameters()
    before = {name: p.detach().clone() for name, p in named(groups).items()}
    optimizer = Optimizer(groups, OptimConfig(lr=0.1, matrix_lr=0.1, weight_decay=0.5))
    for p in named(groups).values():
        p.grad = torch.zeros_like(p)
    optimizer.step(0.5)
    ratio = {name: float((p.detach() / before[name]).mean()) for name, p in named(groups).items()}
    assert ratio == pytest.approx({"a.weight": 0.975, "embed": 0.975, "norm": 1.0, "memory": 0.975})


def test_muon_moves_a_matrix_by_an_orthogonal_step_of_adamws_size() -> None:
    groups = parameters()
    weight = named(groups)["a.weight"]
    before = weight.detach().clone()
    give_gradients(groups, 1)
    Optimizer(groups, OptimConfig(matrix_lr=0.1, weight_decay=0.0)).step(1.0)
    update = (weight - before).detach()
    # torch's Newton-Schulz leaves singular values between about 0.7 and 1.2; times 0.2 sqrt(max(8, 4)) lr.
    singular = torch.linalg.svdvals(update) / (0.1 * 0.2 * 8**0.5)
    assert singular.min() > 0.6
    assert singular.max() < 1.3


def test_clip_bounds_the_global_norm_and_reports_the_former() -> None:
    groups = parameters()
    give_gradients(groups, 2)
    squares = sum(float(p.grad.square().sum()) for p in named(groups).values() if p.grad is not None)
    optimizer = Optimizer(groups, OptimConfig(clip=0.25))
    assert optimizer.clip().item() == pytest.approx(squares**0.5)
    assert optimizer.clip().item() == pytest.approx(0.25, rel=1e-4)
    assert Optimizer(groups, OptimConfig(clip=0.0)).clip().item() == pytest.approx(0.25, rel=1e-4)
    assert optimizer.clip().item() == pytest.approx(0.25, rel=1e-4)


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_memory_survives_bitwise(name: str) -> None:
    config = OptimConfig(name=name)
    groups = parameters()
    optimizer = Optimizer(groups, config)
    for seed in range(3):
        give_gradients(groups, seed)
        optimizer.step(1.0)
    kept = {key: value.clone() for key, value in optimizer.tensors().items()}
    slots = {"a.weight/momentum_buffer"} if name == "muon" else {"a.weight/exp_avg", "a.weight/exp_avg_sq"}
    assert slots | {"norm/exp_avg", "embed/step"} <= kept.keys()

    copies = {g: [(n, nn.Parameter(p.detach().clone())) for n, p in members] for g, members in groups.items()}
    other = Optimizer(copies, config)
    other.load_tensors(kept)
    for both, one in ((groups, optimizer), (copies, other)):
        give_gradients(both, 9)
        one.step(0.7)
    for key, p in named(groups).items():
        assert torch.equal(p, named(copies)[key]), key
