"""Training that continues from a checkpoint's weights: `init` in the configuration.

The model is the checkpoint's, whatever else the configuration says of one; data, optimiser and schedule are the run's.
"""

import dataclasses
from pathlib import Path
from typing import Any

from hope_model import LanguageModel, checkpoint
from hope_model.errors import InputError
from hope_train.config import TrainConfig


def resolved(config: TrainConfig) -> TrainConfig:
    """Return the configuration with the model of `init` and the hash of its weights; unchanged without `init`.

    Raises:
        InputError: no checkpoint, a damaged one, or not the one that `init_sha256` names.
    """
    if not config.init:
        return config
    model, meta = checkpoint.read(Path(config.init))
    sha256 = meta["sha256"][checkpoint.WEIGHTS]
    if config.init_sha256 not in ("", sha256):
        raise InputError(
            f"init {config.init} holds the weights {sha256[:12]}, but init_sha256 is {config.init_sha256[:12]}; "
            "name that checkpoint, or compose the run again"
        )
    return dataclasses.replace(config, model=model, init_sha256=sha256)


def load(model: LanguageModel, config: TrainConfig, tokenizer_sha256: str) -> None:
    """Put the weights of `init` into a model.

    Args:
        model: with the initial weights that its seed gives.
        config: `resolved`.
        tokenizer_sha256: of the run's tokenizer; empty for a task.

    Raises:
        InputError: the checkpoint was made with another tokenizer.
    """
    source, meta = checkpoint.load(config.init)
    made_with = str(meta.get("tokenizer_sha256") or tokenizer_sha256)
    if tokenizer_sha256 and made_with != tokenizer_sha256:
        raise InputError(
            f"init {config.init} was made with the tokenizer {made_with[:12]}, but data.tokenizer "
            f"{config.data.tokenizer} is {tokenizer_sha256[:12]}; shard the text with the former and name it there"
        )
    model.load_state_dict(source.state_dict())


def record(config: TrainConfig) -> dict[str, Any]:
    """What the checkpoints of a run say of where its weights began."""
    if not config.init:
        return {}
    return {"init": {"name": Path(config.init).resolve().name, "sha256": config.init_sha256}}
