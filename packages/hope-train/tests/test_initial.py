"""Runs that begin with a checkpoint's weights, and with a memory attached to them while they train."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hope_data.tokenizer import Tokenizer
from hope_model import LanguageModel, ModelConfig, checkpoint
from hope_model.adapt import Ladder, attach_memory
from hope_model.errors import InputError
from hope_train import initial, run
from hope_train.checkpoint.resume import find
from hope_train.checkpoint.state import Identity
from hope_train.cli import main
from hope_train.compose import Params, compose
from hope_train.config import AttachConfig, TrainConfig, dump
from hope_train.data import open_data
from hope_train.loss import token_losses
from hope_train.parallel.distributed import World
from hope_train.run import train

ALONE = World(0, 1, torch.device("cpu"))
LLAMA: dict[str, Any] = {
    "variant": "transformer",
    "vocab_size": 330,
    "dim": 24,
    "layers": 2,
    "head_dim": 8,
    "hidden": 40,
    "mlp_bias": True,
    "tied_embedding": False,
    "attention": {"heads": 4, "kv_heads": 2, "bias": "qkv", "qk_norm": True},
}
TOKENS = torch.randint(320, (2, 33), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def trained(corpora: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the form that `hope-model convert` gives."""
    torch.manual_seed(5)
    model, folder = LanguageModel(ModelConfig.from_dict(LLAMA)), tmp_path_factory.mktemp("trained")
    meta = {"run": "llama", "tokenizer_sha256": Tokenizer.load(corpora / "tokenizer").sha256}
    checkpoint.save(folder, model, meta)
    return folder


@pytest.fixture
def config(tiny: TrainConfig, trained: Path) -> TrainConfig:
    return dataclasses.replace(tiny, init=str(trained), eval_every=0, steps=2)


def losses(network: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = network(TOKENS[:, :-1], TOKENS[:, 1:])[0]
    return found


@pytest.mark.parametrize(
    "attach", [AttachConfig(), AttachConfig(period=8, scale=0.0)], ids=["plain", "scale 0"]
)
def test_without_a_write_the_first_loss_is_the_trained_models_to_the_bit(
    config: TrainConfig, trained: Path, attach: AttachConfig
) -> None:
    config = initial.resolved(dataclasses.replace(config, attach=attach))
    session = run.build(config, open_data(config), ALONE)
    model, _ = checkpoint.load(trained)
    with torch.no_grad():
        expected = token_losses(model(TOKENS[:, :-1])[0], TOKENS[:, 1:])
    assert torch.equal(losses(session.network), expected)
    weights = load_file(trained / "model.safetensors")
    assert all(torch.equal(p, weights[name]) for name, p in session.model.named_parameters())


def test_the_attached_memory_is_that_of_hope_model_with_its_gradient(
    config: TrainConfig, trained: Path
) -> None:
    attach = AttachConfig(period=4, ratio=2, levels=2, scale=5.0, bound=0.0, matrices="all")
    config = initial.resolved(dataclasses.replace(config, attach=attach))
    session = run.build(config, open_data(config), ALONE)
    model, _ = checkpoint.load(trained)
    model.train()
    memory = attach_memory(model, periods=Ladder(4, 2, 2), scale=5.0, bound=0.0, matrices="all")
    expected = token_losses(memory(TOKENS[:, :-1])[0], TOKENS[:, 1:])
    found = session.network(TOKENS[:, :-1], TOKENS[:, 1:])[0]
    assert torch.equal(found, expected)
    plain, _ = checkpoint.load(trained)
    with torch.no_grad():
        assert (token_losses(plain(TOKENS[:, :-1])[0], TOKENS[:, 1:]) - found).abs().max() > 1e-4
    found.mean().backward()  # type: ignore[no-untyped-call]
    expected.mean().backward()  # type: ignore[no-untyped-call]
    gradients = {name: p.grad for name, p in model.named_parameters()}
    for name, p in session.model.named_parameters():
        assert p.grad is not None
        assert torch.equal(p.grad, gradients[name])


def test_a_run_continues_and_its_checkpoint_says_from_what(
    config: TrainConfig, trained: Path, tmp_path: Path
) -> None:
    (tmp_path / "run.yaml").write_text(dump(dataclasses.replace(config, attach=AttachConfig(period=8))))
    out = tmp_path / "out"
    assert main(["run", str(tmp_path / "run.yaml"), "--out", str(out), "--until", "1"]) == 75
    half = load_file(out / "checkpoint" / "model.safetensors")
    assert main(["run", str(tmp_path / "run.yaml"), "--out", str(out)]) == 0
    model, meta = checkpoint.load(out / "checkpoint")
    assert model.config == ModelConfig.from_dict(LLAMA)
    before = load_file(trained / "model.safetensors")
    for stage in (half, dict(model.named_parameters())):
        assert max(float((stage[name].detach() - before[name]).abs().max()) for name in before) > 1e-4
    sha256 = json.loads((trained / "meta.json").read_text())["sha256"]["model.safetensors"]
    assert meta["init"] == {"name": trained.name, "sha256": sha256}
    assert meta["attach"]["period"] == 8
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["teach_norm"] > 0
    assert rows[-1]["delta_norm"] > 0
    whole = tmp_path / "whole"
    assert main(["run", str(tmp_path / "run.yaml"), "--out", str(whole)]) == 0
    again = load_file(whole / "checkpoint" / "model.safetensors")
    assert all(torch.equal(again[name], p) for name, p in model.named_parameters())


def test_another_checkpoint_is_another_run(config: TrainConfig, trained: Path, tmp_path: Path) -> None:
    train(config, tmp_path / "out")
    moved = shutil.copytree(trained, tmp_path / "moved")
    assert train(dataclasses.replace(config, init=str(moved)), tmp_path / "out") == 0
    other = tmp_path / "other"
    checkpoint.save(other, LanguageModel(ModelConfig.from_dict(LLAMA)), {})
    with pytest.raises(InputError, match=r"belongs to another run: it differs in init_sha256 \S+ -> \S+;"):
        train(dataclasses.replace(config, init=str(other)), tmp_path / "out")
    assert find(initial.resolved(config), Identity("", "", "", ""), tmp_path / "no", fresh_on_mismatch=False)


def test_compose_takes_model_and_hash_from_the_checkpoint(trained: Path, tmp_path: Path) -> None:
    conf = Path(__file__).parents[3] / "conf"
    params = Params("tiny", 0.1, [0], init=str(trained))
    config = compose("transformer", conf, params, ["attach.period=16"])
    assert config.model == ModelConfig.from_dict(LLAMA)
    assert config.attach.period == 16
    assert compose("transformer", conf, dataclasses.replace(params, init=""), [f"init={trained}"]).init_sha256
    (tmp_path / "run.yaml").write_text(dump(config))
    changed = shutil.copytree(trained, tmp_path / "changed")
    checkpoint.save(changed, LanguageModel(ModelConfig.from_dict(LLAMA)), {})
    with pytest.raises(
        InputError, match=r"^init \S+ holds the weights \w{12}, but init_sha256 is \w{12}; name that"
    ):
        initial.resolved(dataclasses.replace(config, init=str(changed)))


def test_refusals(config: TrainConfig, trained: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"meta.json is missing; is \S+ a checkpoint folder\?"):
        train(dataclasses.replace(config, init=str(tmp_path / "none")), tmp_path / "out")
    other = tmp_path / "other"
    checkpoint.save(other, checkpoint.load(trained)[0], {"tokenizer_sha256": "f" * 64})
    with pytest.raises(
        InputError, match=r"init \S+ was made with the tokenizer ffffffffffff, but data.tokenizer"
    ):
        train(dataclasses.replace(config, init=str(other)), tmp_path / "out")
    attach = AttachConfig(period=8)
    for change, reason in (
        ({"parallel": "fsdp"}, r"'parallel' fsdp \(ddp works\)"),
        ({"activation_checkpoint": True}, "'activation_checkpoint'"),
    ):
        with pytest.raises(InputError, match=f"^'attach' reads the matrices .* go with {reason}$"):
            dataclasses.replace(config, attach=attach, **change)
    hope = dataclasses.replace(config, init="", attach=attach)
    with pytest.raises(InputError, match="hope has a continuum memory in place of its MLPs"):
        train(hope, tmp_path / "out")
    with pytest.raises(InputError, match="a ladder of 3 levels over 2 MLPs"):
        train(dataclasses.replace(config, attach=AttachConfig(period=8, levels=3)), tmp_path / "out")
    assert not (tmp_path / "out" / "checkpoint").exists()
