"""Ways to learn a stream: each does what it says, beside the others and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hope_data.errors import InputError
from hope_eval.scoring.load import HopeModel
from hope_eval.scoring.scorer import Scorer
from hope_eval.tasks.learning import Learner, Learning, only_cms
from hope_model import LanguageModel, ModelConfig
from hope_model.tree import tensors

FIRST, SECOND = np.arange(2, 50), np.tile(np.arange(60, 52, -1), 6)


def scorer(variant: str = "hope", **cms: object) -> Scorer:
    torch.manual_seed(0)
    parts = {"memory": {"chunk": 8}, "cms": {"smallest": 8, "levels": 2, "teach_scale": 0.3, **cms}}
    model = LanguageModel(
        ModelConfig.named(variant, vocab_size=64, dim=16, layers=1, head_dim=8, hidden=16, **parts)
    )
    return Scorer(model)


def weights(learner: Learner) -> torch.Tensor:
    assert isinstance(learner.scorer.model, HopeModel)
    return torch.cat([p.detach().flatten() for p in learner.scorer.model.model.parameters()])


def trained(how: str, *parts: np.ndarray, penalty: float = 1e4) -> Learner:
    learner = Learner(scorer(), Learning(how, lr=1e-2, window=12, penalty=penalty))
    for part in parts:
        learner.learn(part)
    return learner


def test_each_way_trains_its_first_part_alike_and_what_nothing_holds_is_training() -> None:
    plain = weights(trained("train", FIRST))
    for how in ("replay", "ewc"):
        torch.testing.assert_close(weights(trained(how, FIRST)), plain, rtol=0, atol=0)
    both = weights(trained("train", FIRST, SECOND))
    torch.testing.assert_close(weights(trained("ewc", FIRST, SECOND, penalty=0.0)), both, rtol=0, atol=0)


def test_importance_is_the_mean_squared_gradient_and_holds_weights_to_where_they_were() -> None:
    learner = trained("ewc", FIRST)
    model = learner.scorer.model.model  # type: ignore[union-attr]
    expected = [torch.zeros_like(p) for p in model.parameters()]
    for start in range(0, 47, 12):
        row = torch.as_tensor(FIRST[start : start + 13])[None]
        loss = F.cross_entropy(model(row[:, :-1])[0][0], row[0, 1:])
        for fisher, gradient in zip(
            expected, torch.autograd.grad(loss, list(model.parameters())), strict=True
        ):
            fisher += gradient**2 / 4
    for (fisher, anchor), wanted, parameter in zip(
        learner._importance, expected, model.parameters(), strict=True
    ):
        torch.testing.assert_close(fisher, wanted)
        torch.testing.assert_close(anchor, parameter.detach(), rtol=0, atol=0)
    assert learner.memory_bytes == 8 * sum(p.numel() for p in model.parameters())
    start = weights(learner)
    moved = [(weights(trained("ewc", FIRST, SECOND, penalty=x)) - start).norm() for x in (0.0, 1e2, 1e5)]
    assert moved[0] > moved[1] > moved[2]


def test_what_is_replayed_goes_on_being_learned() -> None:
    lost = {how: trained(how, FIRST, *[SECOND] * 4).nats(FIRST) for how in ("train", "replay")}
    kept = trained("train", FIRST).nats(FIRST)
    assert lost["train"] > kept + 1 > lost["replay"] + 10


def test_a_reservoir_is_as_large_as_the_state_and_even() -> None:
    counts = np.zeros(40)
    for seed in range(200):
        learner = Learner(scorer(), Learning("replay", window=12), seed)
        learner.memory_bytes = 2 * 12 * 10
        for n in range(40):
            learner._keep(torch.tensor([[n]]))
        kept = [int(row) for row in learner._replayed]
        assert len(kept) == len(set(kept)) == 10
        counts[kept] += 1
    assert np.abs(counts / 200 - 0.25).max() < 0.11  # 3.5 standard errors


def test_only_the_fast_weights_of_the_cms_are_carried() -> None:
    asked = scorer()
    whole, cms = (Learner(asked, Learning(how)) for how in ("memorize", "cms"))
    for learner in (whole, cms):
        learner.learn(FIRST)
    fresh = asked.model.model.initial(1)  # type: ignore[union-attr]
    for before, now, read in zip(fresh.blocks, cms.state.blocks, whole.state.blocks, strict=True):
        for a, b in zip(tensors(before.mixer), tensors(now.mixer), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
        pairs = list(zip(tensors(now.channel), tensors(read.channel), strict=True))
        assert pairs
        for a, b in pairs:
            torch.testing.assert_close(a, b, rtol=0, atol=0)
    nothing = Learner(asked, Learning("cms")).nats(FIRST)
    assert abs(cms.nats(FIRST) - nothing) > 0.01
    assert abs(cms.nats(FIRST) - whole.nats(FIRST)) > 1e-3
    silent = Learner(scorer(teach_scale=0.0), Learning("cms"))
    before = silent.nats(FIRST)
    silent.learn(SECOND)
    assert silent.nats(FIRST) == pytest.approx(before, abs=1e-4)
    assert isinstance(asked.model, HopeModel)
    assert only_cms(asked.model, whole.state).position == whole.state.position == 47


@pytest.mark.parametrize(
    ("variant", "how", "said"),
    [
        ("titans", "cms", "no CMS"),
        ("transformer", "memorize", "full attention has no bounded state"),
        ("hope", "sleep", "choose memorize, cms, train, replay, ewc or each"),
    ],
)
def test_ways_that_a_model_does_not_have_are_refused(variant: str, how: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Learner(scorer(variant), Learning(how))


def test_a_layer_signal_is_refused_too() -> None:
    with pytest.raises(InputError, match="no CMS whose signal"):
        Learner(scorer(signal="layer"), Learning("cms"))
