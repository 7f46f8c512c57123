"""`recall` for models of the task `needle`: what is told, read and asked, and how it is counted."""

import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="transformers is not installed: pip install 'hope-model[hf]'")

from hope_model import InputError, LanguageModel, ModelConfig, checkpoint
from hope_model.cli import main
from hope_model.conversation import Conversation
from hope_model.symbols import Symbols

NEEDLE = {"name": "needle", "symbols": 8}


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """An untrained model of digits 0 to 7 and the mark."""
    torch.manual_seed(0)
    config = ModelConfig.named("titans", dim=16, head_dim=8, layers=1, vocab_size=9)
    checkpoint.save(tmp_path / "digits", LanguageModel(config), {"task": NEEDLE, "length": 16})
    return tmp_path / "digits"


def test_characters_are_ids() -> None:
    symbols = Symbols(NEEDLE, 9)
    assert symbols.encode("#35 07 #") == [8, 3, 5, 0, 7, 8]
    assert symbols.decode([8, 3, 5]) == "#35"
    assert (len(symbols), symbols.digits, Symbols({**NEEDLE, "digits": 3}, 9).digits) == (9, 2, 3)
    assert set(symbols.draw(random.Random(0), 1000)) == set("01234567")


@pytest.mark.parametrize(
    ("task", "size", "message"),
    [({"name": "mqar"}, 33, "task mqar"), (NEEDLE, 38, "at most 36 symbols")],
)
def test_other_alphabets_are_refused(task: dict[str, Any], size: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Symbols(task, size)


def test_a_stream_of_digits_has_no_beginning_token(digits: Path) -> None:
    talk = Conversation(digits)
    talk.read("#35 07")
    talk.read("#")
    with torch.no_grad():
        logits_1TV, _ = talk.model(torch.tensor([[8, 3, 5, 0, 7, 8]]))
    assert talk._logits_V is not None
    torch.testing.assert_close(talk._logits_V, logits_1TV[0, -1], atol=1e-5, rtol=1e-5)


def test_recall_prints_questions_and_counts(digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recall", str(digits), "--trials", "4", "--show", "2"]) == 0
    head, *rows, blank, size, written, silent, never, verdict = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["fact", "filler", "question"]
    assert len(rows) == 2
    assert not blank
    # 27 = twice 16 without mark, digits, question and the first digit of the answer.
    assert size.endswith("4 questions, 27 tokens of filler; a guess is right once in 64 and costs 6.0 bits")
    draw, talk, bits, right = random.Random(0), Conversation(digits), [], 0
    facts = [talk.tokenizer.draw(draw, 2) for _ in range(4)]
    fillers = [talk.tokenizer.draw(draw, 27) for _ in range(4)]
    assert [row.split()[0] for row in rows] == [f"#{fact}" for fact in facts[:2]]
    for fact, filler in zip(facts, fillers, strict=True):
        talk.reset()
        talk.read(f"#{fact}{filler}#")
        bits.append(talk.bits(fact))
        right += talk.likeliest(2) == fact
    assert written.startswith(f"told, memories written  right {right} of 4; the right answer costs ")
    assert float(re.findall(r"costs ([\d.]+)", written)[0]) == pytest.approx(sum(bits) / 4, abs=0.006)
    assert verdict.startswith("No better than a guess")  # untrained
    assert (silent[:24].rstrip(), never[:24].rstrip()) == ("told, none written", "never told")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--filler", "README.md"], "--filler: this model reads digits, not text"),
        (["--distance", "0"], "--distance 0: give a whole number from 1 to 10,000,000"),
    ],
)
def test_wrong_options(
    options: list[str], message: str, digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recall", str(digits), *options]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert main(["generate", str(digits), "a tensor"]) == 2
    assert "'a': this model reads the characters 01234567# only" in capsys.readouterr().err
