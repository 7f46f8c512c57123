"""Every key of a configuration has its type and range: what cannot be built is one line, before anything is built."""

import dataclasses
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from hope_model import InputError, LanguageModel, ModelConfig
from hope_model.ranges import check_ranges, one_of, within

SMALL: dict[str, Any] = {"vocab_size": 8, "dim": 8, "head_dim": 4, "layers": 1}


def keys(values: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every key, with its default."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from keys(value, (*path, key))
        else:
            yield (*path, key), value


def refusal(path: tuple[str, ...], value: Any) -> str:
    """The message for a value at a key, or '' where it is taken."""
    values: dict[str, Any] = {path[-1]: value}
    for key in reversed(path[:-1]):
        values = {key: values}
    try:
        ModelConfig.from_dict(SMALL | values)
    except InputError as error:
        return str(error)
    return ""


KEYS = dict(keys(ModelConfig().to_dict()))


@pytest.mark.parametrize("path", KEYS, ids=".".join)
def test_every_key_refuses_what_it_cannot_be_in_one_line(path: tuple[str, ...]) -> None:
    default = KEYS[path]
    wrong: list[Any] = [{"a": 1}, None, [[1]], [math.nan]]
    if not isinstance(default, str):
        wrong.append("many")
    if not isinstance(default, bool):
        wrong.append(True)
    if isinstance(default, bool | int | str):
        wrong.append(0.5)
    if isinstance(default, bool | int | float | str):
        wrong += [math.nan, math.inf, [1], [default]]
    if isinstance(default, int | float):
        wrong += [-3, -math.inf, 10**5000, 1e300]
    for value in wrong:
        message = refusal(path, value)
        assert message.startswith(f"model.{'.'.join(path)}"), (value, message)
        assert "\n" not in message
        assert len(message) < 200


NUMBERS = [path for path, default in KEYS.items() if type(default) in (int, float)]


@pytest.mark.parametrize("variant", ["hope", "titans_mac"])
@pytest.mark.parametrize("path", NUMBERS, ids=".".join)
def test_what_is_taken_runs(path: tuple[str, ...], variant: str) -> None:
    for value in (0, 1, 2, 3, 0.5, 1e-30, 16, 4096):
        if value == 4096 and path in (("layers",), ("dim",)):
            continue
        values = {"variant": variant, "cms": {"smallest": 2, "levels": 2}, path[-1]: value}
        if path[1:]:
            values |= {path[0]: {**values.get(path[0], {}), path[-1]: value}}
            del values[path[-1]]
        try:
            config = ModelConfig.from_dict(SMALL | values)
        except InputError:
            continue
        torch.manual_seed(0)
        model = LanguageModel(config)
        tokens = torch.randint(min(8, config.vocab_size), (1, 7))
        logits, state = model(tokens)
        assert model(tokens[:, :2], state)[0].isfinite().all(), value
        torch.autograd.backward(logits.sum())
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters()), value


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cms": {"levels": 0}}, "model.cms.levels is 0; it must be between 1 and 64"),
        ({"attention": {"window": -3}}, "model.attention.window is -3; it must be between 0 and 1,099,511,627,776"),
        ({"conv": 0}, "model.conv is 0; it must be between 1 and 1,024"),
        ({"dim": "wide"}, "model.dim is 'wide'; it must be a whole number, between 1 and 1,048,576"),
        ({"layers": True}, "model.layers is True; it must be a whole number, between 1 and 4,096"),
        ({"cms": {"teach_clip": 0}}, "model.cms.teach_clip is 0.0; it must be above 0 and at most 1e+12"),
        (
            {"cms": {"teach_scale": math.nan}},
            "model.cms.teach_scale is nan; it must be a finite number, between 0 and 1,000",
        ),
        ({"cms": {"periods": [4, 0]}}, "model.cms.periods[1] is 0; it must be between 1 and 4,611,686,018,427,387,904"),
        ({"cms": {"periods": [1] * 10**6}}, "model.cms.periods has 1,000,000 entries; at most 64 are allowed"),
        ({"cms": {"signal": "both"}}, "model.cms.signal is 'both'; choose one of output, layer"),
        ({"cms": [1]}, "model.cms must be a mapping, not [1]"),
        (
            {"variant": "hope_attention", "dim": 33, "head_dim": 33},
            "model.head_dim is 33; rotary positions of hope_attention need an even one",
        ),
        (
            {"cms": {"levels": 64, "ratio": 4}},
            "model.cms.levels 64 and model.cms.ratio 4 make a period of more than 2^62 tokens; lower one of them",
        ),
        (
            {"dim": 2**20, "layers": 4096},
            "model.dim 1048576, model.layers 4096 and model.vocab_size 8 make 5e+16 parameters; "
            "at most 1e+13 are allowed",
        ),
    ],
)  # fmt: skip
def test_messages(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        ModelConfig.from_dict(SMALL | {"head_dim": 4} | values)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "values",
    [
        {"layers": 10**7},
        {"cms": {"levels": 10**5}},
        {"cms": {"periods": list(range(1, 10**6))}},
        {"vocab_size": 10**12},
        {"layers": 4096, "dim": 65_536},
        {"memory": {"hidden": 65_536}},
        {"memory": {"persistent": 65_536}, "variant": "titans_mac", "dim": 2**18, "layers": 4096},
        {"vocab_size": 2**31 - 1, "dim": 2**20},
    ],
)
def test_absurd_sizes_are_refused_within_a_second(values: dict[str, Any]) -> None:
    start = time.monotonic()
    with pytest.raises(InputError, match=r"allowed|must be between"):
        ModelConfig.from_dict(SMALL | values)
    assert time.monotonic() - start < 1


def test_nested_mappings_of_any_depth_are_one_line() -> None:
    deep: Any = 1
    for _ in range(100_000):
        deep = {"cms": deep}
    with pytest.raises(InputError, match=r"unknown key model\.cms\.cms"):
        ModelConfig.from_dict(deep)
    deep = []
    for _ in range(100_000):
        deep = [deep]
    assert "\n" not in refusal(("dim",), deep)
    with pytest.raises(InputError, match="model must be a mapping, not \\[1\\]"):
        ModelConfig.from_dict([1])  # type: ignore[arg-type]


def test_unknown_keys_and_values_that_exclude_each_other_are_named() -> None:
    with pytest.raises(InputError, match=r"unknown key model\.cms\.teach; known: levels"):
        ModelConfig.from_dict({"cms": {"teach": 1}})
    with pytest.raises(InputError, match="multiple"):
        ModelConfig(dim=100, head_dim=64)
    assert ModelConfig.from_dict(ModelConfig(dim=128).to_dict()) == ModelConfig(dim=128)


@dataclass(frozen=True)
class Part:
    rate: float = field(default=1.0, metadata=within(0, 1))


@dataclass(frozen=True)
class Whole:
    name: str = field(default="a", metadata=one_of("a", "b"))
    anything: dict[str, Any] = field(default_factory=dict)
    lengths: dict[int, int] = field(default_factory=dict, metadata=within(1, 9))
    part: Part | None = None
    parts: list[Part] = field(default_factory=list)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "c"}, "name is 'c'; choose one of a, b"),
        ({"lengths": {0: 4, 7: 10}}, "lengths[7] is 10; it must be between 1 and 9"),
        ({"lengths": [4]}, "lengths is [4]; it must be a mapping"),
        ({"part": Part(2.0)}, "part.rate is 2.0; it must be between 0 and 1"),
        ({"part": 3}, "part must be a mapping, not 3"),
        ({"parts": [Part(), Part(-0.5)]}, "parts[1].rate is -0.5; it must be between 0 and 1"),
    ],
)
def test_ranges_reach_into_lists_mappings_and_optional_parts(changes: dict[str, Any], message: str) -> None:
    check_ranges(Whole(anything={"x": [1]}, part=Part()), "")
    with pytest.raises(InputError) as caught:
        check_ranges(dataclasses.replace(Whole(), **changes), "")
    assert str(caught.value) == message
