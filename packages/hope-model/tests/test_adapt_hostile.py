"""Attached memories given hostile arguments, states and tokens: finite logits, or one line."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from hope_model import InputError, LanguageModel, ModelConfig
from hope_model.adapt import Ladder, Rule, attach_memory
from hope_model.state import MemorySettings

B, T, V = 3, 29, 50
PERIODS = [4, 8]


def build(variant: str = "transformer", **changes: Any) -> LanguageModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": V, "dim": 16, "layers": 2, "head_dim": 8, "init_std": 0.2}
    return LanguageModel(ModelConfig.from_dict({"variant": variant, **sizes, **changes})).double().eval()


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(1))


WRONG: tuple[Any, ...] = (
    -1,
    math.nan,
    math.inf,
    "many",
    0.5,
    [1],
    {},
    10**400,
    object(),
    torch.tensor(8),
    True,
)
RULE = {"down": "channel.down", "fused": "up", "activation": "silu"}
LADDER = {"smallest": 8, "ratio": 4, "levels": 2}


def message_of(call: Callable[[], Tensor]) -> str:
    """What the call is refused with; empty where it gives finite logits."""
    try:
        logits, message = call(), ""
    except InputError as error:
        logits, message = torch.zeros(1), str(error)
    assert logits.isfinite().all()
    assert "\n" not in message
    assert len(message) < 400
    return message


@pytest.mark.parametrize("value", WRONG, ids=lambda value: type(value).__name__)
def test_whatever_is_given_in_place_of_an_argument_is_one_line(value: Any, tokens: Tensor) -> None:
    """Every argument, and every field of Ladder, Rule and MemorySettings."""

    def attached(**options: Any) -> Tensor:
        with attach_memory(build(), **options) as memory:
            return memory(tokens)[0]

    keys = ("periods", "scale", "clip", "threshold", "bound", "retention", "matrices", "targets")
    calls = [partial(attached, **{key: value}) for key in keys]
    calls += [partial(attached, periods=Ladder(**{**LADDER, key: value})) for key in LADDER]
    calls += [
        partial(attached, matrices="all", targets=Rule(**{**RULE, key: value}))
        for key in ("down", "up", "gate", "fused", "activation")
    ]
    memory = attach_memory(model := build(), periods=PERIODS, scale=0.5)
    for key in MemorySettings._fields:
        settings = memory.settings()._replace(**{key: value})
        calls.append(partial(lambda s: memory(tokens, memory.initial(B, s))[0], settings))
        calls.append(partial(lambda s: memory(tokens, memory.initial(B)._replace(settings=s))[0], settings))
    assert sum(map(bool, map(message_of, calls))) > 15
    assert "batch is " in message_of(lambda: memory(tokens, memory.initial(value))[0])
    assert "batch is " in message_of(lambda: model(tokens, model.initial(value))[0])
    assert "give what `initial` or an earlier call returned" in message_of(lambda: memory(tokens, value)[0])


TAMPER: dict[str, Callable[[Tensor], Any]] = {
    "wider": lambda x: x.repeat_interleave(2, -1) if x.dim() else x[None],
    "rows": lambda x: x.repeat_interleave(2, 0) if x.dim() else x[None],
    "without rows": lambda x: x[:0] if x.dim() else x[None],
    "bool": lambda x: x.bool(),
    "meta": lambda x: x.to("meta"),
    "none": lambda _: None,
    "number": lambda _: 0.5,
}


@pytest.mark.parametrize("matrices", ["down", "up", "all"])
def test_a_state_is_checked_before_it_is_used(matrices: str, tokens: Tensor) -> None:
    """Each tensor of a state, changed in seven ways, is refused."""
    memory = attach_memory(build(), periods=PERIODS, scale=0.5, matrices=matrices)
    for t in (0, 3, 4, 6, 9):
        state = memory(tokens[:, :t])[1] if t else memory.initial(B)
        for place in places(state):
            for name, change in TAMPER.items():
                changed = put(state, place, change)
                with pytest.raises(InputError) as caught:
                    memory(tokens[:, t:], changed)
                assert "\n" not in str(caught.value), (t, place, name)
    other = attach_memory(build(dim=32), periods=PERIODS, scale=0.5, matrices=matrices)
    with pytest.raises(InputError, match=r"state|inner"):
        other(tokens, memory(tokens)[1])
    with pytest.raises(InputError, match="the state holds 3 sequences, the tokens 1"):
        memory(tokens[:1], memory(tokens)[1])


def places(value: Any, path: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
    """Where the tensors of a state are."""
    if isinstance(value, Tensor):
        yield path
    elif isinstance(value, tuple):
        for n, part in enumerate(value):
            yield from places(part, (*path, n))


def put(value: Any, path: tuple[int, ...], change: Callable[[Any], Any]) -> Any:
    if not path:
        return change(value)
    parts = list(value)
    parts[path[0]] = put(parts[path[0]], path[1:], change)
    return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)


@pytest.mark.parametrize("token", [-1, V])
def test_a_token_that_the_model_has_not_is_one_line(token: int, tokens: Tensor) -> None:
    model = build("hope", cms={"levels": 1, "smallest": 4})
    with pytest.raises(InputError, match=f"tokens are from {token} to {token}; the model has 0 to {V - 1}"):
        model(torch.full((1, 3), token))
    _, state = model(tokens[:, :3])
    pending = state.pending._replace(tokens_Bn=torch.full((B, 3), token))
    with pytest.raises(InputError, match=rf"state.pending.tokens_Bn are from {token} to {token}"):
        model(tokens, state._replace(pending=pending))
