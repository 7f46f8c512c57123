"""DeepSpeed's ZeRO on two processes (gloo) against DDP; skipped where the extra is absent."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import runpy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hope_model.errors import InputError
from hope_train import config as configuration
from hope_train.config import OptimConfig, TrainConfig
from hope_train.optim import zero

HERE = Path(__file__).parent
NAMES = ("ddp", "zero1", "zero2", "zero3")
RESUMABLE = 75
needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="needs the extra hope-train[deepspeed]"
)


def test_matrix_optimisers_are_refused(tiny: TrainConfig) -> None:
    for name in ("muon", "m3"):
        with pytest.raises(InputError, match=f"'parallel' zero2 slices matrices, which '{name}' needs whole"):
            dataclasses.replace(tiny, parallel="zero2", optim=OptimConfig(name=name))


def test_without_deepspeed_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ImportError(f"No module named '{name}'")

    monkeypatch.setattr(zero.importlib, "import_module", absent)
    with pytest.raises(InputError, match=r"'parallel' zero3 needs DeepSpeed .*hope-train\[deepspeed\]"):
        zero._import("zero3")


@pytest.fixture(scope="module")
def two(tiny: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder: a run of each kind by two processes, one (`stopped`) told to stop that went on, and copies."""
    root = tmp_path_factory.mktemp("zero")
    optim = OptimConfig(name="adamw", eps=1e-5, clip=0.5)
    base = dataclasses.replace(tiny, steps=4, eval_every=0, checkpoint_every=2, accumulate=2, optim=optim)
    for name in NAMES:
        (root / f"{name}.yaml").write_text(configuration.dump(dataclasses.replace(base, parallel=name)))
    jobs: list[list[object]] = [["train", f"{root}/{name}.yaml", f"{root}/{name}", 0] for name in NAMES]
    for name in ("zero2", "zero3"):
        jobs += [["stop", f"{root}/{name}.yaml", f"{root}/stopped_{name}", RESUMABLE]]
        jobs += [["train", f"{root}/{name}.yaml", f"{root}/stopped_{name}", 0]]
    for first, then in (("ddp", "zero1"), ("zero1", "zero3"), ("zero3", "ddp")):
        jobs += [["copy", f"{root}/{then}.yaml", f"{root}/{first}/checkpoint", f"{root}/{first}_{then}", 0]]
    runpy.run_path(str(HERE / "test_distributed.py"))["launch"](jobs, root, together=True)
    return root


def state(folder: Path) -> dict[str, Tensor]:
    """Weights and what the optimiser remembers."""
    slots = {k: v for file in folder.glob("training-*.safetensors") for k, v in load_file(file).items()}
    return load_file(folder / "model.safetensors") | {k: v for k, v in slots.items() if k[:4] != "rng/"}


@needs_deepspeed
@pytest.mark.parametrize("name", NAMES[1:])
def test_every_stage_is_ddp(two: Path, name: str) -> None:
    ddp, other = state(two / "ddp/checkpoint"), state(two / name / "checkpoint")
    assert ddp.keys() == other.keys()
    assert max(float((ddp[k] - other[k]).abs().max()) for k in ddp) < 1e-5
    rows = [
        [json.loads(line) for line in (two / run / "log.jsonl").read_text().splitlines()]
        for run in ("ddp", name)
    ]
    for a, b in zip(*rows, strict=True):
        assert a.keys() == b.keys()
        for key in ("loss", "lr", "grad_norm", "grad_rms_adamw", "update_rms_adamw"):
            assert a[key] == pytest.approx(b[key], rel=1e-4), key
    assert rows[0][0]["grad_norm"] > 0.5, "this test would not see clipping"


@needs_deepspeed
@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_going_on_is_bitwise(two: Path, name: str) -> None:
    whole, stopped = state(two / name / "checkpoint"), state(two / f"stopped_{name}/checkpoint")
    assert whole.keys() == stopped.keys()
    assert all(torch.equal(whole[k], stopped[k]) for k in whole)


@needs_deepspeed
@pytest.mark.parametrize(("first", "then"), [("ddp", "zero1"), ("zero1", "zero3"), ("zero3", "ddp")])
def test_a_checkpoint_goes_from_one_kind_to_another(two: Path, first: str, then: str) -> None:
    before, after = state(two / first / "checkpoint"), state(two / f"{first}_{then}")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)
