"""Tokenizers of Hugging Face: text comes back, every byte is counted, shards are made with them as with ours."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("tokenizers") is None:
    pytest.skip("tokenizers is not installed: pip install 'hope-data[hf]'", allow_module_level=True)

import tokenizers

from hope_data.cli import main
from hope_data.errors import InputError
from hope_data.shards import Split
from hope_data.tokenizer import Tokenizer

UNKNOWN = {"unk_token": "<unk>"}
TEXTS = ["Das Haus am See, 1234.\n\tfoo  bar", "日本語🎉 é ж", " <end> and <begin>", "", "\n\n", "naïve ▂ x"]


def save(folder: Path, inner: Any, begin: str | None = "<begin>") -> Path:
    folder.mkdir(exist_ok=True)
    inner.save(str(folder / "tokenizer.json"))
    special = {"eos_token": {"content": "<end>"}, **({"bos_token": begin} if begin else {})}
    (folder / "tokenizer_config.json").write_text(json.dumps(special))
    return folder


def byte_level() -> Any:
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<end>", "<begin>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(TEXTS * 9, trainer)
    inner.add_tokens(["ïve"])
    begin = tokenizers.processors.TemplateProcessing(single="<begin> $A", special_tokens=[("<begin>", 1)])
    inner.post_processor = begin
    return inner


def sentencepiece_like(*, prefix: bool = False) -> Any:
    """As Llama 2 writes it: `▁` for a space, `<0xNN>` for bytes without a token."""
    pieces = [
        "<unk>",
        "<begin>",
        "<end>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *"▁aehinorsu",
        "▁a",
        "in",
    ]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    model = tokenizers.models.BPE(
        vocabulary, [("▁", "a"), ("i", "n")], **UNKNOWN, fuse_unk=True, byte_fallback=True
    )
    inner = tokenizers.Tokenizer(model)
    normalizers = tokenizers.normalizers
    space = normalizers.Replace(" ", "▁")
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), space]) if prefix else space
    decoders = tokenizers.decoders
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    inner.add_special_tokens(["<begin>", "<end>"])
    return inner


@pytest.mark.parametrize("make", [byte_level, sentencepiece_like])
def test_lossless_and_every_byte_counted(make: Callable[[], Any], tmp_path: Path) -> None:
    inner = make()
    tok = Tokenizer.load(save(tmp_path, inner))
    for text in TEXTS:
        [ids] = tok.encode_batch([text])
        assert tok.decode(ids) == text
        assert tok.token_bytes[ids].sum() == len(text.encode())
        if "<" not in text:  # there they take special tokens for text's own
            assert ids == inner.encode(text, add_special_tokens=False).ids
    assert (tok.eos_id, tok.begin_id) == (inner.token_to_id("<end>"), inner.token_to_id("<begin>"))
    assert tok.token_bytes[[tok.eos_id, tok.begin_id]].tolist() == [0, 0]
    assert tok.vocab_size == inner.get_vocab_size() == len(tok.token_bytes)


def test_a_space_before_every_text_is_one_more_byte(tmp_path: Path) -> None:
    tok = Tokenizer.load(save(tmp_path, sentencepiece_like(prefix=True), begin=None))
    ids = tok.encode("in a house")
    assert (tok.decode(ids), tok.token_bytes[ids].sum()) == (" in a house", 11)
    assert tok.begin_id == tok.eos_id


def test_shards_are_made_with_it(data: Path, tmp_path: Path) -> None:
    folder, out = save(tmp_path / "tokenizer", byte_level()), tmp_path / "shards" / "a"
    assert main(["shard", str(data / "clean" / "a"), "--tokenizer", str(folder), "--out", str(out)]) == 0
    tok, ours = Tokenizer.load(folder), Tokenizer.load(data / "tokenizer")
    split, other = Split.open(out, "test", tok), Split.open(data / "shards" / "a", "test", ours)
    assert split.n_documents == other.n_documents > 1
    for n in range(split.n_documents):
        assert tok.decode(split.document(n)) == ours.decode(other.document(n))
    with pytest.raises(InputError, match="run `hope-data shard` with this tokenizer"):
        Split.open(out, "test", ours)


def word_level() -> Any:
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, "<end>": 1}, **UNKNOWN))
    inner.decoder = tokenizers.decoders.WordPiece()
    return inner


def lossy() -> Any:
    inner = byte_level()
    inner.normalizer = tokenizers.normalizers.Lowercase()
    return inner


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (
            lambda folder: save(folder, word_level()),
            "tokenizer.json: its decoder (WordPiece) is neither byte-level nor sentencepiece's",
        ),
        (
            lambda folder: save(folder, lossy()),
            "tokenizer.json: text does not come back as it was, so its bytes cannot be counted",
        ),
        (
            lambda folder: (folder / "tokenizer_config.json").write_text("{}"),
            "tokenizer_config.json: the tokenizer has no end-of-text token; set eos_token",
        ),
        (
            lambda folder: (folder / "tokenizer_config.json").write_text("[]"),
            "tokenizer_config.json: holds no JSON object; save the tokenizer again",
        ),
        (
            lambda folder: (folder / "tokenizer_config.json").unlink(),
            "tokenizer_config.json: No such file or directory; save the tokenizer again",
        ),
    ],
)
def test_refusals(tmp_path: Path, break_it: Callable[[Path], Any], message: str) -> None:
    save(tmp_path, byte_level())
    break_it(tmp_path)
    with pytest.raises(InputError) as error:
        Tokenizer.load(tmp_path)
    assert str(error.value) == f"{tmp_path}/{message}"


def test_damaged_json_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"added_tokens": [')
    with pytest.raises(InputError, match=r"^\S+tokenizer.json: is no tokenizer of Hugging Face \(.*\)$"):
        Tokenizer.load(tmp_path)


def test_lone_surrogate_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="text is not valid Unicode"):
        Tokenizer.load(save(tmp_path, byte_level())).encode("a\ud800")
