"""Small layers against the plain form, and positions far into a stream."""

import threading

import pytest
import torch

from hope_model import AttentionConfig, LanguageModel, ModelConfig
from hope_model.layers.attention import Attention
from hope_model.layers.basic import CausalConv
from hope_model.layers.rotary import angles, rotate


@pytest.mark.parametrize("T", [1, 7])
@pytest.mark.parametrize("D", [5, 19])
@pytest.mark.usefixtures("form")
def test_convolution_is_torchs(D: int, T: int) -> None:
    torch.manual_seed(0)
    conv = CausalConv(D, 4).double()
    conv.weight.data.normal_()
    x, tail = (torch.randn(2, n, D).double().requires_grad_() for n in (T, 3))
    y, after = conv(x, tail)
    whole = torch.cat((tail, x), 1)
    expected = torch.nn.functional.conv1d(whole.mT, conv.weight.T[:, None], groups=D).mT
    assert (y - expected).abs().max() < 1e-12
    assert torch.equal(after, whole[:, -3:])
    assert torch.autograd.gradcheck(lambda *a: conv(*a)[0], (x, tail))
    g1 = torch.autograd.grad(y.cos().sum(), (conv.weight, x, tail))
    g2 = torch.autograd.grad(expected.cos().sum(), (conv.weight, x, tail))
    assert all((a - b).abs().max() < 1e-12 for a, b in zip(g1, g2, strict=True))


def test_rotation_depends_on_distance_only_even_at_a_million() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 64)

    def score(later: int, earlier: int) -> torch.Tensor:
        config = AttentionConfig()
        x, y = (rotate(z, *angles(config, n, 1, 64, z)) for z, n in ((q, later), (k, earlier)))
        return (x * y).sum()

    near, far = score(5, 3), score(1_000_005, 1_000_003)
    assert (near - far).abs() < 1e-4


def test_window_sees_exactly_its_tokens_and_bounds_the_cache() -> None:
    torch.manual_seed(0)
    config = ModelConfig(dim=16, head_dim=8, attention=AttentionConfig(window=4))
    layer = Attention(config, 0.5, 0.5).double()
    x = torch.randn(1, 12, 16).double()
    whole, state = layer(x, layer.initial(1))
    assert state.k_BHSd.shape[-2] == 3
    changed = x.clone()
    changed[:, 5] += 1
    moved = (layer(changed, layer.initial(1))[0] - whole).abs().amax((0, 2)) > 1e-12
    assert moved.tolist() == [5 <= t <= 8 for t in range(12)]
    first, state = layer(x[:, :5], layer.initial(1))
    second, _ = layer(x[:, 5:], state)
    assert (torch.cat((first, second), 1) - whole).abs().max() < 1e-12


@pytest.mark.parametrize("window", [0, 5])
def test_fewer_heads_of_keys_are_as_many_with_copies(window: int) -> None:
    """Grouped heads, in pieces, against heads of their own with the same matrices three times."""
    torch.manual_seed(0)
    sizes = {"variant": "transformer", "vocab_size": 8, "dim": 12, "head_dim": 4, "layers": 1}
    few = {"heads": 6, "kv_heads": 2, "qk_norm": True, "bias": "all", "window": window}
    grouped = Attention(ModelConfig.from_dict(sizes | {"attention": few}), 0.5, 0.5).double()
    whole = Attention(ModelConfig.from_dict(sizes | {"attention": few | {"kv_heads": 6}}), 0.5, 0.5).double()
    grouped.qkv.bias.data.normal_()
    for kind in ("weight", "bias"):
        q, k, v = getattr(grouped.qkv, kind).data.split((24, 8, 8))
        k, v = (x.view(2, 4, *x.shape[1:]).repeat_interleave(3, 0).flatten(0, 1) for x in (k, v))
        getattr(whole.qkv, kind).data = torch.cat((q, k, v))
    whole.out.load_state_dict(grouped.out.state_dict())
    x = torch.randn(2, 11, 12).double()
    expected, _ = whole(x, whole.initial(2))
    state, parts = grouped.initial(2), []
    for piece in x.split((3, 1, 6, 1), 1):
        y, state = grouped(piece, state)
        parts.append(y)
    assert state.k_BHSd.shape == (2, 2, 4 if window else 11, 4)
    assert (torch.cat(parts, 1) - expected).abs().max() < 1e-12


def test_models_in_two_threads_share_nothing() -> None:
    """One trains while the other reads in inference mode, whose tensors no backward may keep."""
    sizes = {"vocab_size": 32, "dim": 16, "head_dim": 8, "layers": 2}
    models = [LanguageModel(ModelConfig(variant=v, **sizes)) for v in ("hope_attention", "transformer")]
    tokens, done, failed = torch.randint(32, (1, 96)), threading.Event(), list[BaseException]()

    def read() -> None:
        try:
            with torch.inference_mode():
                while not done.is_set():
                    models[1](tokens)
        except BaseException as error:  # noqa: BLE001 (handed on)
            failed.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        alone = models[0](tokens)[0].detach()
        for _ in range(60):
            logits = models[0](tokens)[0]
            torch.autograd.backward(logits.sum())
            assert torch.equal(logits, alone)
    finally:
        done.set()
        thread.join()
    assert not failed
