"""Checkpoints round-trip, and every way of being wrong is named in one line."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hope_model import InputError, LanguageModel, ModelConfig, checkpoint
from hope_model.files import sha256

CONFIG = ModelConfig(dim=32, head_dim=16, layers=1, vocab_size=50)
DEEP = b'{"a":' * 200_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    checkpoint.save(tmp_path / "c", LanguageModel(CONFIG), {"step": 7})
    return tmp_path / "c"


def rewrite(folder: Path, name: str, data: bytes) -> None:
    """Change a file and its hash."""
    (folder / name).write_bytes(data)
    meta = json.loads((folder / checkpoint.META).read_text())
    meta["sha256"][name] = sha256(folder / name)
    meta["sha256"][checkpoint.META] = checkpoint.own_hash(meta)
    (folder / checkpoint.META).write_text(json.dumps(meta))


def refusal(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        checkpoint.load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_round_trip(folder: Path) -> None:
    torch.manual_seed(0)
    original = LanguageModel(CONFIG)
    model, meta = checkpoint.load(folder)
    assert meta["step"] == 7
    assert all(torch.equal(a, b) for a, b in zip(original.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("name", [checkpoint.WEIGHTS, checkpoint.CONFIG])
def test_a_flipped_byte_is_named(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    assert f"{name} does not match the hash" in refusal(folder)


@pytest.mark.parametrize(
    ("hashes", "message"),
    [
        (None, "has no hashes ('sha256')"),
        ([], "has no hashes ('sha256')"),
        ({}, "has no hashes ('sha256')"),
        ({checkpoint.WEIGHTS: "0" * 64}, "has no hashes ('sha256') of model.safetensors and config.json"),
        ({checkpoint.WEIGHTS: 7, checkpoint.CONFIG: 7}, "does not match the hash"),
        ({checkpoint.WEIGHTS: "", checkpoint.CONFIG: "", "../x": ""}, "'sha256' names"),
    ],
)
def test_a_sidecar_without_the_hashes_of_all_files_is_refused(
    folder: Path, hashes: Any, message: str
) -> None:
    meta = json.loads((folder / checkpoint.META).read_text())
    if isinstance(hashes, dict) and "../x" in hashes:
        hashes = {"../x": "", **meta["sha256"]}
    meta["sha256"] = hashes
    if hashes is None:
        del meta["sha256"]
    (folder / checkpoint.META).write_text(json.dumps(meta))
    assert message in refusal(folder)


def test_every_file_that_the_sidecar_names_is_compared(folder: Path) -> None:
    rewrite(folder, "more.bin", b"1")
    checkpoint.load(folder)
    (folder / "more.bin").write_bytes(b"2")
    assert "more.bin does not match the hash" in refusal(folder)
    (folder / "more.bin").unlink()
    assert "more.bin is missing" in refusal(folder)


def test_missing_folders_and_foreign_shapes_are_named(folder: Path, tmp_path: Path) -> None:
    assert "meta.json is missing" in refusal(tmp_path / "nowhere")
    for seed in ("10", "2"):
        shutil.copytree(folder, tmp_path / "run/seeds" / seed / "checkpoint")
    assert refusal(tmp_path / "run").endswith(f"did you mean {tmp_path / 'run/seeds/2/checkpoint'}?")
    config = json.loads((folder / checkpoint.CONFIG).read_text())
    rewrite(folder, checkpoint.CONFIG, json.dumps({**config, "dim": 64}).encode())
    assert "levels.1.up has shape [15, 32], not [51, 64]" in refusal(folder)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (DEEP, "config.json is not valid JSON: it is nested too deeply"),
        (b"[1]", "config.json must hold a JSON object"),
        (b"\xff", "config.json is not valid JSON"),
        (b'{"dim": ' + 5000 * b"9" + b"}", "config.json is not valid JSON"),
        (b'{"init_std": NaN}', "config.json: model.init_std is nan"),
        (b'{"layers": 4096, "dim": 1048576}', "parameters; at most"),
        (b'{"dim": {"a": 1}}', "config.json: model.dim is {'a': 1}; it must be a whole number"),
        (b'{"cms": 4}', "config.json: model.cms must be a mapping, not 4"),
        (b'{"variant": "gpt"}', "config.json: model.variant is 'gpt'"),
        # Too large for this machine, but refused before memory is taken: these are not its tensors.
        (b'{"layers": 2000, "dim": 16384}', "does not fit config.json: it holds 1 layers, not 2000"),
    ],
)
def test_bad_configurations_are_one_line(folder: Path, data: bytes, message: str) -> None:
    rewrite(folder, checkpoint.CONFIG, data)
    assert message in refusal(folder)


def test_a_changed_digit_of_the_sidecar_is_named(folder: Path) -> None:
    path = folder / checkpoint.META
    path.write_text(path.read_text().replace('"step": 7', '"step": 9'))
    assert "meta.json does not match its own hash: torn or changed after saving" in refusal(folder)


@pytest.mark.parametrize("data", [DEEP, b"[1]", b"\xff", b"", b'{"sha256": {'])
def test_bad_sidecars_are_one_line(folder: Path, data: bytes) -> None:
    (folder / checkpoint.META).write_bytes(data)
    assert "meta.json" in refusal(folder)


@pytest.mark.parametrize(
    "kind", [torch.int32, torch.bool, torch.float64, torch.complex64, torch.float8_e4m3fn]
)
def test_weights_of_another_type_are_refused_not_cast(folder: Path, kind: torch.dtype) -> None:
    weights = load_file(folder / checkpoint.WEIGHTS)
    weights["norm.weight"] = weights["norm.weight"].to(kind)
    save_file(weights, folder / "other")
    rewrite(folder, checkpoint.WEIGHTS, (folder / "other").read_bytes())
    assert "norm.weight is of type" in refusal(folder)
    assert "not F32, F16, BF16" in refusal(folder)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_the_same_numbers_in_float32(tmp_path: Path, kind: torch.dtype) -> None:
    torch.manual_seed(0)
    half = LanguageModel(CONFIG).to(kind)
    checkpoint.save(tmp_path, half, {})
    loaded, _ = checkpoint.load(tmp_path)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert all(torch.equal(a.float(), b) for a, b in zip(half.parameters(), loaded.parameters(), strict=True))


@pytest.mark.parametrize("data", [b"", b"\xff" * 64, (1 << 40).to_bytes(8, "little") + b"{}", b"\0" * 8])
def test_weights_that_are_no_safetensors_are_one_line(folder: Path, data: bytes) -> None:
    rewrite(folder, checkpoint.WEIGHTS, data)
    assert "model.safetensors cannot be read as safetensors" in refusal(folder)


def test_an_unknown_variant_is_named() -> None:
    with pytest.raises(InputError, match="choose one of hope"):
        LanguageModel(ModelConfig(variant="gpt"))
