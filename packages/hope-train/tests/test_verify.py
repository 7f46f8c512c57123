"""A checkpoint that is not exactly what was written is refused, and the one line says why."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hope_data.files import dump_sealed, load_sealed, sha256_file
from hope_train.cli import main
from hope_train.config import TrainConfig
from hope_train.run import train

TENSORS = "training-00000-of-00001.safetensors"


@pytest.fixture(scope="module")
def run(tiny: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("verify") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        config = dataclasses.replace(tiny, steps=5, checkpoint_every=1, milestone_every=1, milestones=2)
        assert train(config, out) == 0
    return out


def test_whole_checkpoints_and_milestones(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(run / "checkpoint")]) == 0
    assert "whole; run tiny, step 5, 640 tokens" in capsys.readouterr().out
    assert sorted(path.name for path in (run / "milestones").iterdir()) == ["step-00000004", "step-00000005"]
    assert main(["verify", str(run / "milestones/step-00000004")]) == 0


def reseal(folder: Path, name: str) -> None:
    """As if the damage had been there when the sidecar was written."""
    values = load_sealed(folder / "training.json", "")
    values["sha256"][name] = sha256_file(folder / name)
    (folder / "training.json").write_bytes(dump_sealed(values))


def spoil(folder: Path, how: str) -> None:
    if how == "flip":
        content = bytearray((folder / TENSORS).read_bytes())
        content[-1] ^= 1
        (folder / TENSORS).write_bytes(content)
    elif how == "sidecar":
        text = (folder / "training.json").read_text()
        (folder / "training.json").write_text(text.replace('"step": 5', '"step": 4'))
    elif how == "missing":
        (folder / "meta.json").unlink()
    elif how == "extra":
        (folder / "model.pt").write_bytes(b"")
    else:
        name = TENSORS if how == "row" else "model.safetensors"
        tensors = load_file(folder / name)
        key = next(k for k, t in tensors.items() if t.dtype == torch.float32 and t.ndim == 2)
        if how == "key":
            del tensors[key]
        elif how == "nan":
            tensors[key][0, 0] = torch.nan
        else:
            tensors[key] = tensors[key][1:].contiguous()
        save_file(tensors, folder / name)
        reseal(folder, name)


CASES = {
    "flip": f"{TENSORS}: damaged",
    "sidecar": "training.json: is damaged",
    "missing": "meta.json: missing",
    "extra": "files that no sidecar knows: model.pt",
    "key": "model.safetensors is not this model's: missing ",
    "shape": "has shape",
    "nan": "holds infinite values",
    "row": "fits no parameter",
}


@pytest.mark.parametrize("how", CASES)
def test_a_spoilt_one_is_refused(
    how: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run / "checkpoint", tmp_path / "checkpoint")
    spoil(tmp_path / "checkpoint", how)
    assert main(["verify", str(tmp_path / "checkpoint")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert CASES[how] in error
