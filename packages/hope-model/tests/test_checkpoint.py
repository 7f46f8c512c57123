"""Checkpoints round-trip, and every way of being wrong is named."""

import json
from pathlib import Path

import pytest
import torch

from hope_model import InputError, LanguageModel, ModelConfig, checkpoint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = ModelConfig(dim=32, head_dim=16, layers=1, vocab_size=50)
    checkpoint.save(tmp_path / "c", LanguageModel(config), {"step": 7})
    return tmp_path / "c"


def test_round_trip(folder: Path) -> None:
    torch.manual_seed(0)
    original = LanguageModel(ModelConfig(dim=32, head_dim=16, layers=1, vocab_size=50))
    model, meta = checkpoint.load(folder)
    assert meta["step"] == 7
    assert all(torch.equal(a, b) for a, b in zip(original.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("name", [checkpoint.WEIGHTS, checkpoint.CONFIG])
def test_a_flipped_byte_is_named(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(InputError, match=name):
        checkpoint.load(folder)


def test_missing_files_and_foreign_keys_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"meta\.json is missing"):
        checkpoint.load(tmp_path / "nowhere")
    config = json.loads((folder / checkpoint.CONFIG).read_text())
    meta = json.loads((folder / checkpoint.META).read_text())
    config["dim"] = 64
    (folder / checkpoint.CONFIG).write_text(json.dumps(config))
    meta["sha256"][checkpoint.CONFIG] = checkpoint.sha256(folder / checkpoint.CONFIG)
    (folder / checkpoint.META).write_text(json.dumps(meta))
    with pytest.raises(InputError, match="has shape"):
        checkpoint.load(folder)


def test_an_unknown_variant_is_named() -> None:
    with pytest.raises(InputError, match="choose one of hope"):
        LanguageModel(ModelConfig(variant="gpt"))
