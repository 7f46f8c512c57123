"""Two tiny corpora, made once per session by the real steps of hope-data."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from hope_data.cli import main as hope_data
from hope_model import CMSConfig, ModelConfig
from hope_train.config import DataConfig, LogConfig, TrainConfig

Corpora = Callable[[Path, Mapping[str, list[str]]], Path]


@pytest.fixture(scope="session")
def make_corpora() -> Corpora:
    """Writes `shards/NAME` of every corpus given, and `tokenizer` of 320 tokens, into a folder."""
    return _make


def _make(root: Path, corpora: Mapping[str, list[str]]) -> Path:
    for name, texts in corpora.items():
        with (root / f"{name}.jsonl").open("w") as stream:
            stream.writelines(json.dumps({"text": text}) + "\n" for text in texts)
        manifest = {
            "kind": "jsonl",
            "content": "code",
            "files": [str(root / f"{name}.jsonl")],
            "holdout": 0.1,
        }
        (root / f"{name}.yaml").write_text(json.dumps(manifest))
        step("acquire", "--manifest", root / f"{name}.yaml", "--out", root / "raw" / name)
        step("filter", root / "raw" / name, "--out", root / "clean" / name)
    step("tokenizer", root / "clean", "--out", root / "tokenizer", "--vocab-size", 320, "--threads", 1)
    for name in corpora:
        step(
            "shard", root / "clean" / name, "--tokenizer", root / "tokenizer", "--out", root / "shards" / name
        )
    return root


@pytest.fixture(scope="session")
def corpora(tmp_path_factory: pytest.TempPathFactory, make_corpora: Corpora) -> Path:
    """Folder with `shards/{left,right}` and `tokenizer` of 320 tokens."""
    return make_corpora(
        tmp_path_factory.mktemp("corpora"), {"left": documents(1, 60), "right": documents(2, 60)}
    )


def documents(seed: int, count: int) -> list[str]:
    """Sentences of a small made-up language: learnable in a few steps, different for every seed."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("aeioulmnrst", k=draw.randint(2, 6))) for _ in range(40)]
    return [
        "\n".join(" ".join(draw.choices(words, k=draw.randint(4, 9))) + "." for _ in range(25))
        for _ in range(count)
    ]


def step(*arguments: object) -> None:
    assert hope_data([str(argument) for argument in arguments]) == 0


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")


@pytest.fixture(scope="session")
def tiny(corpora: Path) -> TrainConfig:
    """A run of six steps that takes part of a second."""
    return TrainConfig(
        run="tiny",
        model=ModelConfig(
            vocab_size=320, dim=32, layers=1, head_dim=32, cms=CMSConfig(levels=2, smallest=16)
        ),
        data=DataConfig(shards=str(corpora / "shards"), tokenizer=str(corpora / "tokenizer")),
        log=LogConfig(every=2, wandb="offline"),
        steps=6,
        batch_size=4,
        length=32,
        eval_every=3,
        eval_windows=3,
        precision="fp32",
        device="cpu",
    )
