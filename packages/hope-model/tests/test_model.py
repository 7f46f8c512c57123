"""Contracts of the whole model, for every variant: float64, one small size."""

import dataclasses
from pathlib import Path

import pytest
import torch

from hope_model import AttentionConfig, CMSConfig, InputError, LanguageModel, MemoryConfig, ModelConfig, State
from hope_model.config import PRESETS, VARIANTS, WINDOWED
from hope_model.observe import observe
from hope_model.state import clone, n_bytes, repeat, select
from hope_model.stream import load_state, save_state
from hope_model.tree import tensors

B, T, V = 3, 23, 29


def small(variant: str, **changes: object) -> ModelConfig:
    base: dict[str, object] = {
        "vocab_size": V,
        "dim": 32,
        "layers": 2,
        "head_dim": 16,
        "memory": MemoryConfig(chunk=4),
        "cms": CMSConfig(periods=[2, 4, 8], teach_scale=0.3),
        "attention": AttentionConfig(window=5 if variant in WINDOWED else 0),
    }
    return ModelConfig(variant=variant, **{**base, **changes})  # type: ignore[arg-type]


def whole(name: str, changes: dict[str, dict[str, object]]) -> ModelConfig:
    """A preset at the small size."""
    size = {"vocab_size": V, "dim": 32, "layers": 2, "head_dim": 16}
    memory, cms = (changes.get(part, {}) for part in ("memory", "cms"))
    parts = {"memory": {"chunk": 4, **memory}, "cms": {"periods": [2, 4, 8], "teach_scale": 0.3, **cms}}
    return ModelConfig.named(name, **size, **parts)


# The wiring and the rule of the CMS that no preset has, and two chunk lengths, with everything else of the paper.
NESTED = {"memory": {"bank_chunk": 6}, "cms": {"wiring": "nested", "delta_rule": True}}


@pytest.fixture(params=[*VARIANTS, *(f"{name}, whole" for name in PRESETS), "hope_paper, nested"])
def model(request: pytest.FixtureRequest) -> LanguageModel:
    torch.manual_seed(0)
    name, _, form = request.param.partition(", ")
    config = whole(name, NESTED if form == "nested" else {}) if form else small(name)
    model = LanguageModel(config).double()
    with torch.no_grad():  # away from the special initial values: zero gates, identity convolutions
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(1))


def feed(model: LanguageModel, tokens: torch.Tensor, lengths: list[int]) -> tuple[torch.Tensor, State]:
    outputs, state = [], None
    for piece in tokens.split(lengths, 1):
        logits, state = model(piece, state)
        outputs.append(logits)
    assert state is not None
    return torch.cat(outputs, 1), state


@pytest.mark.parametrize("lengths", [[1] * T, [5, 1, 7, 10], [T - 1, 1], [8, 8, 7], [3, 4, 16]])
def test_any_split_gives_the_same_logits(
    model: LanguageModel, tokens: torch.Tensor, lengths: list[int]
) -> None:
    with torch.no_grad():
        whole, _ = model(tokens)
        split, _ = feed(model, tokens, lengths)
    assert (whole - split).abs().max() < 1e-9


def test_batch_permutation_permutes_the_output(model: LanguageModel, tokens: torch.Tensor) -> None:
    order = torch.tensor([2, 0, 1])
    with torch.no_grad():
        assert (model(tokens)[0][order] - model(tokens[order])[0]).abs().max() < 1e-9


def test_sequences_do_not_see_each_other(model: LanguageModel, tokens: torch.Tensor) -> None:
    changed = tokens.clone()
    changed[1] = (changed[1] + 1) % V
    with torch.no_grad():
        before, after = model(tokens)[0], model(changed)[0]
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[2], after[2])
    assert not torch.equal(before[1], after[1])


def test_causality_is_bitwise(model: LanguageModel, tokens: torch.Tensor) -> None:
    for t in (3, 8, 13, T - 1):
        changed = tokens.clone()
        changed[:, t] = (changed[:, t] + 1) % V
        with torch.no_grad():
            before, after = model(tokens)[0], model(changed)[0]
        assert torch.equal(before[:, :t], after[:, :t])
        assert (before[:, t] - after[:, t]).abs().max() > 1e-6


def test_causality_by_gradient(model: LanguageModel, tokens: torch.Tensor) -> None:
    embedded: list[torch.Tensor] = []
    hook = model.embed.register_forward_hook(
        lambda _m, _i, out: embedded.append(out.requires_grad_()) if torch.is_grad_enabled() else None
    )
    logits, _ = model(tokens)
    hook.remove()
    t = 13
    grads = torch.autograd.grad(logits[:, t].square().sum(), embedded, allow_unused=True)
    grad = torch.cat(
        [torch.zeros_like(x) if g is None else g for x, g in zip(embedded, grads, strict=True)], 1
    )
    assert (grad[:, t + 1 :] == 0).all()
    # Two layers of window 5 reach 8 tokens back; everything else remembers all.
    first = t - 8 if model.config.variant == "transformer_window" else 0
    assert (grad[:, :first] == 0).all()
    assert (grad[:, first : t + 1].abs().amax((0, 2)) > 0).all()


def test_every_parameter_receives_a_gradient(model: LanguageModel, tokens: torch.Tensor) -> None:
    logits, _ = model(tokens)
    torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        rms = p.grad.square().mean().sqrt()
        assert rms > 1e-9, f"{name}: {rms}"


def test_states_fork_clone_repeat_and_select(model: LanguageModel, tokens: torch.Tensor) -> None:
    with torch.no_grad():
        _, state = model(tokens[:, :11])
        copy = clone(state)
        expected, _ = model(tokens[:, 11:], state)
        model((tokens[:, 11:] + 3) % V, state)  # another branch from the same value
        again, _ = model(tokens[:, 11:], copy)
        assert torch.equal(expected, again)
        twice, _ = model(tokens[:, 11:].repeat_interleave(2, 0), repeat(state, 2))
        assert (twice - expected.repeat_interleave(2, 0)).abs().max() < 1e-12
        rows = torch.tensor([2, 0])
        some, _ = model(tokens[rows, 11:], select(state, rows))
        assert (some - expected[rows]).abs().max() < 1e-12


@pytest.mark.parametrize("variant", ["hope", "titans", "titans_mag", "titans_mac"])
def test_a_stream_can_ask_for_another_chunk_length(variant: str, tokens: torch.Tensor) -> None:
    torch.manual_seed(0)
    model, other = (LanguageModel(small(variant, memory=MemoryConfig(chunk=n))) for n in (4, 3))
    other.load_state_dict(model.state_dict())
    start = model.initial(len(tokens), model.settings()._replace(chunk=3))
    with torch.no_grad():
        asked, own, configured = model(tokens, start)[0], model(tokens)[0], other(tokens)[0]
    assert torch.equal(asked, configured)
    assert (asked - own).abs().max() > 1e-6


def test_teach_scale_zero_is_bitwise_the_model_without_fast_weights(tokens: torch.Tensor) -> None:
    for variant in ("hope", "hope_attention"):
        torch.manual_seed(0)
        off = LanguageModel(small(variant, cms=CMSConfig(periods=[2, 4, 8], teach_scale=0.0)))
        never = LanguageModel(small(variant, cms=CMSConfig(periods=[1024, 1024, 1024], teach_scale=0.3)))
        on = LanguageModel(small(variant))
        for other in (never, on):
            other.load_state_dict(off.state_dict())
        with torch.no_grad():
            (plain, state), (unwritten, _), (written, _) = off(tokens), never(tokens), on(tokens)
        assert torch.equal(plain, unwritten)
        assert all(level.delta is None for block in state.blocks for level in block.channel)
        assert (plain[:, :2] - written[:, :2]).abs().max() < 1e-6
        assert (plain - written).abs().max() > 1e-6


def test_test_time_settings_travel_in_the_state(tokens: torch.Tensor) -> None:
    torch.manual_seed(0)
    model = LanguageModel(small("hope")).eval()
    with torch.no_grad():
        usual = model(tokens)[0]
        silent = model.settings()._replace(teach_scale=0.0)
        off = model(tokens, model.initial(B, silent))[0]
        gated = model(tokens, model.initial(B, model.settings()._replace(surprise_threshold=1e9)))[0]
        none = model(tokens, model.initial(B, model.settings()._replace(writes=("titans",))))[0]
        first, _ = model(tokens, model.initial(B, model.settings()._replace(writes=("titans", "cms.0"))))
        frozen, state = model(tokens, model.initial(B, model.settings()._replace(writes=())))
    for same in (gated, none):
        assert (off - same).abs().max() < 1e-5
    assert (off - usual).abs().max() > 1e-6
    assert (first - usual).abs().max() > 1e-6
    assert (first - off).abs().max() > 1e-6
    assert (frozen - off).abs().max() > 1e-6
    start = model.initial(B).blocks[0].mixer.memory.now
    assert all(
        torch.equal(a, b) for a, b in zip(tensors(state.blocks[0].mixer.memory.now), start, strict=True)
    )


def test_variants_of_one_size_have_equal_parameters() -> None:
    from hope_model.counting import parameters

    for dim in (192, 256, 768):
        counts = [parameters(ModelConfig(variant=v, dim=dim)) for v in VARIANTS]
        assert max(counts) / min(counts) < 1.03


def test_bytes_of_a_state_by_hand() -> None:
    from hope_model.counting import state_bytes

    matrices, tail, keys_and_values = 2 * 32 * 32, 3 * 3 * 64, 2 * 32 * 64
    for variant, numbers in {"gated_deltanet": matrices + tail, "transformer": keys_and_values}.items():
        config = ModelConfig(variant=variant, vocab_size=33, dim=64, layers=2, head_dim=32)
        assert state_bytes(config, 32) == 2 * 4 * numbers


def test_bf16_autocast_keeps_the_state_in_float32(tokens: torch.Tensor) -> None:
    for variant in VARIANTS:
        torch.manual_seed(0)
        model = LanguageModel(small(variant))
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            logits, state = model(tokens)
        with torch.no_grad():
            exact, _ = model(tokens)
        assert (logits.float() - exact).abs().max() < 0.05
        if variant not in ("transformer", "transformer_window", "hope_attention"):
            fast = state.blocks[0].mixer
            fast = fast.memory[0] if "titans_ma" in variant else fast[0]
            fast = fast if isinstance(fast, torch.Tensor) else fast.now.W2_NRmd
            assert fast.dtype == torch.float32


def test_states_go_to_disk_and_back(model: LanguageModel, tokens: torch.Tensor, tmp_path: Path) -> None:
    with torch.no_grad():
        _, state = model(tokens[:, :11])
        expected, _ = model(tokens[:, 11:], state)
    save_state(tmp_path / "state", model, state)
    copy = load_state(tmp_path / "state", model)
    with torch.no_grad():
        assert (
            expected - model(tokens[:, 11:], copy)[0]
        ).abs().max() < 1e-11  # strides differ, so may rounding
    assert copy.settings == state.settings
    assert all(torch.equal(a, b) for a, b in zip(tensors(state), tensors(copy), strict=True))
    assert (tmp_path / "state").stat().st_size < 1.1 * n_bytes(state) + 20_000
    other = LanguageModel(dataclasses.replace(model.config, layers=1))
    with pytest.raises(InputError, match="another model configuration"):
        load_state(tmp_path / "state", other)
    data = (tmp_path / "state").read_bytes()
    (tmp_path / "state").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="cannot be read as a state"):
        load_state(tmp_path / "state", model)


def test_gates_can_be_observed(tokens: torch.Tensor) -> None:
    """Means of what the gates did, bounded as they must be; outside the block nothing is counted."""
    for variant in ("hope", "hope_paper", "titans", "titans_mac", "gated_deltanet"):
        torch.manual_seed(0)
        model = LanguageModel(small(variant))
        with torch.no_grad(), observe() as seen:
            model(tokens)
        with torch.no_grad():
            model(tokens)
        means = seen.means()
        assert 0.9 < means["alpha"] < 1
        if variant != "gated_deltanet":
            assert 0 < means["eta"] < 2 * model.config.memory.eta_max
        assert seen.means() == means


def test_hope_paper_is_the_papers_form() -> None:
    """Tied gates, and the frozen gradient as the output layer's write, whatever else is configured."""
    config = small("hope_paper")
    assert config.memory == MemoryConfig(chunk=4, tied_gates=True, output_rule="gradient", decay_to="zero")
    assert ModelConfig.from_dict(config.to_dict()) == config
    paper, default = LanguageModel(config), LanguageModel(small("hope"))
    names = {n.split(".", 2)[2] for n, _ in default.named_parameters() if n.startswith("blocks")} - {
        n.split(".", 2)[2] for n, _ in paper.named_parameters() if n.startswith("blocks")
    }
    assert names == {"mixer.strengths.weight", "mixer.eta_scale_HR", "mixer.output_share_H4"}


def test_windows_bound_the_state_and_default_where_a_variant_needs_one() -> None:
    assert ModelConfig(variant="titans_mac").attention.window == 512
    assert ModelConfig(variant="transformer").attention.window == 0
    for variant in WINDOWED:
        torch.manual_seed(0)
        model = LanguageModel(small(variant))
        sizes, state = [], model.initial(1)
        with torch.no_grad():
            for token in torch.zeros(40, 1, 1, dtype=torch.int64):
                _, state = model(token, state)
                sizes.append(n_bytes(state))
        assert max(sizes[20:]) == max(sizes[10:20])


def test_memory_as_context_retrieves_what_an_earlier_segment_held(tokens: torch.Tensor) -> None:
    """MAC's attention ends at its segment: only the memory, read at the segment's start, carries older tokens."""
    torch.manual_seed(0)
    model = LanguageModel(small("titans_mac", layers=1)).double()
    changed = tokens.clone()
    changed[:, 1] = (changed[:, 1] + 1) % V
    with torch.no_grad():
        moved = (model(tokens)[0] - model(changed)[0]).abs().amax((0, 2))
        silent = model.initial(B, model.settings()._replace(writes=()))
        still = (model(tokens, silent)[0] - model(changed, silent)[0]).abs().amax((0, 2))
    assert (moved[5:] > 0).all()
    # Without writes only the segment and the two convolutions (width 4 each) remember.
    assert (still[5 + 3 :] == 0).all()
