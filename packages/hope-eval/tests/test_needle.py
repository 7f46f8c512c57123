"""Prompts to the token, needles at their depths, scores against hand-made answers, books by position."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hope_data.errors import InputError
from hope_eval import results as schema
from hope_eval.cli import main
from hope_eval.scoring.load import HopeModel, Loaded, load
from hope_eval.scoring.scorer import Fork, Scorer
from hope_eval.tasks import babi, books, needle
from hope_eval.tasks.texts import tokens_of
from hope_model import LanguageModel, ModelConfig, checkpoint


@pytest.fixture(scope="module")
def loaded(checkpoint_folder: Path) -> Loaded:
    return load(checkpoint_folder, checkpoint_folder.parents[2] / "tokenizer")


@pytest.fixture(scope="module")
def text(loaded: Loaded) -> np.ndarray:
    return np.array(loaded.tokenizer.encode("lumen tira oru. " * 40, special=False), np.int64)


@pytest.mark.parametrize("name", list(needle.KINDS))
def test_prompts_have_exact_lengths_and_hold_what_they_ask(
    name: str, loaded: Loaded, text: np.ndarray
) -> None:
    settings = needle.Settings(depths=[0.0, 0.5, 1.0], repeats=2)
    made = list(needle.build(loaded.tokenizer, name, settings, 1500, text, 0))
    kind = needle.KINDS[name]
    assert [item.depth for item in made] == [0.0, 0.5, 1.0] * 2
    for item in made:
        assert len(item.prompt_T) + item.room == 1500
        said = loaded.tokenizer.decode(item.prompt_T.tolist())
        assert len(item.answers) == kind.values * kind.queries
        places = [said.index(f"is: {answer}.") / len(said) for answer in item.answers]
        # The frame takes its share of the prompt, so depths are approximate in characters.
        if item.depth == 0.0:
            assert places[0] < 0.35
        if item.depth == 1.0:
            assert places[0] > 0.5
        assert said.count("is: ") >= kind.keys * kind.values
        # Room for the whole answer.
        assert len(loaded.tokenizer.encode(" " + ", ".join(item.answers), special=False)) <= item.room
    again = list(needle.build(loaded.tokenizer, name, settings, 1500, text, 0))
    assert all(np.array_equal(a.prompt_T, b.prompt_T) for a, b in zip(made, again, strict=True))
    other = list(needle.build(loaded.tokenizer, name, settings, 1500, text, 1))
    assert not np.array_equal(made[0].prompt_T, other[0].prompt_T)


def test_scores_are_shares_of_values_in_what_was_written(
    loaded: Loaded, text: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that writes two of four values scores a half."""
    made = list(
        needle.build(
            loaded.tokenizer, "niah_multivalue", needle.Settings(depths=[0.5], repeats=1), 900, text, 0
        )
    )
    [item] = made
    said = loaded.tokenizer.encode(f" {item.answers[2]}, then {item.answers[0]}", special=False)[: item.room]
    ids = np.array([said + [0] * (item.room - len(said))])
    scorer = Scorer(loaded.model)
    monkeypatch.setattr(scorer, "prefill", lambda prompts: Fork(None, None))  # type: ignore[arg-type]
    monkeypatch.setattr(scorer, "greedy", lambda fork, steps: ids)
    assert needle.ask(scorer, loaded.tokenizer, made) == [0.5]


def test_result_has_a_cell_for_every_length_and_depth(loaded: Loaded, tmp_path: Path) -> None:
    settings = needle.Settings(lengths=[700, 500], depths=[0.0, 1.0], repeats=2)
    result = needle.run(
        Scorer(loaded.model), loaded.tokenizer, "niah_single_1", settings, np.zeros(0, np.int64)
    )
    cells = {m.group: m.n for m in result.metrics if m.group.startswith("cell=") and m.name == "needle_match"}
    assert cells == {"cell=500@0": 2, "cell=500@1": 2, "cell=700@0": 2, "cell=700@1": 2}
    assert result.tokens >= 4 * (500 + 700) - 8 * 40
    assert [note.split(" tokens")[0] for note in result.notes] == [
        "peak memory of the process after 500",
        "peak memory of the process after 700",
    ]


def test_state_does_not_grow_with_length(loaded: Loaded) -> None:
    """What the 1M run measures in memory, here in the bytes of the state."""
    from hope_model.state import n_bytes

    sizes = []
    for length in (1024, 8192):
        fork = Scorer(loaded.model).prefill(np.tile(np.arange(2, 34), length // 32)[None])
        sizes.append(n_bytes(fork.state))
    assert sizes[1] <= sizes[0]


def test_attention_refuses_more_than_it_allows(loaded: Loaded) -> None:
    values = {"variant": "transformer", "vocab_size": 320, "dim": 32, "layers": 1, "head_dim": 16}
    model = HopeModel(LanguageModel(ModelConfig.from_dict(values)), length=256)
    settings = needle.Settings(lengths=[1025])
    with pytest.raises(InputError, match="1025 tokens, but attention of this model allows 1024"):
        needle.check(Scorer(model), "niah_single_1", settings, np.zeros(0, np.int64))
    needle.check(Scorer(model), "niah_single_1", needle.Settings(lengths=[1024]), np.zeros(0, np.int64))


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--tasks", "niah_single_9"], "unknown task 'niah_single_9'; choose among niah_single_1"),
        (["--tasks", "niah_single_2"], "its haystack is text; name files with --text"),
        (["--lengths", "40"], "length 40 is too short; this prompt alone takes"),
        (["--depths", "0,2"], "argument --depths: '2': a depth is a share from 0 to 1"),
        (["--memorize-paths", "cms.7"], "this model has titans, cms.0, cms.1"),
        (["--memorize-oracle"], "an oracle would be told the values"),
    ],
)
def test_unfit_requests_are_one_line(
    extra: list[str],
    message: str,
    checkpoint_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tokenizer = str(checkpoint_folder.parents[2] / "tokenizer")
    flags = ["needle", "--checkpoint", str(checkpoint_folder), "--tokenizer", tokenizer]
    flags += ["--json", str(tmp_path / "x.json"), "--lengths", "400", "--repeats", "1", *extra]
    assert main(flags) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert message in said
    assert not (tmp_path / "x.json").exists()


def test_books_by_position_equal_the_whole_text_read_at_once(
    loaded: Loaded, corpora: Path, tmp_path: Path
) -> None:
    path, out = tmp_path / "book.txt", tmp_path / "books.json"
    # Weights of the usual size: the fixture's are too large to read a long text.
    torch.manual_seed(0)
    values = {"vocab_size": 320, "dim": 32, "layers": 2, "head_dim": 16}
    model = LanguageModel(ModelConfig.from_dict({**values, "cms": {"smallest": 16, "levels": 2}}))
    sha256 = loaded.about.tokenizer_sha256
    checkpoint.save(tmp_path / "calm", model, {"tokenizer_sha256": sha256})
    rows = (corpora / "left.jsonl").read_text().splitlines()[:6]
    body = "\n".join(json.loads(row)["text"] for row in rows) + "\n"
    path.write_text(f"header\n*** START OF THIS BOOK ***\n{body}*** END OF THIS BOOK ***\nlicence\n")
    flags = ["--checkpoint", str(tmp_path / "calm"), "--tokenizer", str(corpora / "tokenizer")]
    assert main(["books", *flags, "--text", str(path), "--json", str(out)]) == 0
    for said, by_hand in zip(
        schema.load(out).tasks, books.run(Scorer(model), loaded.tokenizer, {"book": body}), strict=True
    ):
        assert [(m.name, m.group) for m in said.metrics] == [(m.name, m.group) for m in by_hand.metrics]
        assert [m.value for m in said.metrics] == pytest.approx([m.value for m in by_hand.metrics], rel=1e-6)
    # Untrained memories amplify rounding ten thousandfold within 2,000 tokens, so pieces and whole in float64.
    exact = Scorer(model.double(), batch_tokens=10**6)
    by_book, by_position = books.run(exact, loaded.tokenizer, {"book": body})
    logp = exact.token_logp([tokens_of(loaded.tokenizer, body)])[0]
    bits = by_book.find("bits_per_byte")
    assert bits is not None
    assert bits.value == pytest.approx(-logp.sum() / np.log(2) / len(body.encode()), rel=1e-6)
    for name, a, b in books.buckets(len(logp)):
        found = by_position.find("token_nats", f"position={name}")
        assert found is not None
        assert found.value == pytest.approx(-logp[a:b].mean(), rel=1e-6)
    assert len(by_position.items.weight) == len(books.buckets(len(logp))) >= 3


def test_buckets_double() -> None:
    assert books.buckets(1100) == [
        ("0-255", 0, 256),
        ("256-511", 256, 512),
        ("512-1023", 512, 1024),
        ("1024-2047", 1024, 1100),
    ]


STORY = """1 John went to the hall.
2 Mary went to the garden.
3 Where is John? \thall\t1
4 John went to the kitchen.
5 Where is John? \tkitchen\t4
1 Mary took the milk.
2 Where is Mary? |garden|1
"""


def test_stories_are_read_and_scattered_to_exact_lengths(
    loaded: Loaded, text: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / "qa1_one_test.txt"
    path.write_text(STORY)
    first, second, third = babi.read(path)
    assert (first.facts, first.answer) == (("John went to the hall.", "Mary went to the garden."), "hall")
    assert (second.facts[-1], second.answer) == ("John went to the kitchen.", "kitchen")
    assert (third.facts, third.answer) == (("Mary took the milk.",), "garden")
    made = babi.prompt(loaded.tokenizer, first, 400, text, 5)
    assert len(made) + len(loaded.tokenizer.encode(" hall", special=False)) == 400
    said = loaded.tokenizer.decode(made.tolist())
    places = [said.index(fact) / len(said) for fact in first.facts]
    assert places == pytest.approx([1 / 3, 2 / 3], abs=0.1)
    alone = babi.prompt(loaded.tokenizer, first, 0, text[:0], 0)
    assert (
        loaded.tokenizer.decode(alone.tolist())
        == "\n".join(first.facts) + "\n\nQuestion: Where is John?\nAnswer:"
    )
    result = babi.run(Scorer(loaded.model), loaded.tokenizer, path, [0, 300], text, 3)
    picked = result.find("label_accuracy")
    assert picked is not None
    assert (picked.n, picked.clusters, picked.chance) == (6, 3, pytest.approx(1 / 3))
    path.write_text("John went home.\n")
    with pytest.raises(InputError, match="line 1: does not begin with the number 1"):
        babi.read(path)
