"""A text coloured by its loss: every bit of it, every character of it, and nothing that could run."""

import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import torch

from hope_data.tokenizer import Tokenizer
from hope_eval.cli import main
from hope_eval.report.surprise import Token, pieces, render
from hope_model import LanguageModel, MemorySettings, ModelConfig, checkpoint


def _text(page: str) -> str:
    body = page.split('<div class="text">')[1].split("</div>", maxsplit=1)[0]
    return unescape("".join(re.findall(r">([^<]*)</span>", body)))


def test_page_holds_the_text_and_the_bits_of_both_readings(
    checkpoint_folder: Path, corpora: Path, tmp_path: Path
) -> None:
    text, file, out = "the <b>green</b> hill & 日本 🙂 " * 8, tmp_path / "text.txt", tmp_path / "page.html"
    file.write_text(text, encoding="utf-8")
    command = [
        "surprise",
        str(checkpoint_folder),
        str(file),
        "--tokenizer",
        str(corpora / "tokenizer"),
        "--html",
        str(out),
    ]
    assert main(command) == 0
    page = out.read_text(encoding="utf-8")
    assert _text(page) == text
    assert "Only its first" not in page
    assert "<b>" not in page
    assert "<script" not in page
    model, _ = checkpoint.load(checkpoint_folder)
    inner = Tokenizer.load(corpora / "tokenizer")
    ids = torch.tensor([[inner.eos_id, *inner.encode(text)]])
    own = model.settings()
    for label, settings in (
        ("with writes", own),
        ("without", MemorySettings(0.0, own.teach_clip, 0.0, ())),
    ):
        with torch.no_grad():
            logp = model(ids[:, :-1], model.initial(1, settings))[0][0, :, : inner.vocab_size].log_softmax(-1)
        bits = -float(logp.gather(1, ids[0, 1:, None]).double().sum()) / np.log(2)
        row = re.search(rf'<th scope="row">{label}</th><td>([\d.]+)</td>', page)
        assert row is not None
        assert float(row[1]) == pytest.approx(bits / len(text.encode()), abs=6e-4)
    assert main([*command, "--tokens", "12"]) == 0
    assert ": 12 tokens. With its memories written and with none. Only its first 12 tokens" in out.read_text()


def test_an_attached_memory_stands_beside_the_plain_model(
    checkpoint_folder: Path, corpora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "text.txt", tmp_path / "page.html"
    file.write_text("the green hill and the red stone " * 8)
    sizes = {"variant": "transformer", "dim": 16, "layers": 1, "head_dim": 8}
    plain = LanguageModel(
        ModelConfig.from_dict({**sizes, "vocab_size": Tokenizer.load(corpora / "tokenizer").vocab_size})
    )
    checkpoint.save(tmp_path / "plain", plain, {})
    command = ["surprise", str(tmp_path / "plain"), str(file), "--tokenizer", str(corpora / "tokenizer")]
    assert main([*command, "--html", str(out)]) == 2
    assert "has no memory of its own; attach one with --adapt writes" in capsys.readouterr().err
    assert not out.exists()
    assert main([*command, "--html", str(out), "--adapt", "writes:scale=0,period=4"]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    page = out.read_text()
    assert "bits saved so far by writing: +0 in all" in page or "writing: -0 in all" in page
    rows = re.findall(r"<th scope=.row.>(?:with writes|without)</th><td>([\d.]+)</td>", page)
    assert rows[0] == rows[1]


def test_characters_of_several_tokens_are_one_piece() -> None:
    raw = [b"a", *(bytes([byte]) for byte in "é".encode()), b" b"]

    def decode(ids: list[int]) -> str:
        return b"".join(raw[i] for i in ids).decode("utf-8", errors="replace")

    bits = [np.array([1.0, 2, 3, 4]), np.array([2.0, 2, 2, 2])]
    wanted = [Token("a", 1, 2), Token("é", 5, 4), Token(" b", 4, 2)]
    assert pieces(decode, [0, 1, 2, 3], bits) == wanted


def test_colours_follow_what_writing_saves() -> None:
    page = render([Token("x", 1.0, 6.0), Token("y", 6.0, 1.0)], "n", "m", "c")
    cells = re.findall(r'<span class="(\w+) (\w+) (\w+)" title="([^"]+)">(.)</span>', page)
    assert cells == [
        ("saved6", "written1", "plain4", "1.0 with, 6.0 without, +5.0 saved", "x"),
        ("saved0", "written4", "plain1", "6.0 with, 1.0 without, -5.0 saved", "y"),
    ]
