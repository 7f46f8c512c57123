"""Deep memories: chunk form, written-out backward and token loop agree; constants pinned by hand."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hope_model import LanguageModel, MemoryConfig, ModelConfig
from hope_model.ops.activations import NEGATIVE_SLOPES
from hope_model.ops.deep_memory import (
    FastWeights,
    Gates,
    MemoryState,
    Readout,
    Rules,
    self_modifying,
    self_modifying_naive,
    titans_memory,
    titans_memory_naive,
)

Assert = Callable[..., None]
B, H, d, m, R = 2, 2, 3, 5, 5


class Draw:
    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int, scale: float = 1.0) -> Tensor:
        x = torch.randn(*shape, generator=self.generator, dtype=torch.float64) * scale
        return x.requires_grad_()

    def unit(self, *shape: int) -> Tensor:
        return F.normalize(self(*shape), dim=-1).detach().requires_grad_()

    def strength(self, *shape: int, top: float = 2.0) -> Tensor:
        return (top * self(*shape).sigmoid()).detach().requires_grad_()

    def weights(self, memories: int) -> FastWeights:
        return FastWeights(self(B, H, memories, m, d), self(B, H, memories, d, m, scale=0.5))

    def first(self, memories: int) -> FastWeights:
        return FastWeights(self(H, memories, m, d), self(H, memories, d, m, scale=0.5))


def self_modifying_inputs(
    T: int, rules: Rules, position: int, *, self_modify: bool, default: bool = True
) -> tuple[Any, ...]:
    """`default`: no erasing at the hidden layer, retention pulls to the first weights."""
    draw = Draw()
    written = R if self_modify else 1
    now = draw.weights(written)
    start = now if position % rules.chunk == 0 else draw.weights(written)
    scale = None if rules.tied_gates else draw(H, R)
    share = None if rules.tied_gates else draw(H, R).sigmoid()
    readout = Readout(draw(H, d), draw(H), scale, draw(H, d), draw(H), share)
    gates = Gates(None, None if default else draw.strength(B, H, T), draw.strength(B, H, 1, T), None, None)
    state = MemoryState(now, start, None, position)
    fixed = None if self_modify else draw.weights(4)
    origin = draw.first(written) if default else None
    return draw.unit(B, H, T, d), draw.unit(B, H, T, d), gates, readout, state, rules, fixed, origin


@pytest.mark.parametrize("self_modify", [True, False])
@pytest.mark.parametrize("chunk", [1, 3, 4, 16])
@pytest.mark.parametrize(("T", "position"), [(1, 0), (11, 0), (11, 2), (9, 5)])
@pytest.mark.parametrize(
    ("form", "written"), [("native", True), ("torch", True), ("torch", False)], indirect=["form"]
)
@pytest.mark.usefixtures("form")
def test_self_modifying_is_the_token_loop(
    assert_same: Assert, T: int, position: int, chunk: int, *, written: bool, self_modify: bool
) -> None:
    def fast(*args: Any) -> Any:
        return self_modifying(*args, written=written)

    rules = Rules(chunk=chunk)
    assert_same(
        self_modifying_naive, fast, *self_modifying_inputs(T, rules, position, self_modify=self_modify)
    )


@pytest.mark.parametrize("variant", ["self_modifying_titans", "titans"])
@pytest.mark.usefixtures("form")
def test_one_head_alone_is_one_head_in_a_batch(variant: str) -> None:
    """First weights are one copy for the batch; with one head, spreading them may give a view."""
    memory = MemoryConfig(chunk=4)
    config = ModelConfig(variant=variant, vocab_size=16, dim=8, layers=1, head_dim=8, memory=memory)
    model, tokens = LanguageModel(config).double(), torch.arange(22).view(2, 11) % 16
    both, _ = model(tokens)
    both.logsumexp(-1).sum().backward()
    whole = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    for row, logits in zip(tokens, both, strict=True):
        alone, _ = model(row[None])
        assert (alone[0] - logits).abs().max() < 1e-12
        alone.logsumexp(-1).sum().backward()
    assert max((p.grad - g).abs().max() for p, g in zip(model.parameters(), whole, strict=True)) < 1e-10


@pytest.mark.parametrize("origin", [True, False])
@pytest.mark.parametrize("erase", [True, False])
@pytest.mark.parametrize("activation", ["leaky_relu", "relu", "gelu", "silu"])
@pytest.mark.parametrize(("stable", "tied"), [(True, False), (True, True), (False, False), (False, True)])
def test_other_rules_are_the_token_loop(
    assert_same: Assert, activation: str, *, stable: bool, tied: bool, erase: bool, origin: bool
) -> None:
    rules = Rules(chunk=4, activation=activation, stable=stable, tied_gates=tied)
    *args, fixed, first = self_modifying_inputs(11, rules, 2, self_modify=True)
    draw = Draw(1)
    args[2] = args[2]._replace(erase_NT=draw.strength(B, H, 11) if erase else None)
    assert_same(self_modifying_naive, self_modifying, *args, fixed, first if origin else None)


# Forms of the papers that the default does not have, one at a time and together.
PAPER: list[dict[str, Any]] = [
    {"erase": "both"},
    {"erase": "none"},
    {"read": "before"},
    {"read": "chunk"},
    {"momentum": True},
    {"momentum": True, "momentum_sum": True},
    {"unit_values": False},
    {"clip": 0.7},
    {"bank_chunk": 2},
    {"bank_chunk": 6, "read": "chunk"},
    {"erase": "both", "read": "before", "momentum": True, "momentum_sum": True, "unit_values": False},
    {"erase": "both", "read": "chunk", "momentum": True, "momentum_sum": True, "unit_values": False},
]
TITANS_PAPER = [form for form in PAPER if "momentum_sum" in form or "read" in form]
TITANS_PAPER = [{k: v for k, v in form.items() if k != "momentum"} for form in TITANS_PAPER]


@pytest.mark.parametrize("through_writes", [True, False])
@pytest.mark.parametrize("origin", [True, False])
@pytest.mark.parametrize(("stable", "tied"), [(True, False), (False, False), (False, True)])
@pytest.mark.parametrize(("T", "position", "self_modify"), [(11, 0, True), (11, 2, True), (9, 5, False)])
@pytest.mark.parametrize("changes", PAPER, ids=str)
def test_forms_of_the_papers_are_the_token_loop(
    assert_same: Assert,
    changes: dict[str, Any],
    T: int,
    position: int,
    *,
    self_modify: bool,
    stable: bool,
    tied: bool,
    origin: bool,
    through_writes: bool,
) -> None:
    base = Rules(chunk=4, activation="gelu", stable=stable, tied_gates=tied, through_writes=through_writes)
    rules = dataclasses.replace(
        base, **{name: value for name, value in changes.items() if name != "momentum"}
    )
    *args, first = self_modifying_inputs(T, rules, position, self_modify=self_modify)
    args[2] = args[2]._replace(erase_NT=Draw(1).strength(B, H, T))
    if changes.get("momentum"):
        args[2] = args[2]._replace(log_theta_NT=Draw(3).strength(B, H, T, top=1.0).log())
        args[4] = args[4]._replace(momentum=Draw(4).weights(R if self_modify else 1))
    first = (first or Draw(2).first(R if self_modify else 1)) if origin else None
    assert_same(self_modifying_naive, self_modifying, *args, first)


@pytest.mark.parametrize("origin", [True, False])
@pytest.mark.parametrize("stable", [True, False])
def test_cut_writes_are_constants_of_the_same_value(
    assert_same: Assert, *, stable: bool, origin: bool
) -> None:
    rules = Rules(chunk=4, stable=stable)
    cut = dataclasses.replace(rules, through_writes=False)
    x, q, gates, readout, state, _, fixed, first = self_modifying_inputs(11, rules, 2, self_modify=True)
    first = first if origin else None
    for one in (rules, cut):
        assert_same(self_modifying_naive, self_modifying, x, q, gates, readout, state, one, fixed, first)
    (o, _), (o_cut, _) = (
        self_modifying(x, q, gates, readout, state, one, fixed, first) for one in (rules, cut)
    )
    assert (o - o_cut).abs().max() < 1e-12
    leaves = (x, readout.eta_Hd, readout.alpha_Hd)
    assert min(g.abs().max() for g in torch.autograd.grad(o.sum(), leaves, retain_graph=True)) > 1e-6
    assert torch.autograd.grad(o_cut.sum(), leaves, allow_unused=True) == (None, None, None)


@pytest.mark.parametrize("momentum", [True, False])
@pytest.mark.parametrize(
    ("stable", "changes"), [(True, {}), *((False, form) for form in ({}, *TITANS_PAPER))], ids=str
)
@pytest.mark.parametrize(
    ("T", "chunk", "position"), [(1, 4, 0), (11, 1, 0), (11, 4, 0), (11, 4, 3), (11, 64, 0)]
)
@pytest.mark.parametrize(
    ("form", "rule"),
    [("native", "written"), ("torch", "written"), ("torch", "plain"), ("torch", "erasing, to zero")],
    indirect=["form"],
)
@pytest.mark.usefixtures("form")
def test_titans_memory_is_the_token_loop(
    assert_same: Assert,
    T: int,
    chunk: int,
    position: int,
    rule: str,
    changes: dict[str, Any],
    *,
    momentum: bool,
    stable: bool,
) -> None:
    def chunked(*args: Any) -> Any:
        return titans_memory(*args, written=rule == "written")

    default = rule != "erasing, to zero"
    draw, rules = Draw(), Rules(chunk=chunk, stable=stable, **changes)
    q, k, v = (draw.unit(B, H, T, d) for _ in range(3))
    log_a = F.logsigmoid(draw(B, H, T)).detach().requires_grad_()
    theta = F.logsigmoid(draw(B, H, T)).detach().requires_grad_() if momentum else None
    eta = draw.strength(B, H, 1, T, top=0.1)
    erase = None if default else draw.strength(B, H, T)
    gates = Gates(log_a, erase, draw.strength(B, H, 1, T), eta, theta)
    now = draw.weights(1)
    start = now if position % chunk == 0 else draw.weights(1)
    state = MemoryState(now, start, draw.weights(1) if momentum else None, position)
    origin = draw.first(1) if default else None
    assert_same(titans_memory_naive, chunked, q, k, v, gates, state, rules, origin)


@pytest.mark.usefixtures("form")
def test_written_out_backward_passes_gradcheck() -> None:
    args = self_modifying_inputs(5, Rules(chunk=3), 0, self_modify=True)
    x, q, gates, readout, state, rules, fixed, first = args

    def run(*leaves: Tensor) -> tuple[Tensor, ...]:
        x, q, output, W2, W1, O2, O1, eta = leaves
        weights = FastWeights(W2, W1)
        o, after = self_modifying(
            x,
            q,
            gates._replace(output_NRT=output),
            readout._replace(eta_Hd=eta),
            MemoryState(weights, weights, None, 0),
            rules,
            fixed,
            FastWeights(O2, O1),
        )
        return o, *after.now

    leaves = (x, q, gates.output_NRT, *state.now, *first, readout.eta_Hd)
    assert torch.autograd.gradcheck(run, leaves, nondet_tol=1e-12)


def test_gradient_is_of_half_the_square() -> None:
    """Chunk 1, plain rule: W moves by -eta times autograd's gradient of 1/2 ||M(k) - v||^2 (eq. 90)."""
    draw, rules = Draw(), Rules(chunk=1, stable=False, activation="relu")
    k, v, q = draw.unit(B, H, 1, d), draw.unit(B, H, 1, d), draw.unit(B, H, 1, d)
    state_weights = draw.weights(1)
    eta = 0.07
    zero = torch.zeros(B, H, 1, dtype=torch.float64)
    gates = Gates(zero, None, None, torch.full((B, H, 1, 1), eta, dtype=torch.float64), None)
    state = MemoryState(state_weights, state_weights, None, 0)
    _, after = titans_memory_naive(q, k, v, gates, state, rules)
    W2, W1 = state_weights
    hidden = (W2 @ k[..., None, 0, :, None]).relu()
    error = k[..., None, 0, :, None] + W1 @ hidden - v[..., None, 0, :, None]
    g2, g1 = torch.autograd.grad(0.5 * error.square().sum(), (W2, W1))
    assert (after.now.W2_NRmd - (W2 - eta * g2)).abs().max() < 1e-12
    assert (after.now.W1_NRdm - (W1 - eta * g1)).abs().max() < 1e-12


def test_erase_takes_eta_times_what_each_layer_recalls() -> None:
    """Eq. 88: W (alpha I - eta x x^T) - eta g x^T, x the layer's own input: k of W2, a = phi(W2 k) of W1."""
    draw, eta, alpha = Draw(), 0.07, 0.9
    k, v = (draw.unit(1, 1, 1, d).detach() for _ in range(2))
    W2, W1 = (W[:1, :1, :1].detach().requires_grad_() for W in draw.weights(1))
    a = (W2 @ k[0, 0, 0]).relu()
    g2, g1 = torch.autograd.grad(
        0.5 * (k[0, 0, 0] + (W1 @ a[..., None])[..., 0] - v[0, 0, 0]).square().sum(), (W2, W1)
    )
    constant = torch.full((1, 1, 1), eta, dtype=torch.float64)
    gates = Gates(torch.full_like(constant, alpha).log(), constant, None, constant[..., None], None)
    state = MemoryState(FastWeights(W2, W1), FastWeights(W2, W1), None, 0)
    rules = Rules(chunk=1, activation="relu", stable=False, tied_gates=True, erase="both")
    _, after = titans_memory_naive(k, k, v, gates, state, rules)
    for W, x, g, written in zip((W2, W1), (k[0, 0, 0], a[0, 0, 0]), (g2, g1), after.now, strict=True):
        transition = alpha * torch.eye(len(x), dtype=x.dtype) - eta * x[:, None] * x
        assert (written - (W @ transition - eta * g)).abs().max() < 1e-12


@pytest.mark.parametrize(("word", "changed"), [((0, 1) * 3, False), ((0, 1, 0, 2), False), ((0, 1), True)])
def test_hidden_keys_hold_a_group_that_does_not_commute(word: tuple[int, ...], changed: bool) -> None:
    """Transpositions of three things as reflections of W1: the angles between their keys need entries below zero."""
    roots_Km = torch.tensor([[1, 0], [-0.5, 0.75**0.5], [0.5, 0.75**0.5]], dtype=torch.float64)
    slope = NEGATIVE_SLOPES["leaky_relu"]
    W2_md = 1e3 * torch.where(roots_Km > 0, roots_Km, roots_Km / slope).T  # large: shrunk keys have norm 1
    weights = FastWeights(W2_md[None, None], Draw()(1, 1, 3, 2).detach())
    k = torch.eye(3, dtype=torch.float64)[list(word)][None]
    zero, two = (torch.full((1, 1, len(word)), x, dtype=torch.float64) for x in (0, 2))
    gates = Gates(zero[0], None, two, zero, None)
    # The target is the key: nothing is written, all that is recalled is reflected.
    _, after = titans_memory(k, k, k, gates, MemoryState(weights, weights, None, 0), Rules(chunk=2))
    moved = (after.now.W1_NRdm - weights.W1_NRdm).abs().max()
    assert moved > 0.1 if changed else moved < 1e-4


def test_stable_write_recalls_its_target_exactly() -> None:
    """Output strength 1 and no forgetting: right after the write, M(k) at the old hidden key is the target."""
    draw, rules = Draw(), Rules(chunk=1)
    k, v = draw.unit(B, H, 1, d), draw.unit(B, H, 1, d)
    weights, zero = draw.weights(1), torch.zeros(B, H, 1, dtype=torch.float64)
    one = torch.ones(B, H, 1, 1, dtype=torch.float64)
    W2 = weights.W2_NRmd.detach() * 1e3  # shrunk activations then have norm 1
    weights = FastWeights(W2, weights.W1_NRdm.detach())
    no_eta = torch.zeros(B, H, 1, 1, dtype=torch.float64)
    gates = Gates(zero, zero, one, no_eta, None)
    o, _ = titans_memory(k, k, v, gates, MemoryState(weights, weights, None, 0), rules)
    assert (o - v).abs().max() < 1e-5


@pytest.mark.parametrize("size", [0.1, 1e3])
def test_hidden_layer_moves_by_less_than_eta(size: float) -> None:
    """Along -g / sqrt(1 + ||g||^2), g autograd's gradient of 1/2 ||M(k) - v||^2 with the shrink factor a constant."""
    draw, eta = Draw(), 0.07
    k, v = draw.unit(B, H, 1, d), draw.unit(B, H, 1, d)
    W2, W1 = draw.weights(1)
    weights = FastWeights(W2, W1.detach() * size)
    zero, one = (torch.full((B, H, 1), x, dtype=torch.float64) for x in (0, 1))
    gates = Gates(zero, None, one[:, :, None], eta * one[:, :, None], None)
    rules = Rules(chunk=1, activation="relu")
    _, after = titans_memory(k, k, v, gates, MemoryState(weights, weights, None, 0), rules)
    hidden = (W2 @ k[..., None, 0, :, None]).relu()
    shrunk = hidden * torch.rsqrt(0.01 + hidden.detach().square().sum(-2, keepdim=True))
    error = k[..., None, 0, :, None] + weights.W1_NRdm @ shrunk - v[..., None, 0, :, None]
    (g,) = torch.autograd.grad(0.5 * error.square().sum(), W2)
    norm = g.norm(dim=(-2, -1), keepdim=True)
    moved = after.now.W2_NRmd - W2
    assert (moved + eta * g / (1 + norm.square()).sqrt()).abs().max() < 1e-12
    assert moved.norm(dim=(-2, -1)).max() < eta
    assert size < 1 or norm.max() > 1, "the bound was not met"
