"""The teach signal: what it is, first and second order, whole and in pieces, for both signals."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hope_model import CMSConfig, LanguageModel, MemoryConfig, ModelConfig
from hope_model.layers.cms import CMS, CMSRun
from hope_model.state import detach, metrics
from hope_model.tree import tensors

B, T, V = 2, 11, 7
SIGNALS = ("output", "layer")


def build(variant: str, cms: CMSConfig, seed: int = 0, **changes: object) -> LanguageModel:
    sizes: dict[str, object] = {"vocab_size": V, "dim": 8, "layers": 2, "head_dim": 4}
    torch.manual_seed(seed)
    memory = MemoryConfig(
        chunk=3, activation="relu" if cms.signal == "output" else "gelu"
    )  # true slopes: no kinks
    config = ModelConfig(variant=variant, memory=memory, cms=cms, **{**sizes, **changes})  # type: ignore[arg-type]
    model = LanguageModel(config).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(1))


def loss_of(model: LanguageModel, tokens: Tensor) -> Tensor:
    logits, _ = model(tokens[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


@pytest.mark.parametrize("signal", SIGNALS)
def test_signal_is_the_gradient_of_the_loss_at_the_block(
    signal: str, tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nudge one activation of one token: the segment's summed loss changes by the signal (central differences)."""
    settings = CMSConfig(periods=[4], teach_scale=0.5, teach_clip=1e9, signal=signal)
    model, taught = build("hope", settings), []
    teach, teach_run = CMS.teach, CMSRun.teach

    def spy(self: CMS, state: object, teach_BTD: Tensor, *rest: object) -> object:
        taught.append(teach_BTD)
        return teach(self, state, teach_BTD, *rest)  # type: ignore[arg-type]

    def spy_run(self: CMSRun, teach_BTD: Tensor, tokens: int, position: int) -> None:
        taught.append(teach_BTD[:, :tokens])
        teach_run(self, teach_BTD, tokens, position)

    monkeypatch.setattr(CMS, "teach", spy)
    monkeypatch.setattr(CMSRun, "teach", spy_run)
    model(tokens[:, :5])
    assert len(taught) == 2  # both blocks, once
    for block, signal_BnD in enumerate(taught):
        where = model.norm if signal == "output" else model.blocks[block]
        for t, feature in ((0, 3), (2, 5), (3, 0)):
            changed = []
            for step in (1e-5, -1e-5):
                nudge = torch.zeros(B, 4, 8, dtype=torch.float64)
                nudge[:, t, feature] = step

                def add(_m: object, _i: object, out: object, nudge: Tensor = nudge) -> object:
                    return (out[0] + nudge, out[1]) if isinstance(out, tuple) else out + nudge  # type: ignore[operator]

                hook = where.register_forward_hook(add)
                with torch.no_grad():
                    logits, _ = model(
                        tokens[:, :4], model.initial(B, model.settings()._replace(teach_scale=0.0))
                    )
                hook.remove()
                losses = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:5].flatten(), reduction="none")
                changed.append(losses.view(B, 4).sum(1))
            slope = (changed[0] - changed[1]) / 2e-5
            assert (slope - signal_BnD[:, t, feature]).abs().max() < 1e-7


@pytest.mark.parametrize("lengths", [[1] * T, [5, 1, 5], [T - 1, 1], [4, 4, 3]])
@pytest.mark.parametrize(
    "changes",
    [
        {"signal": "layer"},
        {"signal": "layer", "wiring": "nested", "delta_rule": True},
        {"signal": "layer", "wiring": "independent", "second_order": True},
        {"wiring": "nested"},
        {"wiring": "independent", "delta_rule": True},
    ],
)
@pytest.mark.parametrize("variant", ["hope", "hope_attention"])
def test_any_split_gives_the_same_logits(
    variant: str, changes: dict[str, object], lengths: list[int], tokens: Tensor
) -> None:
    """Whole with gradients (the live graph), in pieces without, in inference mode, and with history cut."""
    settings = CMSConfig(periods=[2, 4], teach_scale=0.5)
    model = build(variant, dataclasses.replace(settings, **changes))  # type: ignore[arg-type]
    whole, _ = model(tokens)
    plain, _ = model(tokens, model.initial(B, model.settings()._replace(teach_scale=0.0)))
    assert (whole - plain).abs().max() > 1e-4
    for mode in (torch.no_grad(), torch.inference_mode(), torch.enable_grad()):
        with mode:
            state, outputs = model.initial(B), []
            for piece in tokens.split(lengths, 1):
                logits, state = model(piece, state)
                state = detach(state)
                outputs.append(logits)
            assert (whole - torch.cat(outputs, 1)).abs().max() < 1e-9


@pytest.mark.parametrize("pieces", [[37], [5, 20, 1, 11]])
@pytest.mark.parametrize(
    "changes", [{}, {"retention": 0.9, "delta_bound": 0.0}, {"periods": [8]}, {"surprise_threshold": 0.5}]
)
@pytest.mark.parametrize("variant", ["hope", "hope_attention", "hope_deltanet"])
def test_all_tokens_at_once_are_the_segments(
    variant: str, changes: dict[str, object], pieces: list[int]
) -> None:
    """First order: logits, states and every gradient, through the states of former calls too."""
    model = build(variant, CMSConfig(**{"periods": [4, 8, 16], "teach_scale": 0.5} | changes))  # type: ignore[arg-type]
    tokens, results = torch.randint(V, (B, sum(pieces))), []
    assert model.fused
    for fused in (False, True):
        model.fused, state, outputs = fused, None, []
        for piece in tokens.split(pieces, 1):
            logits, state = model(piece, state)
            outputs.append(logits)
        assert state is not None
        loss = torch.cat(outputs, 1).sin().sum()
        loss = loss + sum(x.sum() for block in state.blocks for x in tensors(block) if x.requires_grad)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        kept = [(level.delta, level.waiting) for block in state.blocks for level in block.channel]
        results.append(
            (*outputs, *gradients, *tensors(tuple(kept)), *tensors(state.teach), *tensors(state.pending))
        )
    for reference, fast in zip(*results, strict=True):
        assert (reference - fast).abs().max() < 1e-11 * (1 + reference.abs().max())


def test_layer_signal_needs_no_trainable_parameter(tokens: Tensor) -> None:
    model = build("hope", CMSConfig(periods=[2, 4], teach_scale=0.5, signal="layer"))
    expected, _ = model(tokens)
    frozen, _ = model.requires_grad_(requires_grad=False)(tokens)
    assert (expected - frozen).abs().max() < 1e-12


@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("variant", ["hope", "hope_attention"])
@pytest.mark.parametrize("rule", ["gradient", "delta"])
def test_second_order_is_the_true_derivative(variant: str, signal: str, rule: str, tokens: Tensor) -> None:
    """Loss along a random direction of all parameters, by differences: second order matches, first order does not."""
    settings = CMSConfig(
        periods=[2, 4], teach_scale=0.8, teach_clip=0.3, signal=signal, delta_rule=rule == "delta"
    )
    slopes = {}
    for second in (True, False):
        model = build(variant, dataclasses.replace(settings, second_order=second))
        torch.manual_seed(2)
        direction = [torch.randn_like(p) for p in model.parameters()]
        grads = torch.autograd.grad(loss_of(model, tokens), list(model.parameters()))
        slopes[second] = float(sum((g * v).sum() for g, v in zip(grads, direction, strict=True)))
    ends = []
    for step in (1e-7, -1e-7):
        with torch.no_grad():
            for p, v in zip(model.parameters(), direction, strict=True):
                p.add_(step * v)
            ends.append(float(loss_of(model, tokens)))
            for p, v in zip(model.parameters(), direction, strict=True):
                p.sub_(step * v)
    true = (ends[0] - ends[1]) / 2e-7
    assert abs(slopes[True] - true) < 1e-6 * (1 + abs(true))
    assert abs(slopes[False] - true) > 1e-4 * (1 + abs(true))


@pytest.mark.parametrize(
    ("periods", "length"),
    [
        ([2], 11),
        ([2, 4], 11),
        ([1, 4, 32], 70),
        ([1, 4, 32, 128], 140),
        ([2, 4, 8, 16, 32], 70),
        ([8, 32, 128, 512], 530),
        ([512, 2048, 8192, 32768], 1040),
    ],
)
def test_any_periods_stream(periods: list[int], length: int) -> None:
    model = build("hope_attention", CMSConfig(periods=periods, teach_scale=0.5), layers=1)
    tokens = torch.randint(0, V, (1, length), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole, end = model(tokens)
        state, outputs = None, []
        for piece in tokens.split([length // 3, 1, length - length // 3 - 1], 1):
            logits, state = model(piece, state)
            outputs.append(logits)
    assert (whole - torch.cat(outputs, 1)).abs().max() < 1e-9
    written = [level.delta is not None for level in end.blocks[0].channel]
    assert written == [length - 1 >= period for period in periods]


def test_metrics_count_signals_gates_and_levels(tokens: Tensor) -> None:
    model = build("hope", CMSConfig(periods=[2, 4], teach_scale=0.5))
    with torch.no_grad():
        settings = model.settings()._replace(writes=("titans", "cms.1"))
        _, state = model(tokens, model.initial(B, settings))
        seen = metrics(state)
        assert seen["gate_hit_rate_0"] == 0
        assert seen["gate_hit_rate_1"] == 1
        assert "delta_norm_0" not in seen
        assert seen["delta_norm_1"] > 0
        assert seen["memory_norm"] > 0
        assert seen["teach_norm"] > 0
        gate = settings._replace(writes=None, surprise_threshold=seen["teach_norm"])
        _, state = model(tokens, model.initial(B, gate))
    assert 0.1 < metrics(state)["gate_hit_rate_0"] < 0.9


@pytest.mark.parametrize("signal", ["output", "layer"])
def test_tokens_that_wait_while_writes_are_switched_off_are_never_taught(signal: str) -> None:
    """Their successor passed unseen: the token that comes when writes are on again is not it."""
    model = build("hope_attention", CMSConfig(periods=[4, 8], signal=signal))
    tokens = torch.randint(0, V, (B, 10))
    on, off = model.settings(), model.settings()._replace(teach_scale=0.0)
    with torch.no_grad():
        _, before = model(tokens[:, :6])
        assert before.pending is not None
        _, silent = model(tokens[:, 6:9], before._replace(settings=off))
        assert silent.pending is None
        _, after = model(tokens[:, 9:10], silent._replace(settings=on))
    assert after.teach is not None
    assert before.teach is not None
    assert after.teach.signals == before.teach.signals
    assert after.pending is not None
    assert after.pending.tokens_Bn.shape == (B, 1)
