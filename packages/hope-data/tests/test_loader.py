import json
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hope_data.errors import InputError
from hope_data.loader import (
    Batch,
    Loader,
    LoaderConfig,
    eval_windows,
    permutation,
    positions,
    resets,
    same_document,
)
from hope_data.shards import Split


@pytest.fixture(scope="session")
def config(data: Path) -> LoaderConfig:
    return LoaderConfig(shards=str(data / "shards"), batch_size=4, length=64)


def take(loader: Loader, count: int) -> Batch:
    batches = list(islice(loader, count))
    return Batch(np.concatenate([b.tokens for b in batches]), np.concatenate([b.corpus for b in batches]))


def same(one: Batch, other: Batch) -> bool:
    return bool(np.array_equal(one.tokens, other.tokens) and np.array_equal(one.corpus, other.corpus))


@pytest.mark.parametrize("n", [1, 2, 3, 7, 64, 65, 1000])
def test_permutation(n: int) -> None:
    places = [permutation(n, "k")(x) for x in range(n)]
    assert sorted(places) == list(range(n))
    if n == 1000:
        assert places != [permutation(n, "other")(x) for x in range(n)]
        # A random order correlates with the identity by less than 5/sqrt(n).
        assert abs(np.corrcoef(places, np.arange(n))[0, 1]) < 5 / n**0.5


def test_each_pass_has_every_window_once(data: Path, config: LoaderConfig) -> None:
    loader = Loader(config, "train", seed=3)
    split = Split.open(data / "shards" / "b", "train")
    n = loader.windows()["b"]
    assert n == (split.n_tokens - 1) // 64
    where = {split.tokens[k * 64 : k * 64 + 65].tobytes(): k for k in range(n)}
    assert len(where) == n
    drawn = []
    for batch in loader:
        rows = batch.tokens[batch.corpus == 1].astype(np.uint16)
        drawn += [where[row.tobytes()] for row in rows]
        if len(drawn) >= 3 * n:
            break
    for epoch in range(3):
        assert sorted(drawn[epoch * n : (epoch + 1) * n]) == list(range(n))
    assert drawn[:n] != drawn[n : 2 * n]


def test_mixture_is_exact_and_even(config: LoaderConfig) -> None:
    weighted = replace(config, weights={"a": 3.0, "b": 1.0})
    loader = Loader(weighted, "train", seed=0)
    corpus = take(loader, 4096).corpus
    assert Counter(corpus.tolist()) == {0: 12_288, 1: 4_096}
    counts = np.cumsum(corpus == 1)
    assert np.abs(counts - np.arange(1, len(counts) + 1) / 4).max() <= 1


def test_mixture_defaults_to_tokens(data: Path, config: LoaderConfig) -> None:
    corpus = take(Loader(config, "train", seed=0), 4096).corpus
    tokens = [Split.open(data / "shards" / name, "train").n_tokens for name in "ab"]
    assert (corpus == 1).mean() == pytest.approx(tokens[1] / sum(tokens), abs=1e-4)
    only_b = Loader(replace(config, corpora=["b"]), "train", seed=0)
    assert only_b.corpora == ["b"]
    assert set(take(only_b, 3).corpus.tolist()) == {0}


def test_batch_shape_and_content(data: Path, config: LoaderConfig) -> None:
    batch = next(Loader(config, "train", seed=0))
    assert batch.tokens.shape == (4, 65)
    assert batch.tokens.dtype == np.int64
    assert batch.corpus.shape == (4,)


def test_resume_is_exact_and_state_small(config: LoaderConfig) -> None:
    loader = Loader(config, "train", seed=1)
    take(loader, 137)
    state = json.loads(json.dumps(loader.state_dict()))
    assert len(json.dumps(state)) < 200
    ahead = take(loader, 20)
    resumed = Loader(config, "train", seed=1)
    resumed.load_state_dict(state)
    assert same(take(resumed, 20), ahead)
    assert not same(take(Loader(config, "train", seed=1), 20), ahead)


def test_ranks_share_one_stream_and_may_change(config: LoaderConfig) -> None:
    alone = take(Loader(replace(config, batch_size=8), "train", seed=2), 6)
    ranks = [Loader(config, "train", seed=2, rank=r, world=2) for r in (0, 1)]
    pairs = [next(loader) for _ in range(3) for loader in ranks]
    assert np.array_equal(np.concatenate([b.tokens for b in pairs]), alone.tokens[:24])
    four = [Loader(replace(config, batch_size=2), "train", seed=2, rank=r, world=4) for r in range(4)]
    for loader in four:
        loader.load_state_dict(ranks[0].state_dict())
    rest = [next(loader) for _ in range(3) for loader in four]
    assert np.array_equal(np.concatenate([b.tokens for b in rest]), alone.tokens[24:])


def test_seed_changes_the_order_not_the_content(config: LoaderConfig) -> None:
    one, other = (take(Loader(config, "train", seed=s), 8) for s in (0, 1))
    assert not same(one, other)


@pytest.mark.parametrize("change", [{"length": 32}, {"weights": {"a": 1.0, "b": 9.0}}, {"corpora": ["a"]}])
def test_position_of_another_stream_is_refused(config: LoaderConfig, change: dict[str, object]) -> None:
    state = Loader(config, "train", seed=0).state_dict()
    with pytest.raises(InputError, match="start afresh"):
        Loader(replace(config, **change), "train", seed=0).load_state_dict(state)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="start afresh"):
        Loader(config, "train", seed=1).load_state_dict(state)


def test_bad_settings_are_named(config: LoaderConfig, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no shards of corpus c"):
        Loader(replace(config, weights={"a": 1.0, "c": 1.0}), "train", seed=0)
    with pytest.raises(InputError, match="must be positive"):
        Loader(replace(config, weights={"a": 0.0}), "train", seed=0)
    with pytest.raises(InputError, match="fewer than length"):
        Loader(replace(config, length=10**6), "train", seed=0)
    with pytest.raises(InputError, match="no shards here"):
        Loader(replace(config, shards=str(tmp_path)), "train", seed=0)
    with pytest.raises(InputError, match="rank 2 of 2"):
        Loader(config, "train", seed=0, rank=2, world=2)


def test_eval_windows(data: Path) -> None:
    split = Split.open(data / "shards" / "a", "val")
    n = (split.n_tokens - 1) // 16
    every = eval_windows(data / "shards" / "a", 16, 10**6)
    assert every.shape == (n, 17)
    assert np.array_equal(every[:, :-1].ravel(), split.tokens[: 16 * n])
    some = eval_windows(data / "shards" / "a", 16, 5)
    assert np.array_equal(some, every[np.arange(5) * n // 5])
    with pytest.raises(InputError, match="no window"):
        eval_windows(data / "shards" / "a", 10**6, 5)


def test_segments_show_where_documents_end(config: LoaderConfig, data: Path) -> None:
    batch = next(Loader(replace(config, length=200), "train", seed=0))
    segments, eos = batch.segments, Split.open(data / "shards" / "a", "train").eos_id
    assert segments is not None
    assert (segments.dtype, segments.shape) == (np.int32, (4, 201))
    for row, found in zip(batch.tokens, segments, strict=True):
        naive = [sum(int(token == eos) for token in row[:t]) for t in range(len(row))]
        assert found.tolist() == naive
    assert segments[:, -1].min() >= 1


def test_resets_positions_and_mask_against_loops() -> None:
    segments = np.array([[0, 0, 1, 1, 1, 2], [0, 1, 2, 2, 2, 2]], np.int32)
    assert resets(segments).tolist() == [
        [True, False, True, False, False, True],
        [True, True, True, False, False, False],
    ]
    assert positions(segments).tolist() == [[0, 1, 0, 1, 2, 0], [0, 0, 0, 1, 2, 3]]
    mask = same_document(segments)
    for b in range(2):
        for t in range(6):
            for s in range(6):
                assert mask[b, t, s] == (s <= t and segments[b, s] == segments[b, t])


@settings(max_examples=25, deadline=None)
@given(
    plan=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 4)), min_size=1, max_size=6)
)
def test_any_world_sizes_in_turn_draw_each_window_once(
    config: LoaderConfig, plan: list[tuple[int, int, int]]
) -> None:
    """Resumed with ever other ranks and batch sizes: the one stream, no window twice or never."""
    drawn, state = [], Loader(config, "train", seed=5).state_dict()
    for world, batch_size, steps in plan:
        ranks = [
            Loader(replace(config, batch_size=batch_size), "train", 5, rank, world) for rank in range(world)
        ]
        for loader in ranks:
            loader.load_state_dict(state)
        for _ in range(steps):
            drawn += [row for loader in ranks for row in next(loader).tokens.tolist()]
        states = [loader.state_dict() for loader in ranks]
        assert all(s == states[0] for s in states)
        state = states[0]
    alone = take(Loader(replace(config, batch_size=1), "train", seed=5), len(drawn))
    assert drawn == alone.tokens.tolist()
    # Half of a pass, in which no corpus can have begun its second.
    half = drawn[: sum(Loader(config, "train", 5).windows().values()) // 2]
    assert len({tuple(row) for row in half}) == len(half)


@pytest.mark.parametrize(
    "wrong", [0, -1, 10**9, 10**400, 1.5, "8", None, True, float("nan")], ids=lambda value: str(value)[:12]
)
def test_sizes_and_weights_have_ranges(wrong: Any, data: Path) -> None:
    shards = str(data / "shards")
    for config in (LoaderConfig(shards, batch_size=wrong), LoaderConfig(shards, length=wrong)):
        with pytest.raises(InputError) as error:
            Loader(config, "train", 0)
        assert "it must be a whole number from 1 to 268435456" in str(error.value) or "over 268435456" in str(
            error.value
        )
    with pytest.raises(InputError, match="loader: length is"):
        eval_windows(data / "shards" / "a", wrong if wrong != 10**9 else 0, 4)
    if wrong not in {10**9, 1.5}:
        with pytest.raises(InputError, match="loader: weights must be positive"):
            Loader(LoaderConfig(shards, {"a": 1.0, "b": wrong}, length=16), "train", 0)
