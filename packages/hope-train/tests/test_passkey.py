"""Training stores facts and the checkpoint brings them back: five digits of each of eight names, learned by heart."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import torch

from hope_data.tokenizer import Tokenizer
from hope_model import CMSConfig, LanguageModel, ModelConfig, checkpoint
from hope_train.config import DataConfig, OptimConfig, TrainConfig
from hope_train.run import train

NAMES = ("anna", "bela", "carl", "dora", "emil", "fred", "gina", "hugo")


def documents(keys: dict[str, str], count: int = 60) -> list[str]:
    """Every name with its key, in an order of its own, among words that say nothing."""
    draw = random.Random(1)
    texts = []
    for _ in range(count):
        lines = [f"The pass key of {name} is {key}." for name, key in keys.items()]
        noise = ["".join(draw.choices("aeioulmnrst", k=30)) + "." for _ in range(8)]
        texts.append("\n".join(draw.sample(lines + noise, 16)))
    return texts


def recalled(model: LanguageModel, tokenizer: Tokenizer, keys: dict[str, str]) -> int:
    """How many keys greedy generation writes out after their name; by chance 1 in 100,000."""
    right = 0
    for name, key in keys.items():
        tokens, text = [tokenizer.eos_id, *tokenizer.encode(f"The pass key of {name} is")], ""
        with torch.no_grad():
            while len(text) < 7:
                tokens.append(int(model(torch.tensor([tokens]))[0][0, -1].argmax()))
                text += tokenizer.decode(tokens[-1:]) or " "
        right += text.strip().startswith(key)
    return right


def test_pass_keys_are_memorised(
    make_corpora: Callable[[Path, dict[str, list[str]]], Path], tmp_path: Path
) -> None:
    draw = random.Random(2)
    keys = {name: str(draw.randrange(10_000, 100_000)) for name in NAMES}
    others = {name: str(draw.randrange(10_000, 100_000)) for name in NAMES}
    root = make_corpora(tmp_path, {"keys": documents(keys)})
    config = TrainConfig(
        run="keys",
        model=ModelConfig(
            vocab_size=320, dim=64, layers=1, head_dim=32, cms=CMSConfig(levels=2, smallest=32)
        ),
        data=DataConfig(shards=str(root / "shards"), tokenizer=str(root / "tokenizer")),
        optim=OptimConfig(lr=1e-2, matrix_lr=1e-2),
        steps=120,
        batch_size=4,
        length=128,
        eval_windows=1,
        precision="fp32",
        device="cpu",
    )
    tokenizer = Tokenizer.load(root / "tokenizer")
    torch.manual_seed(0)
    assert recalled(LanguageModel(config.model), tokenizer, keys) == 0
    assert train(config, tmp_path / "out") == 0
    model, _ = checkpoint.load(tmp_path / "out/checkpoint")
    assert recalled(model, tokenizer, keys) >= 6
    assert recalled(model, tokenizer, others) == 0
