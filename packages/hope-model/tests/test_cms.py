"""Continuum memory: closed-form gradient == autograd, and each level sees exactly its own tokens."""

from collections.abc import Callable

import pytest
import torch

from hope_model import CMSConfig, ModelConfig
from hope_model.layers.cms import CMS, CMSState
from hope_model.ops.cms import (
    LevelWeights,
    cms_bounded,
    cms_delta_rule,
    cms_delta_rule_naive,
    cms_gradient,
    cms_gradient_naive,
    cms_level,
    cms_level_naive,
)

B, T, D, h = 2, 5, 3, 4


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("activation", ["silu", "relu", "gelu"])
def test_closed_form_gradient_is_autograds(activation: str, assert_same: Callable[..., None]) -> None:
    torch.manual_seed(0)
    weights = LevelWeights(draw(B, h, D), draw(B, D, h))
    assert_same(
        cms_gradient_naive, cms_gradient, draw(B, T, D), draw(B, T, D), weights, activation, within=1e-12
    )


@pytest.mark.parametrize("length", [1, 5, 70])
def test_delta_rule_is_the_token_loop(length: int, assert_same: Callable[..., None]) -> None:
    """Delta, and its gradient by inputs, signals, rates, weights and the former delta."""
    torch.manual_seed(0)
    weights, delta = (LevelWeights(draw(B, h, D), draw(B, D, h)) for _ in range(2))
    rate = (torch.rand(B, length, dtype=torch.float64) * 2).requires_grad_()
    u, teach = draw(B, length, D), draw(B, length, D)
    assert_same(cms_delta_rule_naive, cms_delta_rule, u, teach, rate, weights, delta, "silu")


def test_delta_rule_constants_and_limits() -> None:
    """Rate 0 changes nothing; a large rate replaces what was stored at the key by minus the gradient over |k|^2."""
    torch.manual_seed(0)
    weights, delta = (LevelWeights(draw(B, h, D), draw(B, D, h)) for _ in range(2))
    u, teach, rate = draw(B, 1, D), draw(B, 1, D), torch.zeros(B, 1, dtype=torch.float64)
    still = cms_delta_rule(u, teach, rate, weights, delta, "silu")
    assert all(torch.equal(a, b) for a, b in zip(still, delta, strict=True))
    after = cms_delta_rule(u, teach, rate + 1e12, weights, delta, "silu")
    phi = torch.nn.functional.silu(u @ weights.up.mT)
    recalled = (after.down @ phi.mT).mT
    assert (recalled + teach).abs().max() < 1e-6


@pytest.mark.parametrize("bound", [0.5, 2.0])
def test_bound_shrinks_each_matrix_to_its_share_of_theta(bound: float) -> None:
    torch.manual_seed(0)
    theta = LevelWeights(draw(h, D), draw(D, h))
    delta = LevelWeights(draw(B, h, D) * 9, draw(B, D, h) * 0.01)
    up, down = cms_bounded(delta, theta, bound)
    assert (torch.linalg.matrix_norm(up) - bound * theta.up.norm()).abs().max() < 1e-12
    assert (
        torch.nn.functional.normalize(up.flatten(1)) - torch.nn.functional.normalize(delta.up.flatten(1))
    ).abs().max() < 1e-12
    assert torch.equal(down, delta.down)


def test_level_is_the_token_loop(assert_same: Callable[..., None]) -> None:
    torch.manual_seed(0)
    theta = LevelWeights(draw(h, D), draw(D, h))
    delta = LevelWeights(*(W.detach() for W in (draw(B, h, D), draw(B, D, h))))
    for fast in (None, delta):
        assert_same(cms_level_naive, cms_level, draw(B, T, D), theta, fast, "silu")


def test_second_order_reaches_the_delta(assert_same: Callable[..., None]) -> None:
    torch.manual_seed(0)
    theta, delta = LevelWeights(draw(h, D), draw(D, h)), LevelWeights(draw(B, h, D), draw(B, D, h))
    assert_same(cms_level_naive, cms_level, draw(B, T, D), theta, delta, "silu")


@pytest.mark.parametrize(
    ("periods", "pieces"),
    [
        *[(p, n) for p in ([2, 4, 8], [1, 4, 32], [2, 6, 6], [4]) for n in ([1] * 40, [40], [7, 20, 13])],
        ([1, 4, 32, 128], [100, 200]),
        ([8, 32, 128, 512], [700, 400]),
        ([512, 2048, 8192, 32768], [30_000, 36_000]),
        ([2, 4, 8, 16, 32], [17, 60]),
    ],
)
def test_cadence_each_level_sees_exactly_its_own_tokens(periods: list[int], pieces: list[int]) -> None:
    """Teach signals 1, 2, 3 ...: a level's write is the sum of the signals of its own chunk, no more, no less.

    Inputs are ones and signals constant over the width: `down` moves by phi(up 1) times the sum of the signals.
    """
    config = ModelConfig(dim=4, head_dim=4, cms=CMSConfig(periods=periods, retention=0.0, delta_bound=0.0))
    torch.manual_seed(0)
    cms = CMS(config, h, 0.5, 0.0).double()  # down = 0: the hidden layer gets no gradient and stays
    segment, tiny = min(periods), 1e-6 * (40 / sum(pieces)) ** 2  # so small a write leaves phi as it is
    state: CMSState = cms.initial(1)
    written: list[dict[int, torch.Tensor]] = [{} for _ in periods]
    position = 0
    for piece in pieces:
        done = 0
        while done < piece:
            n = min(piece - done, segment - position % segment)
            _, state = cms(torch.ones(1, n, 4, dtype=torch.float64), state, teach=True)
            signal = torch.arange(position + 1, position + n + 1, dtype=torch.float64)
            before = [level.delta for level in state]
            position += n
            done += n
            state = cms.teach(
                state,
                signal[None, :, None].expand(1, n, 4),
                position,
                (tiny,) * len(periods),
                (True,) * len(periods),
            )
            for level, (old, new) in enumerate(zip(before, state, strict=True)):
                if new.delta is not old and new.delta is not None:
                    written[level][position] = new.delta.down
        state = cms.settle(state, (tiny,) * len(periods))
    for period, writes, level in zip(periods, written, cms.levels, strict=True):
        assert list(writes) == list(range(period, sum(pieces) + 1, period))
        phi = torch.nn.functional.silu(level.up.sum(-1))  # type: ignore[operator, union-attr]
        for end, down in writes.items():
            own = sum(range(end - period + 1, end + 1)) / segment
            assert (down[0] / tiny + own * phi).abs().max() < 1e-4 * own


def test_periods_must_fit() -> None:
    with pytest.raises(ValueError, match="multiples of the smallest"):
        ModelConfig(cms=CMSConfig(periods=[2, 3]))
