"""States that fit a model pass; every other one is refused in a line that names the part and both shapes."""

import dataclasses
import json
import math
import multiprocessing
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from hope_model import AttentionConfig, CMSConfig, InputError, LanguageModel, MemoryConfig, ModelConfig, State
from hope_model.config import VARIANTS, WINDOWED
from hope_model.state import repeat, select
from hope_model.stream import load_state, save_state
from hope_model.tree import tensors, tree_map

B = 2
TOKENS = torch.randint(16, (B, 40), generator=torch.Generator().manual_seed(0))
CHANGES: list[dict[str, Any]] = [
    {},
    {"signal": "layer"},
    {"wiring": "nested"},
    {"delta_rule": True},
    {"teach_scale": 0.0},
]


def build(variant: str, cms: dict[str, Any] | None = None, **changes: Any) -> LanguageModel:
    torch.manual_seed(0)
    values: dict[str, Any] = {
        "vocab_size": 16,
        "dim": 8,
        "head_dim": 4,
        "layers": 2,
        "memory": MemoryConfig(chunk=4, eta_max=0.01),
        "attention": AttentionConfig(window=5 if variant in WINDOWED else 0),
        "cms": CMSConfig(**{"periods": [2, 4, 8], "teach_scale": 0.3} | (cms or {})),
    }
    return LanguageModel(ModelConfig(variant=variant, **values | changes))


@torch.no_grad()
def after(model: LanguageModel, tokens: int, memory: Any = None) -> State:
    start = model.initial(B, memory)
    return model(TOKENS[:, :tokens], start)[1] if tokens else start


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("cms", CHANGES, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_states_of_the_model_itself_fit(variant: str, cms: dict[str, Any]) -> None:
    if cms and not variant.startswith("hope"):
        pytest.skip("has no CMS")
    model, state = build(variant, cms), None
    for length in (1, 1, 3, 4, 1, 7, 8, 1, 2):
        _, state = model(TOKENS[:, :length], state)
        model.check(state, B)
        model.check(repeat(state, 3), 3 * B)
        model.check(select(state, torch.tensor([1])), 1)
    silent = state._replace(settings=state.settings._replace(teach_scale=0.0, writes=(), chunk=3))
    _, silent = model(TOKENS[:, :3], silent)
    _, again = model(TOKENS[:, :9], silent._replace(settings=state.settings))
    model.check(again, B)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_state_of_another_batch_precision_or_device_is_refused(variant: str) -> None:
    model = build(variant)
    state, token = after(model, 7), TOKENS[:, :1]
    message = "the state holds 2 sequences, the tokens 1; see hope_model.state.repeat and select"
    assert refusal(lambda: model(token[:1], state)) == message
    if variant not in (
        "transformer",
        "transformer_window",
        "hope_attention",
    ):  # caches may be of any precision
        twice = after(build(variant).double(), 7)
        assert " is of torch.float64, not of torch.float32" in refusal(lambda: model(token, twice))
    meta = torch.utils._pytree.tree_map(lambda x: x.to("meta") if isinstance(x, Tensor) else x, state)
    assert " is on meta, the model on cpu" in refusal(lambda: model(token, meta))


def test_the_tensor_and_both_shapes_are_named(tmp_path: Path) -> None:
    wide, narrow = (build("hope", memory=MemoryConfig(chunk=4, hidden=hidden)) for hidden in (6, 3))
    state = after(wide, 11)
    fault = "state.blocks[0].mixer.memory.now.W2_NRmd has shape [2, 2, 5, 6, 4], not [2, 2, 5, 3, 4]"
    assert refusal(lambda: narrow(TOKENS[:, :1], state)) == fault
    save_state(tmp_path / "s", wide, state)
    assert refusal(lambda: load_state(tmp_path / "s", narrow)) == (
        f"{tmp_path / 's'} holds the state of another model configuration, "
        f"model.memory.hidden 6 instead of 3: {fault}"
    )
    bounded = build("hope", {"delta_bound": 0.5}, memory=MemoryConfig(chunk=4, hidden=6))
    assert refusal(lambda: load_state(tmp_path / "s", bounded)) == (
        f"{tmp_path / 's'} holds the state of another model configuration, "
        "model.cms.delta_bound 0.1 instead of 0.5; load that model"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chunk": -1}, "settings.chunk is -1; it must be between 1 and 4,096"),
        ({"chunk": True}, "settings.chunk is True; it must be a whole number, between 1 and 4,096"),
        ({"chunk": 10**9}, "settings.chunk is 1000000000; it must be between 1 and 4,096"),
        ({"teach_scale": math.nan}, "settings.teach_scale is nan; it must be a finite number, between 0 and 1,000"),
        ({"teach_scale": -0.1}, "settings.teach_scale is -0.1; it must be between 0 and 1,000"),
        ({"teach_scale": "0.1"}, "settings.teach_scale is '0.1'; it must be a finite number, between 0 and 1,000"),
        ({"teach_clip": 0.0}, "settings.teach_clip is 0.0; it must be above 0 and at most 1e+12"),
        ({"surprise_threshold": -1}, "settings.surprise_threshold is -1; it must be between 0 and 1e+12"),
        ({"writes": ("cms.3",)}, "settings.writes is ('cms.3',); it must be None or a tuple of titans, cms.0, cms.1"),
        ({"writes": "titans"}, "settings.writes is 'titans'; it must be None or a tuple of titans, cms.0, cms.1"),
        ({"rates": (1.0,)}, "settings.rates is (1.0,); it must be None or a tuple of 2 numbers"),
        ({"rates": (1.0, math.inf)}, "settings.rates[1] is inf; it must be a finite number, between 0 and 1,000"),
        ({"writes": ["titans"]}, "settings.writes is ['titans']; it must be None or a tuple of titans, cms.0, cms.1"),
    ],
)  # fmt: skip
def test_settings_that_memories_cannot_be_written_with_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    model = build("hope", {"periods": [2, 4]})
    wrong = model.settings()._replace(**changes)
    assert refusal(lambda: model.initial(B, wrong)) == message
    state = after(model, 5)._replace(settings=wrong)
    assert refusal(lambda: model(TOKENS[:, :1], state)) == message


def leaves(part: Any, path: tuple[int, ...] = ()) -> Iterator[tuple[tuple[int, ...], Any]]:
    """Every part of a state that holds no others, and where it lies."""
    if isinstance(part, tuple) and part:
        for n, inner in enumerate(part):
            yield from leaves(inner, (*path, n))
    else:
        yield path, part


def replaced(part: Any, path: tuple[int, ...], new: Any) -> Any:
    if not path:
        return new
    parts = list(part)
    parts[path[0]] = replaced(parts[path[0]], path[1:], new)
    return type(part)(*parts) if hasattr(part, "_fields") else tuple(parts)


def mutations(leaf: Any) -> list[Any]:
    """What a damaged or foreign state might hold there instead."""
    if isinstance(leaf, Tensor):
        grown = [
            torch.cat((leaf, leaf[:1] if not n else leaf.narrow(n, 0, 1)), n)
            for n in range(leaf.dim())
            if leaf.shape[n]
        ]
        cut = [leaf.narrow(n, 0, leaf.shape[n] - 1) for n in range(leaf.dim()) if leaf.shape[n]]
        return [*grown, *cut, leaf[None], leaf.to(torch.int32), leaf.to(torch.complex64), None, 3, (leaf,)]
    if isinstance(leaf, bool | int):
        return [-1, 2**70, 0.5, True, None, "3", torch.tensor(3)]
    return [torch.zeros(1), "x", -1] if leaf is None else [None]


@pytest.mark.parametrize("cms", CHANGES[:2], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_damaged_part_is_refused_and_nothing_crashes(variant: str, cms: dict[str, Any]) -> None:
    """An enlarged tensor ended in `munmap_chunk(): invalid pointer`, a segmentation fault or plausible numbers."""
    if cms and not variant.startswith("hope"):
        pytest.skip("has no CMS")
    model = build(variant, cms)
    state = after(model, 11)
    for path, leaf in leaves(state):
        for new in mutations(leaf):
            message = refusal(partial(model, TOKENS[:, :5], replaced(state, path, new)))
            assert message.startswith(("state", "settings", "the state")), message


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_a_state_with_several_damaged_parts_is_refused(data: Any) -> None:
    model = build(data.draw(st.sampled_from(list(VARIANTS))))
    state = mutant = after(model, data.draw(st.integers(0, 20)))
    for path, leaf in data.draw(st.lists(st.sampled_from(list(leaves(state))), min_size=1, max_size=3)):
        mutant = replaced(mutant, path, data.draw(st.sampled_from(mutations(leaf))))
    refusal(lambda: model(TOKENS[:, : data.draw(st.integers(1, 9))], mutant))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (Tensor.to_sparse, "layout torch.sparse_coo, not of torch.strided"),
        (partial(Tensor.to, dtype=torch.float8_e5m2), "is of torch.float8_e5m2, not of torch.float32"),
        (Tensor.double, "is of torch.float64, not of torch.float32"),
    ],
)
@pytest.mark.parametrize("variant", ["hope", "transformer"])
def test_tensors_that_no_layer_computes_with_are_refused(
    variant: str, change: Callable[[Tensor], Tensor], said: str
) -> None:
    model = build(variant)
    state = after(model, 7)
    spoilt = tree_map(lambda x: change(x) if x.dim() > 2 else x, state)
    assert said in refusal(lambda: model(TOKENS[:, 7:], spoilt))


@pytest.mark.parametrize("variant", ["hope", "titans", "titans_mac", "gated_deltanet", "transformer"])
def test_tokens_that_are_none_are_refused(variant: str) -> None:
    model = build(variant)
    wrong = (TOKENS[:, :0], TOKENS[:0], TOKENS[0], TOKENS[None], TOKENS.float(), TOKENS > 3)
    for tokens in wrong:
        said = refusal(lambda: model(tokens))  # noqa: B023
        assert said.startswith(
            f"tokens are {tokens.dtype} of shape {list(tokens.shape)}; give int64 of shape"
        )


def test_other_things_than_states_are_refused() -> None:
    model = build("hope")
    for wrong in (3, "state", (1, 2), torch.zeros(2), after(model, 3).blocks):
        assert refusal(partial(model, TOKENS, wrong)).startswith("the state is ")


@pytest.mark.parametrize("variant", ["hope", "titans_mac", "gated_deltanet"])
def test_every_damaged_byte_of_a_file_is_noticed(variant: str, tmp_path: Path) -> None:
    """21 of 30 changes of a state file went unnoticed."""
    model, file = build(variant), tmp_path / "state"
    save_state(file, model, after(model, 11))
    data = file.read_bytes()
    assert all(
        torch.equal(a, b)
        for a, b in zip(tensors(load_state(file, model)), tensors(after(model, 11)), strict=True)
    )
    generator = random.Random(0)
    for _ in range(100):
        changed, at = bytearray(data), generator.randrange(len(data))
        changed[at] ^= 1 << generator.randrange(8)
        file.write_bytes(changed)
        assert "cannot be read as a state" in refusal(lambda: load_state(file, model))
    for cut in (data[: len(data) // 2], data[:-1], data + b"\0", b"", data[:8], b"\xff" * 64, b"\0" * 8):
        file.write_bytes(cut)
        assert "cannot be read as a state" in refusal(lambda: load_state(file, model))
    assert "cannot be read as a state" in refusal(lambda: load_state(tmp_path, model))
    assert "cannot be read as a state" in refusal(lambda: load_state(tmp_path / "none", model))


@pytest.mark.parametrize(
    "change",
    [
        lambda skeleton: skeleton.clear(),
        lambda skeleton: skeleton.update(state=7),
        lambda skeleton: skeleton.update(state={"kind": "State", "parts": [1]}),
        lambda skeleton: skeleton.update(state={"kind": "Popen", "parts": ["ls"]}),
        lambda skeleton: skeleton.update(state={"tensor": "999"}),
        lambda skeleton: skeleton.update(state={"kind": ["x"], "parts": []}),
        lambda skeleton: skeleton.update(model=[]),
        lambda skeleton: skeleton["state"]["parts"].reverse(),
    ],
)
def test_a_skeleton_that_somebody_wrote_by_hand_is_one_line(
    change: Callable[[dict[str, Any]], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its hash is right, so structure and shapes have to be looked at too."""
    model, dumps = build("hope"), json.dumps
    with monkeypatch.context() as patch:

        def changed(skeleton: dict[str, Any]) -> str:
            change(skeleton)
            return dumps(skeleton)

        patch.setattr(json, "dumps", changed)
        save_state(tmp_path / "state", model, after(model, 11))
    assert refusal(lambda: load_state(tmp_path / "state", model)).startswith(str(tmp_path / "state"))


def test_a_skeleton_of_any_depth_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("hope")
    with monkeypatch.context() as patch:
        patch.setattr(json, "dumps", lambda _: '{"a":' * 100_000)
        save_state(tmp_path / "state", model, after(model, 3))
    assert "nested too deeply" in refusal(lambda: load_state(tmp_path / "state", model))


def _save_often(path: Path, n: int) -> None:
    torch.set_num_threads(1)
    model = build("titans")
    state = after(model, n)
    for _ in range(30):
        save_state(path, model, state)


def test_savers_at_once_never_tear_a_file(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    file, model = tmp_path / "state", build("titans")
    (tmp_path / ".state.abcdefgh.tmp").write_bytes(b"left by a killed process")
    savers = [context.Process(target=_save_often, args=(file, n)) for n in (4, 9)]
    for saver in savers:
        saver.start()
    positions = set()
    while any(saver.is_alive() for saver in savers):
        if file.exists():
            positions.add(load_state(file, model).position)
    assert [saver.exitcode for saver in savers] == [0, 0]
    assert positions <= {4, 9}
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_only_what_the_model_reads_decides(tmp_path: Path) -> None:
    """A state of another number of layers, or of another variant, names what is in its place."""
    model = build("hope")
    save_state(tmp_path / "state", model, after(model, 3))
    other = LanguageModel(dataclasses.replace(model.config, layers=1))
    assert "model.layers 2 instead of 1: state.blocks is a tuple of 2 parts" in refusal(
        lambda: load_state(tmp_path / "state", other)
    )
    deltanet = refusal(lambda: build("hope_deltanet")(TOKENS[:, :1], after(model, 3)))
    assert deltanet == (
        "state.blocks[0].mixer is a TitansState of 2 parts, which is not the DeltaState of this model"
    )
