import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hope_data import documents, tokenizer_training
from hope_data.cli import main
from hope_data.errors import InputError
from hope_data.splits import SplitRule
from hope_data.tokenizer import Tokenizer

ODD = [
    "",
    " ",
    "  a\n\n\tb  ",
    "▁x ▁▁",
    "▁",
    "\0a\0",
    "</s><unk>\r\n日本語🎉",
    "\u2028x\x85é\u0301",
    "12345 678",
]


@pytest.fixture(scope="session")
def tok(data: Path) -> Tokenizer:
    return Tokenizer.load(data / "tokenizer")


@pytest.mark.parametrize("text", ODD)
def test_lossless_and_every_byte_counted(tok: Tokenizer, text: str) -> None:
    ids = tok.encode(text)
    assert tok.decode(ids) == text
    assert tok.token_bytes[ids].sum() == len(text.encode())


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_lossless_on_any_text(tok: Tokenizer, text: str) -> None:
    ids = tok.encode(text)
    assert tok.decode(ids) == text
    assert tok.token_bytes[ids].sum() == len(text.encode())


# Text without a space, with one in fifty thousand characters, of emoji, of what sentencepiece itself writes.
STRANGE = {
    "no space": ["今天天气很好我们去公园散步吧" * 20] * 40,
    "one space": ["今天天气很好我们去公园散步吧" * 20] * 180 + ["好 吧"],
    "emoji": ["😀😁👩‍💻👍🏽" * 20] * 40,
    "signs": ["▁▅</s><unk><0x41>\t\r\0\ufffd\ue000" * 20] * 40,
    "spaces": [" " * 40] * 40,
}


@pytest.fixture(scope="module", params=STRANGE)
def strange(request: pytest.FixtureRequest) -> Tokenizer:
    """A tokenizer of the least size that the text takes, trained on it alone."""
    text = STRANGE[request.param]
    with pytest.raises(tokenizer_training._Unfit) as error:
        tokenizer_training._fit(text, 100, 1)
    return Tokenizer(tokenizer_training._fit(text, error.value.nearest, 1))


@pytest.mark.parametrize(
    "text", [*ODD, "你 好", " the", "今天 天气", "▅ ▁ x", "<0x41>\r\n", "\ufeff\uffff\U0010ffff"]
)
def test_lossless_whatever_it_was_trained_on(strange: Tokenizer, text: str) -> None:
    ids = strange.encode(text)
    assert strange.decode(ids) == text
    assert strange.token_bytes[ids].sum() == len(text.encode())


@given(
    text=st.text(
        st.one_of(st.sampled_from(" ▁▅今天😀\n\t\0<s>"), st.characters(exclude_categories=["Cs"])),
        max_size=30,
    )
)
def test_lossless_on_any_text_whatever_it_was_trained_on(strange: Tokenizer, text: str) -> None:
    test_lossless_whatever_it_was_trained_on(strange, text)


def test_lossless_on_characters_of_all_of_unicode(strange: Tokenizer) -> None:
    every = "".join(
        chr(n) for n in [*range(0x3100), *range(0x3100, 0x110000, 19)] if not 0xD800 <= n < 0xE000
    )
    ids = strange.encode(every)
    assert strange.decode(ids) == every
    assert strange.token_bytes[ids].sum() == len(every.encode())


def test_a_model_without_a_token_for_the_space_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    train = tokenizer_training.sentencepiece.SentencePieceTrainer.train
    monkeypatch.setattr(
        tokenizer_training.sentencepiece.SentencePieceTrainer,
        "train",
        lambda **k: train(**{**k, "required_chars": ""}),
    )
    model = tokenizer_training._fit(STRANGE["no space"], 272, 1)
    with pytest.raises(
        InputError, match=r"^tokenizer\.model: has no token for a space, .* `hope-data shard`$"
    ):
        Tokenizer(model)


def test_specials(tok: Tokenizer) -> None:
    assert tok.vocab_size == 400
    assert tok.token_bytes.dtype == np.int64
    assert tok.token_bytes[tok.eos_id] == 0
    assert (tok.token_bytes == 0).sum() == 2
    assert tok.is_fallback.sum() == 256
    assert tok.eos_id not in tok.encode("</s>")
    newline = tok.encode("\n")
    assert len(newline) == 1
    assert tok.encode("a\n\nb").count(newline[0]) == 2
    assert [len(tok.encode(d)) for d in ("7", "77", "777")] == [1, 2, 3]


def test_batch_is_the_same_for_any_number_of_threads(
    tok: Tokenizer, sentences: Callable[[int, int], str]
) -> None:
    texts = [*ODD, sentences(5, 3)]
    assert tok.encode_batch(texts, threads=3) == [tok.encode(text) for text in texts]


def test_lone_surrogate_is_named(tok: Tokenizer) -> None:
    with pytest.raises(InputError, match="not valid Unicode"):
        tok.encode("\ud800")


def test_training_again_in_another_process_gives_the_same_bytes(data: Path, tmp_path: Path) -> None:
    command = ["tokenizer", str(data / "clean"), "--out", str(tmp_path / "t"), "--vocab-size", "400"]
    script = "import sys; from hope_data.cli import main; sys.exit(main(sys.argv[1:]))"
    subprocess.run([sys.executable, "-c", script, *command], check=True, capture_output=True)
    for name in ("tokenizer.model", "tokenizer.json"):
        assert (tmp_path / "t" / name).read_bytes() == (data / "tokenizer" / name).read_bytes()


def test_held_out_documents_never_train_it(
    tmp_path: Path, make_corpus: Callable[..., Path], sentences: Callable[[int, int], str]
) -> None:
    """A word that stands only in val and test documents, though often, gets no piece of its own."""
    rule, texts = SplitRule(), []
    for i in range(400):
        plain, marked = sentences(i, 8), sentences(i, 8) + " quixotic" * 30 + "\n"
        held_out = rule.of(documents_sha(marked)) != "train"
        texts.append(marked if held_out else plain)
    clean = make_corpus(
        tmp_path, "c", texts, "filter: {language: '', max_top_trigram: 0, max_duplicate_lines: 0}\n"
    )
    held_out = [d for d in documents.read(clean) if "quixotic" in d.text]
    assert len(held_out) >= 15
    tokenizer_training.train({"c": clean}, tmp_path / "t", 400)
    assert len(Tokenizer.load(tmp_path / "t").encode(" quixotic")) > 3


def documents_sha(text: str) -> str:
    from hope_data.files import sha256_bytes

    return sha256_bytes(text.encode())


def test_coverage_is_of_held_out_text(data: Path, tok: Tokenizer) -> None:
    covered = tok.meta["coverage"]["a"]
    rule = SplitRule.from_dict(documents.provenance(data / "clean" / "a")["split"])
    held_out = [d.text for d in documents.read(data / "clean" / "a") if rule.of(d.meta["sha256"]) == "val"]
    assert covered["documents"] == len(held_out)
    n_tokens = sum(len(tok.encode(text)) for text in held_out)
    n_bytes = sum(len(text.encode()) for text in held_out)
    assert covered["bytes_per_token"] == pytest.approx(n_bytes / n_tokens)
    assert covered["tokens_per_word"] == pytest.approx(n_tokens / sum(len(t.split()) for t in held_out))
    assert covered["bytes_per_token"] > 2.5
    assert covered["fallback_share"] == 0


@pytest.mark.parametrize(("size", "kind"), [(10**7, "large"), (500, "large"), (270, "small"), (1, "small")])
def test_a_vocabulary_that_does_not_fit_names_one_that_does(
    size: int, kind: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["tokenizer", str(data / "clean" / "a"), "--out", str(tmp_path / "t"), "--vocab-size"]
    assert main([*given, str(size)]) == 2
    match = re.fullmatch(
        rf"error: tokenizer: a vocabulary of {size} is too {kind} for this text; (\d+) fits: set it to that "
        r"\(--vocab-size, or model\.vocab_size in conf/scale\)\n",
        capsys.readouterr().err,
    )
    assert match
    assert not list(tmp_path.iterdir())
    assert main([*given, match[1]]) == 0
    assert Tokenizer.load(tmp_path / "t").vocab_size == int(match[1])


def test_the_figure_named_fits_where_the_text_to_learn_from_depends_on_it(
    tmp_path: Path, make_corpus: Callable[..., Path], sentences: Callable[[int, int], str]
) -> None:
    """A smaller vocabulary learns from less text, which may need a smaller one still."""
    rng = random.Random(0)
    texts = [f"{rng.getrandbits(64):x} {rng.getrandbits(64):x} {sentences(i, 2)}" * 3 for i in range(3000)]
    off = "filter: {max_top_trigram: 0, max_duplicate_lines: 0, near_duplicate: 0, min_letters: 0}"
    clean = make_corpus(tmp_path, "c", texts, off)
    with pytest.raises(InputError, match="is too large for this text") as error:
        tokenizer_training.train({"c": clean}, tmp_path / "t", 20_000, threads=1)
    fits = int(str(error.value).split(" fits")[0].split()[-1])
    assert tokenizer_training.train({"c": clean}, tmp_path / "t", fits, threads=1)["vocab_size"] == fits


def test_weights_decide_how_much_of_each_corpus_it_learns_from(data: Path, tmp_path: Path) -> None:
    folders = {name: data / "clean" / name for name in "ab"}
    meta = tokenizer_training.train(folders, tmp_path / "t", 350, 40_000, 1, {"a": 3.0, "b": 1.0})
    sizes = meta["sample_bytes"]
    assert sizes["a"] == pytest.approx(30_000, rel=0.25)
    assert sizes["b"] == pytest.approx(10_000, rel=0.25)
    for weights in ({"a": 1.0}, *({"a": 1.0, "b": b} for b in (0.0, float("nan"), float("inf"), 1e-320))):
        with pytest.raises(InputError, match=r"must name a, b, each between 0\.000001 and 1000000"):
            tokenizer_training.train(folders, tmp_path / "u", 350, 40_000, 1, weights)


def test_guard_fails_when_coverage_worsens(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from hope_data.cli import main

    def train(size: int, *more: object) -> int:
        given = ["tokenizer", data / "clean", "--out", tmp_path / "t", "--vocab-size", size, *more]
        return main([str(word) for word in given])

    assert train(400, "--json", tmp_path / "c.json") == 0
    before = (tmp_path / "t" / "tokenizer.model").read_bytes()
    assert train(320, "--guard", tmp_path / "c.json") == 2
    assert "b has " in (error := capsys.readouterr().err)
    assert "bytes per token" in error
    assert (tmp_path / "t" / "tokenizer.model").read_bytes() == before
    assert train(320, "--guard", tmp_path / "c.json", "--worse", "0.9") == 0
    assert "c.json: kept up with; b -" in capsys.readouterr().out
    assert train(400, "--guard", tmp_path / "t" / "tokenizer.json") == 0
    assert train(400, "--guard", tmp_path / "absent.json") == 0
    assert "absent.json: no earlier coverage here" in capsys.readouterr().out
    (tmp_path / "x.json").write_text('{"coverage": {"z": {"bytes_per_token": 3.0}}}')
    assert train(400, "--guard", tmp_path / "x.json") == 0
    assert "x.json: has none of these corpora" in capsys.readouterr().out
    (tmp_path / "x.json").write_text("[]")
    assert train(400, "--guard", tmp_path / "x.json") == 2
    sealed = (tmp_path / "t" / "tokenizer.json").read_text()
    (tmp_path / "x.json").write_text(re.sub('("bytes_per_token": )[0-9]', r"\g<1>0", sealed))
    assert train(400, "--guard", tmp_path / "x.json") == 2
    assert "x.json: is damaged" in capsys.readouterr().err
    assert train(400, "--weights", "a") == 2
