"""The hybrid optimiser: who gets what, what a step does, and that its memory survives."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hope_model import ModelConfig
from hope_model.counting import build_meta, parameter_groups
from hope_model.errors import InputError
from hope_train.config import GroupConfig, OptimConfig
from hope_train.optim import Named, Optimizer, muon
from hope_train.optim.muon import M3, Muon, newton_schulz


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


@pytest.mark.parametrize("shape", [(8, 4), (4, 8), (6, 6)])
def test_muon_is_torchs_bitwise(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int]) -> None:
    """In bfloat16, as on an accelerator."""
    monkeypatch.setattr(muon, "precision", lambda matrix: torch.bfloat16)
    torch.manual_seed(3)
    a, b = (nn.Parameter(w.clone()) for w in [torch.randn(shape)] * 2)
    ours = Muon([a], lr=0.02, weight_decay=0.1, momentum=0.95)
    theirs = torch.optim.Muon([b], lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        a.grad = b.grad = torch.randn(shape)
        ours.step()
        theirs.step()
    assert torch.equal(a, b)


def test_m3_is_algorithm_1() -> None:
    """Step by step from the formula: fast and slow momentum, the latter refreshed every 2 steps."""
    torch.manual_seed(4)
    p = nn.Parameter(torch.randn(6, 4))
    keep = {"momentum": 0.9, "beta2": 0.8, "eps": 1e-8, "every": 2, "slow_momentum": 0.5, "share": 0.3}
    optimizer = M3([p], lr=0.1, weight_decay=0.0, **keep)  # type: ignore[arg-type]
    fast, slow, square, total = (torch.zeros(6, 4) for _ in range(4))
    direction = torch.zeros(6, 4)
    for step in range(1, 6):
        g, before = torch.randn(6, 4), p.detach().clone()
        p.grad = g
        optimizer.step()
        fast, square, total = 0.9 * fast + 0.1 * g, 0.8 * square + 0.2 * g**2, total + g
        if step % 2 == 0:
            slow, total = 0.5 * slow + 0.5 * total / 2, torch.zeros(6, 4)
            direction = newton_schulz([slow])[0]
        whole = newton_schulz([fast])[0] + 0.3 * direction
        update = whole / ((square / (1 - 0.8**step)).sqrt() + 1e-8)
        expected = -0.1 * 0.2 * update / update.square().mean().sqrt()
        torch.testing.assert_close(p.detach() - before, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("at_once", [1, 400, 2**22])
def test_matrices_side_by_side_are_matrices_alone(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    """Whatever their shapes, their order, and however many fit; and alone they are the iteration as it is written."""
    monkeypatch.setattr(muon, "SIDE_BY_SIDE", at_once)
    torch.manual_seed(0)
    shapes = [(16, 8), (8, 16), (12, 12), (16, 8), (8, 24), (8, 16)]
    matrices = [torch.randn(*shape) for shape in shapes]
    for matrix, found in zip(matrices, newton_schulz(matrices), strict=True):
        X = matrix if matrix.size(0) <= matrix.size(1) else matrix.T
        X = X / X.norm()
        for _ in range(5):
            A = X @ X.T
            X = torch.addmm(X, torch.addmm(A, A, A, beta=-4.7750, alpha=2.0315), X, beta=3.4445)
        expected = X if matrix.size(0) <= matrix.size(1) else X.T
        assert found.dtype == torch.float32  # no CPU without bfloat16 products shall emulate them
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        singular = torch.linalg.svdvals(found)
        assert 0.5 < float(singular.min()) < float(singular.max()) < 1.3
    assert newton_schulz([]) == []


def test_groups_learn_at_their_own_pace() -> None:
    groups = parameters()
    before = {name: p.detach().clone() for name, p in named(groups).items()}
    rules = [GroupConfig(match="emb*", lr=0.5), GroupConfig(match="a.*", lr=0.0)]
    optimizer = Optimizer(groups, OptimConfig(lr=0.1, weight_decay=0.0, groups=rules))
    for p in named(groups).values():
        p.grad = torch.ones_like(p)
    optimizer.step(1.0, [0.5, 0.0])
    moved = {name: float((before[name] - p.detach()).abs().max()) for name, p in named(groups).items()}
    assert moved == pytest.approx({"a.weight": 0.0, "embed": 0.05, "norm": 0.1, "memory": 0.1}, abs=1e-6)


def test_every_level_of_the_cms_can_have_its_own_pace() -> None:
    model = build_meta(ModelConfig(vocab_size=64, dim=64, layers=2, head_dim=32))
    rules = [GroupConfig(match=f"*.channel.levels.{n}.*", lr=0.5**n) for n in range(4)]
    optimizer = Optimizer(parameter_groups(model), OptimConfig(groups=rules))
    levels = [p for name, p in optimizer.named.items() if ".channel.levels." in name]
    ruled = [g for part in optimizer._parts for g in part.param_groups if g["rule"] >= 0]
    assert {g["rule"] for g in ruled} == {0, 1, 2, 3}
    assert sum(len(g["params"]) for g in ruled) == len(levels)
    with pytest.raises(InputError, match=r"optim.groups: '\*\.channel\.level\.0\.\*' fits no parameter"):
        Optimizer(parameter_groups(model), OptimConfig(groups=[GroupConfig(match="*.channel.level.0.*")]))


def test_clip_bounds_the_global_norm_and_reports_the_former() -> None:
    groups = parameters()
    give_gradients(groups, 2)
    squares = sum(float(p.grad.square().sum()) for p in named(groups).values() if p.grad is not None)
    optimizer = Optimizer(groups, OptimConfig(clip=0.25))
    assert optimizer.clip().item() == pytest.approx(squares**0.5)
    assert optimizer.clip().item() == pytest.approx(0.25, rel=1e-4)
    assert Optimizer(groups, OptimConfig(clip=0.0)).clip().item() == pytest.approx(0.25, rel=1e-4)
    assert optimizer.clip().item() == pytest.approx(0.25, rel=1e-4)


@pytest.mark.parametrize("name", ["muon", "m3", "adamw"])
def test_memory_survives_bitwise(name: str) -> None:
    config = OptimConfig(name=name, slow_every=2)
    groups = parameters()
    optimizer = Optimizer(groups, config)
    for seed in range(3):
        give_gradients(groups, seed)
        optimizer.step(1.0)
    kept = {key: value.clone() for key, value in optimizer.tensors().items()}
    slots = {
        "muon": {"a.weight/momentum_buffer"},
        "m3": {f"a.weight/{slot}" for slot in ("fast", "square", "sum", "slow", "direction", "step")},
        "adamw": {"a.weight/exp_avg", "a.weight/exp_avg_sq"},
    }
    assert slots[name] | {"norm/exp_avg", "embed/step"} <= kept.keys()

    copies = {g: [(n, nn.Parameter(p.detach().clone())) for n, p in members] for g, members in groups.items()}
    other = Optimizer(copies, config)
    other.load_tensors(list(kept), lambda key, like: kept[key])
    for both, one in ((groups, optimizer), (copies, other)):
        give_gradients(both, 9)
        one.step(0.7)
    for key, p in named(groups).items():
        assert torch.equal(p, named(copies)[key]), key
