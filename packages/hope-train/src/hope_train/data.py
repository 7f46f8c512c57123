"""From shards to what the loop needs: a loader, validation windows, and proof that they fit together."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from hope_data import shards, tasks
from hope_data.loader import Batch, Loader, LoaderConfig, eval_windows
from hope_data.tasks.loader import TaskBatch, TaskLoader
from hope_data.tokenizer import Tokenizer
from hope_model.errors import InputError
from hope_train.config import TrainConfig
from hope_train.validation.task import TaskValidation


class Stream(Protocol):
    """Endless batches whose position can be saved."""

    corpora: list[str]

    def __next__(self) -> Batch | TaskBatch:
        """The next batch of this rank."""

    def state_dict(self) -> dict[str, Any]:
        """Position after the batches taken so far."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""


@dataclass(frozen=True)
class Data:
    """The tokens of a run.

    Attributes:
        loader: endless batches of the training split; its position can be saved.
        windows: per corpus, validation tokens `[N, T + 1]`.
        token_bytes: UTF-8 bytes each token stands for, `[vocabulary]`.
        sha256: changes when any token of training or validation does.
        tokenizer_sha256: of the tokenizer's model file; empty for a task.
        task: validation of a task, in place of `windows`.
    """

    loader: Stream
    windows: Mapping[str, npt.NDArray[np.int64]]
    token_bytes: npt.NDArray[np.int64]
    sha256: str
    tokenizer_sha256: str
    task: TaskValidation | None = None


def open_data(config: TrainConfig, rank: int = 0, world: int = 1) -> Data:
    """Open everything a run reads.

    Args:
        config: of the run.
        rank: of this process.
        world: number of processes; each gets its share of every batch.

    Raises:
        InputError: a folder that is not there, shards of another tokenizer, a vocabulary too large.
    """
    if config.batch_size % (world * config.accumulate):
        raise InputError(
            f"'batch_size' {config.batch_size} cannot be split over {world} processes x "
            f"'accumulate' {config.accumulate}"
        )
    if config.data.task:
        return _open_task(config, rank, world)
    tokenizer = Tokenizer.load(config.data.tokenizer)
    if tokenizer.vocab_size > config.model.vocab_size:
        raise InputError(
            f"{config.data.tokenizer}: {tokenizer.vocab_size} tokens, but model.vocab_size is "
            f"{config.model.vocab_size}; train a smaller tokenizer or enlarge the model's"
        )
    names = config.data.corpora
    if config.data.weights and names and set(config.data.weights) != set(names):
        raise InputError(f"data.weights name {sorted(config.data.weights)}, but data.corpora {sorted(names)}")
    windows, hashes = {}, {}
    for folder in shards.corpora(Path(config.data.shards), sorted(config.data.weights) or sorted(names)):
        split = shards.Split.open(folder, "train", tokenizer)
        windows[folder.name] = eval_windows(folder, config.length, config.eval_windows)
        hashes[folder.name] = {part: split.index["splits"][part]["files"] for part in ("train", "val")}
    loader = LoaderConfig(
        shards=config.data.shards,
        weights=config.data.weights,
        corpora=names,
        batch_size=config.batch_size // world,
        length=config.length,
    )
    return Data(
        loader=Loader(loader, "train", config.seed, rank, world),
        windows=windows,
        token_bytes=tokenizer.token_bytes,
        sha256=hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest(),
        tokenizer_sha256=tokenizer.sha256,
    )


def _open_task(config: TrainConfig, rank: int, world: int) -> Data:
    task, name = tasks.build(config.data.task), str(config.data.task["name"])
    if task.vocab_size > config.model.vocab_size:
        raise InputError(
            f"task {name} has {task.vocab_size} tokens, but model.vocab_size is {config.model.vocab_size}; enlarge it"
        )
    if config.lengths:
        raise InputError(f"task {name}: 'lengths' would cut its examples; leave it empty")
    lengths = config.data.eval_lengths or [config.length]
    text = json.dumps([config.data.task, config.length], sort_keys=True)
    return Data(
        loader=TaskLoader(name, task, config.length, config.batch_size, config.seed, rank, world),
        windows={},
        token_bytes=np.empty(0, np.int64),
        sha256=hashlib.sha256(text.encode()).hexdigest(),
        tokenizer_sha256="",
        task=TaskValidation(task, lengths, config.eval_windows, config.batch_size // world),
    )
