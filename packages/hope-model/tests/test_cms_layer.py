"""The whole continuum memory against a token loop: every wiring, write rule and cadence, with all gradients."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hope_model import CMSConfig, MemorySettings, ModelConfig
from hope_model.layers.cms import CMS
from hope_model.ops.cms import LevelWeights, cms_delta_rule_naive, cms_gradient_naive, cms_level_naive

B, T, D, H = 2, 13, 4, 2
ON = {"teach_scale": 0.7, "lr": 0.9, "second_order": True, "retention": 0.8}
SETTINGS = MemorySettings(0.7, 1.0, 0.0, rates=(1.0, 0.5, 1.5))


def build(**changes: object) -> CMS:
    cms = CMSConfig(**{**ON, **changes})  # type: ignore[arg-type]
    torch.manual_seed(0)
    layer = CMS(ModelConfig(dim=D, head_dim=D // H, cms=cms), 3, 0.7, 0.7).double()
    if layer.mix_LH is not None:
        torch.nn.init.normal_(layer.mix_LH)
    return layer


def naive(cms: CMS, x_BTD: Tensor, teach_BTD: Tensor) -> tuple[Tensor, list[LevelWeights]]:
    """One token at a time: forward through every level, then the writes that are due (eq. 70-73)."""
    c = cms.config
    levels = [(cms._theta(n), cms.chunks[n]) for n in range(len(cms.chunks))]
    zero = [LevelWeights(*(torch.zeros(B, *W.shape).double() for W in theta)) for theta, _ in levels]
    delta, origin, outputs = list(zero), list(zero), []
    seen: list[list[tuple[Tensor, Tensor]]] = [[] for _ in levels]
    for t in range(T):
        x = x_BTD[:, t : t + 1]
        u = x
        for n, (theta, _) in enumerate(levels):
            inputs = x if c.wiring == "independent" else u
            mix = torch.ones(D) if cms.mix_LH is None else cms.mix_LH[n].repeat_interleave(D // H)
            seen[n].append((inputs, mix * teach_BTD[:, t : t + 1]))
            u = u + mix * cms_level_naive(inputs, theta, delta[n], "silu")
        outputs.append(u - x)
        for n, (theta, period) in enumerate(levels):
            if (t + 1) % period:
                continue
            inputs, signals = (torch.cat(parts, 1) for parts in zip(*seen[n], strict=True))
            seen[n] = []
            weights = LevelWeights(*(W + d for W, d in zip(theta, delta[n], strict=True)))
            kept = LevelWeights(*(c.retention * d for d in delta[n]))
            rate = SETTINGS.scales(len(levels))[n] * c.lr / cms.segment
            if c.delta_rule:
                rates = torch.full(inputs.shape[:2], rate).double()
                delta[n] = cms_delta_rule_naive(inputs, signals, rates, weights, kept, "silu")
            else:
                gradient = cms_gradient_naive(inputs, signals, weights, "silu")
                delta[n] = LevelWeights(*(d - rate * g for d, g in zip(kept, gradient, strict=True)))
            if c.delta_bound:
                share = [
                    (c.delta_bound * W.norm() / d.flatten(1).norm(dim=1)).clamp(max=1)[:, None, None]
                    for d, W in zip(delta[n], theta, strict=True)
                ]
                delta[n] = LevelWeights(*(s * d for s, d in zip(share, delta[n], strict=True)))
            if c.wiring == "nested" and n + 1 < len(levels) and (t + 1) % levels[n + 1][1] == 0:
                writes = levels[n + 1][1] // period
                origin[n] = LevelWeights(
                    *(o + (d - o) / writes for o, d in zip(origin[n], delta[n], strict=True))
                )
                delta[n] = origin[n]
    return torch.cat(outputs, 1), delta


def fast(cms: CMS, x_BTD: Tensor, teach_BTD: Tensor, pieces: list[int]) -> tuple[Tensor, list[LevelWeights]]:
    """The layer as the model drives it: segment by segment, settling between calls."""
    state, outputs, t = cms.initial(B), [], 0
    for piece in pieces:
        scales = SETTINGS.scales(len(cms.chunks))
        state = cms.settle(state, scales)
        end = t + piece
        while t < end:
            n = min(end - t, cms.segment - t % cms.segment)
            y, state = cms(x_BTD[:, t : t + n], state, teach=True)
            t += n
            outputs.append(y)
            every = (True,) * len(cms.chunks)
            state = cms.teach(state, teach_BTD[:, t - n : t], t, scales, every)
    return torch.cat(outputs, 1), [level.delta for level in state if level.delta is not None]


def tree(result: tuple[Tensor, list[LevelWeights]]) -> tuple[Tensor, tuple[LevelWeights, ...]]:
    return result[0], tuple(result[1])


@pytest.mark.parametrize("pieces", [[T], [1, 4, 5, 3]])
@pytest.mark.parametrize("bound", [0.0, 0.3])
@pytest.mark.parametrize("delta_rule", [False, True])
@pytest.mark.parametrize("wiring", ["sequential", "nested", "independent"])
def test_layer_is_the_token_loop(
    wiring: str, delta_rule: bool, bound: float, pieces: list[int], assert_same: Callable[..., None]
) -> None:
    """Outputs, deltas, and the gradients of both by inputs, signals and parameters (second order)."""
    cms = build(periods=[2, 4, 12], wiring=wiring, delta_rule=delta_rule, delta_bound=bound)
    torch.manual_seed(1)
    x, teach = (torch.randn(B, T, D, dtype=torch.float64).requires_grad_() for _ in range(2))
    parameters = tuple(cms.parameters())
    assert_same(
        lambda x, teach, _: tree(naive(cms, x, teach)),
        lambda x, teach, _: tree(fast(cms, x, teach, pieces)),
        *(x, teach, parameters),
    )


def test_wirings_differ_and_first_order_stops_at_the_delta() -> None:
    torch.manual_seed(1)
    x, teach = torch.randn(B, T, D).double(), torch.randn(B, T, D).double().requires_grad_()
    outputs = []
    for wiring in ("sequential", "nested", "independent"):
        cms = build(periods=[2, 4, 12], wiring=wiring, second_order=False)
        y, _ = fast(cms, x, teach, [T])
        assert torch.autograd.grad(y.sum(), teach, allow_unused=True) == (None,)
        outputs.append(y[:, :5])
    sequential, nested, independent = outputs
    assert torch.equal(sequential[:, :4], nested[:, :4])  # until the second level's first chunk ends
    assert (sequential[:, 4] - nested[:, 4]).abs().max() > 1e-3
    assert (sequential[:, 0] - independent[:, 0]).abs().max() > 1e-3


def test_closed_gate_writes_nothing_and_erases_nothing() -> None:
    cms = build(periods=[2], delta_rule=True, retention=1.0)
    torch.manual_seed(1)
    x, teach = torch.randn(B, 4, D).double(), torch.randn(B, 4, D).double()
    teach[:, 2:] = 0
    _, (first,) = fast(cms, x[:, :2], teach[:, :2], [2])
    _, (second,) = fast(cms, x, teach, [4])
    assert all((a - b).abs().max() < 1e-14 for a, b in zip(first, second, strict=True))
