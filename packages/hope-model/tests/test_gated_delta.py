"""The one recurrence: chunk form == token loop, any split, extreme decays, half precision."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hope_model.ops.gated_delta import gated_delta_naive, recurrence

Assert = Callable[..., None]


def inputs(T: int, *, momentum: bool, erase: bool, K: int = 4, V: int = 3, seed: int = 0) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(2, 2, *shape, generator=generator, dtype=torch.float64)

    q, k = (F.normalize(draw(T, K), dim=-1).requires_grad_() for _ in range(2))
    w, log_a = draw(T, V).requires_grad_(), F.logsigmoid(draw(T) + 2).requires_grad_()
    b = (2 * draw(T).sigmoid()).requires_grad_() if erase else None
    S = draw(V, K).requires_grad_()
    if not momentum:
        return q, k, w, log_a, b, S, None, None
    return q, k, w, log_a, b, S, F.logsigmoid(draw(T)).requires_grad_(), draw(V, K).requires_grad_()


@pytest.mark.parametrize("momentum", [False, True])
@pytest.mark.parametrize("erase", [False, True])
@pytest.mark.parametrize("T", [1, 2, 13])
@pytest.mark.parametrize("chunk", [1, 3, 5, 64])
@pytest.mark.usefixtures("form")
def test_chunk_is_the_token_loop(
    assert_same: Assert, T: int, chunk: int, *, momentum: bool, erase: bool
) -> None:
    def fast(*args: Any) -> Any:
        return recurrence(*args, chunk=chunk)

    assert_same(gated_delta_naive, fast, *inputs(T, momentum=momentum, erase=erase))


@pytest.mark.parametrize("momentum", [False, True])
@pytest.mark.usefixtures("form")
def test_gradcheck(*, momentum: bool) -> None:
    args = inputs(4, momentum=momentum, erase=True, K=2, V=2)
    assert torch.autograd.gradcheck(lambda *a: [x for x in recurrence(*a, chunk=3) if x is not None], args)


@pytest.mark.parametrize("momentum", [False, True])
@pytest.mark.usefixtures("form")
def test_two_halves_are_the_whole(*, momentum: bool) -> None:
    q, k, w, log_a, b, S, log_theta, P = inputs(11, momentum=momentum, erase=True)
    whole, S_whole, P_whole = recurrence(q, k, w, log_a, b, S, log_theta, P, chunk=4)
    halves = []
    for part in (slice(0, 5), slice(5, None)):
        theta = None if log_theta is None else log_theta[..., part]
        args = (*(x[..., part, :] for x in (q, k, w)), log_a[..., part], b[..., part])
        o, S, P = recurrence(*args, S, theta, P, chunk=4)
        halves.append(o)
    assert (torch.cat(halves, -2) - whole).abs().max() < 1e-12
    assert (S - S_whole).abs().max() < 1e-12
    if P is not None and P_whole is not None:
        assert (P - P_whole).abs().max() < 1e-12


@pytest.mark.parametrize("a", [1.0, 1e-6])
@pytest.mark.usefixtures("form")
def test_extreme_retention(assert_same: Assert, a: float) -> None:
    q, k, w, log_a, b, S, _, _ = inputs(130, momentum=False, erase=True)
    log_a = torch.full_like(log_a, a).log().requires_grad_()
    b = (b.detach() * a).requires_grad_()
    assert_same(gated_delta_naive, recurrence, q, k, w, log_a, b, S)


def test_finite_under_bf16_at_32k() -> None:
    torch.manual_seed(0)
    T = 32_768
    q, k = (F.normalize(torch.randn(1, 1, T, 16), dim=-1).bfloat16() for _ in range(2))
    w, b = torch.randn(1, 1, T, 16).bfloat16(), 2 * torch.rand(1, 1, T)
    log_a = torch.where(torch.rand(1, 1, T) < 0.5, 0.0, -1e-3)
    o, S, _ = recurrence(q.float(), k.float(), w.float(), log_a, b, torch.zeros(1, 1, 16, 16))
    assert o.isfinite().all()
    # ||S||^2 settles near V K b / (2 - b) averaged over b; it must not grow with T.
    assert S.norm() < 100


def test_constants_by_hand() -> None:
    """One head, one dimension: S_1 = a S_0 - b S_0 k^2 + w k, o_1 = S_1 q."""
    one = torch.ones(1, 1, dtype=torch.float64)
    log_a = torch.tensor([0.5], dtype=torch.float64).log()
    b = torch.tensor([0.25], dtype=torch.float64)
    o, S, _ = recurrence(3 * one, 2 * one, 5 * one, log_a, b, 7 * one)
    assert S.item() == pytest.approx(0.5 * 7 - 0.25 * 7 * 4 + 5 * 2)
    assert o.item() == pytest.approx(3 * S.item())
