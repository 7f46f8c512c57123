"""A memory attached to our own models: the write rule against autograd, and the contract of every state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from hope_model import InputError, LanguageModel, ModelConfig
from hope_model.adapt import AttachedMemory, Ladder, Rule, attach_memory, load_memory, save_memory
from hope_model.config import VARIANTS
from hope_model.state import select

SWIGLU = [name for name, (_, channel) in VARIANTS.items() if channel == "swiglu"]
B, T, V = 3, 29, 50
PERIODS = [4, 8]


def build(variant: str = "transformer", **changes: Any) -> LanguageModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": V, "dim": 16, "layers": 2, "head_dim": 8, "init_std": 0.2}
    window = {"attention": {"window": 8 if variant != "transformer" else 0}}
    config = ModelConfig.from_dict({"variant": variant, **sizes, **window, **changes})
    return LanguageModel(config).double().eval()


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(1))


def note(model: LanguageModel, name: str, seen: dict[str, Tensor]) -> Any:
    """Keep what goes into a module."""
    return model.get_submodule(name).register_forward_hook(
        lambda _module, given, _out: seen.update({name: given[0].detach()})
    )


def naive(
    model: LanguageModel, tokens_BT: Tensor, scale: float, bound: float, clip: float
) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """One sequence at a time, every matrix of the MLPs written, all gradients by autograd; deltas are constants."""
    names = [f"blocks.{n}.channel.{part}.weight" for n in range(2) for part in ("down", "up")]
    period = {name: PERIODS[int(name.split(".")[1])] for name in names}
    rows, ends = [], []
    for row in tokens_BT:
        delta = {name: torch.zeros_like(model.get_parameter(name)) for name in names}
        total = {name: torch.zeros_like(model.get_parameter(name)) for name in names}
        inner, outputs = None, []
        for start in range(0, T, 4):
            piece = row[None, start : start + 4]
            seen: dict[str, Tensor] = {}
            hooks = [note(model, name, seen) for name in ("head", "blocks.0.channel", "blocks.1.channel")]
            fast = {name: model.get_parameter(name) + delta[name] for name in names}
            logits, inner = functional_call(model, fast, (piece, inner))
            outputs.append(logits)
            for hook in hooks:
                hook.remove()
            if start + 4 >= T:
                continue
            h = seen["head"].requires_grad_()
            loss = F.cross_entropy(
                F.linear(h, model.head.weight)[0], row[start + 1 : start + 5], reduction="sum"
            )
            (signal,) = torch.autograd.grad(loss, h)
            signal = signal * (clip / signal.norm(dim=-1, keepdim=True)).clamp(max=1)
            for n in range(2):
                own = [name for name in names if name.startswith(f"blocks.{n}.")]
                leaf = {name: fast[name].detach().requires_grad_() for name in own}
                parts = {name.removeprefix(f"blocks.{n}.channel."): W for name, W in leaf.items()}
                y = functional_call(model.blocks[n].channel, parts, (seen[f"blocks.{n}.channel"],))
                grads = torch.autograd.grad((y * signal).sum() / 4, list(leaf.values()))
                for name, g in zip(own, grads, strict=True):
                    total[name] += g
            for name in names:
                if (start + 4) % period[name] == 0:
                    delta[name] = delta[name] - scale * total[name]
                    largest = bound * model.get_parameter(name).detach().norm()
                    delta[name] = delta[name] * (largest / delta[name].norm()).clamp(max=1)
                    total[name] = torch.zeros_like(total[name])
        rows.append(torch.cat(outputs, 1))
        ends.append(delta)
    return torch.cat(rows), ends


@pytest.mark.parametrize("variant", ["transformer", "gated_deltanet"])
@pytest.mark.parametrize("bound", [0.3, 100.0])
def test_logits_deltas_and_gradients_are_the_rules_by_autograd(
    variant: str, bound: float, tokens: Tensor
) -> None:
    model = build(variant)
    expected, deltas = naive(model, tokens, 0.5, bound, 1.0)
    plain, _ = model(tokens)
    memory = attach_memory(model, periods=PERIODS, scale=0.5, bound=bound, matrices="all")
    logits, state = memory(tokens)
    assert (expected - plain).abs().max() > 0.1
    assert (logits - expected).abs().max() < 1e-9
    for n, layer in enumerate(state.layers):
        assert layer.delta is not None
        for part, found in zip(("down", "up"), layer.delta, strict=True):
            right = torch.stack([ends[f"blocks.{n}.channel.{part}.weight"] for ends in deltas])
            assert (found - right).abs().max() < 1e-10
    parameters = list(model.parameters())
    losses = (F.cross_entropy(x[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()) for x in (logits, expected))
    ours, theirs = (torch.autograd.grad(loss, parameters) for loss in losses)
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().max() < 1e-9


@pytest.mark.parametrize("matrices", ["down", "all"])
@pytest.mark.parametrize("variant", SWIGLU)
def test_stream_contract(variant: str, matrices: str, tokens: Tensor) -> None:
    """Any split, the model called as ever, rows by themselves, forks, and causality to the bit."""
    memory = attach_memory(model := build(variant), periods=PERIODS, scale=0.5, matrices=matrices)
    with torch.no_grad():
        whole, _ = memory(tokens)
        assert torch.equal(model(tokens)[0], whole)
        for lengths in ([1] * T, [1, 5, 1, 9, 12, 1], [T - 1, 1]):
            state, outputs = None, []
            for piece in tokens.split(lengths, 1):
                logits, state = memory(piece, state)
                outputs.append(logits)
            assert (torch.cat(outputs, 1) - whole).abs().max() < 1e-9
        for row in range(B):
            assert (memory(tokens[row : row + 1])[0] - whole[row : row + 1]).abs().max() < 1e-9
        changed = tokens.clone()
        changed[1, 14] = (changed[1, 14] + 1) % V
        other, _ = memory(changed)
        assert torch.equal(other[[0, 2]], whole[[0, 2]])
        assert torch.equal(other[1, :14], whole[1, :14])
        assert (other[1, 14:] - whole[1, 14:]).abs().amax(-1).min() > 0
        _, middle = memory(tokens[:, :13])
        forked, _ = memory(tokens[[2, 2, 0], 13:], select(middle, torch.tensor([2, 2, 0])))
        assert (forked - whole[[2, 2, 0], 13:]).abs().max() < 1e-9
        assert (memory(tokens[:, 13:], middle)[0] - whole[:, 13:]).abs().max() < 1e-9


@pytest.mark.parametrize("variant", SWIGLU)
def test_without_writes_it_is_the_model_to_the_bit_and_detached_leaves_no_trace(
    variant: str, tokens: Tensor
) -> None:
    model = build(variant).float()
    before = [dict(vars(module)) for module in model.modules()]
    with torch.no_grad():
        plain, _ = model(tokens)
        with attach_memory(model, periods=4, scale=0) as memory:
            logits, state = memory(tokens)
            assert torch.equal(logits, plain)
            assert torch.equal(model(tokens)[0], plain)
            assert all(layer.delta is None for layer in state.layers)
        with attach_memory(model, periods=4, scale=0.5) as memory:
            silent = memory.settings()._replace(teach_scale=0.0)
            assert torch.equal(memory(tokens, memory.initial(B, silent))[0], plain)
            assert not torch.equal(memory(tokens)[0], plain)
            closed = memory.settings()._replace(surprise_threshold=1e6)
            assert (memory(tokens, memory.initial(B, closed))[0] - plain).abs().max() < 1e-4
        assert torch.equal(model(tokens)[0], plain)
    assert [dict(vars(module)) for module in model.modules()] == before


def test_state_begins_where_the_model_stood_and_writes_can_stop(tokens: Tensor) -> None:
    model = build()
    with torch.no_grad():
        plain, _ = model(tokens)
        _, state = model(tokens[:, :8])
        memory = attach_memory(model, periods=4, scale=0.5)
        logits, after = model(tokens[:, 8:12], state)
        assert (logits - plain[:, 8:12]).abs().max() < 1e-9
        assert after.position == 12
        _, after = memory(tokens[:, 12:20], after)
        held = after._replace(settings=after.settings._replace(teach_scale=0.0))
        frozen, end = memory(tokens[:, 20:], held)
    assert (frozen - plain[:, 20:]).abs().max() > 1e-3
    assert all(torch.equal(a, b) for a, b in zip(end.layers[0].delta, after.layers[0].delta, strict=True))
    assert end.pending == ()


def test_memory_of_the_state_does_not_grow_with_length() -> None:
    memory = attach_memory(build("gated_deltanet"), periods=PERIODS, scale=0.5)
    sizes, state = [], None
    with torch.no_grad():
        for piece in torch.randint(0, V, (1, 96)).split(8, 1):
            _, state = memory(piece, state)
            sizes.append(memory.n_bytes(state, own=False))
    assert sizes[1:] == [sizes[1]] * 11


def test_bound_and_retention(tokens: Tensor) -> None:
    model = build()
    theta = model.blocks[0].channel.down.weight
    with torch.no_grad():
        _, state = attach_memory(model, periods=4, scale=100.0, bound=0.25)(tokens)
        assert torch.allclose(state.layers[0].delta[0].norm(dim=(1, 2)), 0.25 * theta.norm())
        del model.forward
        _, forgets = attach_memory(model, periods=4, scale=0.5, bound=0, retention=0)(tokens[:, :13])
        del model.forward
        memory = attach_memory(model, periods=4, scale=0.5, bound=0)
        _, one = memory(tokens[:, :9])
        _, two = memory(tokens[:, 9:13], one)
    assert forgets.layers[0].delta[0].norm() < two.layers[0].delta[0].norm()
    assert two.teach is not None
    assert (two.teach.signals, float(two.teach.hits[0])) == (12 * B, 12 * B)


def test_ladder_of_periods_over_depth() -> None:
    memory = attach_memory(build(layers=4), periods=Ladder(8, 4, 2))
    assert memory.options.periods == [8, 8, 32, 32]


def test_operations_added_per_token() -> None:
    model = build()
    down = model.blocks[0].channel.down.weight.numel()
    assert attach_memory(model).flops_per_token() == 2 * (V * 16 + 2 * down)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"periods": [4, 6]}, "attach_memory.periods [4, 6] must be multiples of the smallest"),
        (
            {"periods": [4]},
            "attach_memory.periods has 1 entries, the model 2 MLPs; give one for each, or one number",
        ),
        ({"periods": 0}, "attach_memory.periods[0] is 0; it must be between 1 and 4,611,686,018,427,387,904"),
        ({"periods": Ladder(4, 4, 3)}, "attach_memory: a ladder of 3 levels over 2 MLPs"),
        (
            {"scale": float("nan")},
            "attach_memory.scale is nan; it must be a finite number, between 0 and 1,000",
        ),
        ({"clip": 0.0}, "attach_memory.clip is 0.0; it must be above 0 and at most 1e+12"),
        ({"matrices": "gate"}, "attach_memory.matrices is 'gate'; choose one of down, up, all"),
        (
            {"targets": "mlp.out"},
            "LanguageModel: its 2 layers have no down projection named mlp.out; name it with "
            "targets=Rule('END OF ITS NAME'); matrices of width 16: channel.down, channel.up, embed, head, "
            "mixer.out, mixer.qkv",
        ),
        (
            {"targets": Rule("channel.down"), "matrices": "up"},
            "blocks.0.channel.down: its input matrix is not in the model; name up, gate or fused with "
            "targets=Rule('mlp.down', up='up', gate='gate'), or write matrices='down' only",
        ),
    ],
)
def test_bad_options_are_one_line(options: dict[str, Any], message: str) -> None:
    model = build()
    with pytest.raises(InputError) as error:
        attach_memory(model, **options)
    assert str(error.value) == message
    assert "forward" not in vars(model)


def test_models_that_cannot_have_one() -> None:
    with pytest.raises(InputError, match="hope has a continuum memory in place of its MLPs"):
        attach_memory(build("hope"))
    attach_memory(model := build())
    with pytest.raises(InputError, match="LanguageModel has a memory already; detach it first"):
        attach_memory(model)


@pytest.mark.parametrize("variant", SWIGLU)
def test_a_saved_stream_resumes_where_it_stopped(variant: str, tokens: Tensor, tmp_path: Path) -> None:
    memory = attach_memory(build(variant), periods=PERIODS, scale=0.5, matrices="all")
    with torch.no_grad():
        whole, _ = memory(tokens)
        for stop in (0, 3, 14):
            _, state = memory(tokens[:, :stop]) if stop else (None, memory.initial(B))
            save_memory(tmp_path / "stream", memory, state)
            again = attach_memory(build(variant), periods=PERIODS, scale=0.5, matrices="all")
            logits, _ = again(tokens[:, stop:], load_memory(tmp_path / "stream", again))
            assert (logits - whole[:, stop:]).abs().max() < 1e-9


def test_a_state_of_another_memory_or_a_changed_byte_is_refused(tokens: Tensor, tmp_path: Path) -> None:
    file = tmp_path / "stream"
    memory = attach_memory(build(), periods=PERIODS, scale=0.5)
    _, state = memory(tokens)
    save_memory(file, memory, state)

    def refusal(other: AttachedMemory) -> str:
        with pytest.raises(InputError) as error:
            load_memory(file, other)
        return str(error.value).removeprefix(str(file))

    other = attach_memory(build(), periods=[8, 16], scale=0.5)
    assert refusal(other) == (
        " holds the state of another model configuration, model.periods [4, 8] instead of [8, 16]; load that model"
    )
    wide = attach_memory(build(), periods=PERIODS, matrices="up")
    assert refusal(wide).startswith(
        " holds the state of another model configuration, model.written 'down' instead of 'up': "
        "state.layers[0].delta[0] has shape [3, 16, 43], not [3, 86, 16]"
    )
    layers = (state.layers[0]._replace(delta=(torch.zeros(3, 16, 41),)), state.layers[1])
    save_memory(file, memory, state._replace(layers=layers))
    assert refusal(memory) == ": state.layers[0].delta[0] has shape [3, 16, 41], not [3, 16, 43]"
    save_memory(file, memory, state._replace(position=5))
    assert refusal(memory) == ": inner.position is 29, the memory's 5"
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    assert refusal(memory) == " cannot be read as a state: its content is not what was saved"
