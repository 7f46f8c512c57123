"""What one training run is: frozen dataclasses hold the defaults, a YAML file holds the rest.

An unknown key or a wrong type raises `InputError` with one line that names the file and the key.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from math import inf
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from hope_model.config import ModelConfig
from hope_model.errors import InputError


@dataclass(frozen=True)
class DataConfig:
    """Where the tokens come from.

    Attributes:
        shards: folder with one subfolder per corpus.
        tokenizer: folder of the tokenizer the shards were made with.
        corpora: the subfolders to train on; none given means all of them.
        weights: share of each corpus in a batch; none given means proportional to tokens.
    """

    shards: str = "data/shards"
    tokenizer: str = "data/tokenizer"
    corpora: list[str] = field(default_factory=list)
    weights: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class OptimConfig:
    """The outer optimiser.

    Attributes:
        name: `muon` (Muon on hidden matrices, AdamW on everything else) or `adamw` (AdamW on everything).
        lr: peak learning rate of AdamW.
        matrix_lr: peak learning rate of Muon, on AdamW's scale (update rms 0.2 per unit of learning rate).
        weight_decay: decoupled decay of tensors with two axes or more.
        beta1: AdamW's first decay.
        beta2: AdamW's second decay.
        eps: AdamW's epsilon.
        momentum: Muon's Nesterov momentum.
        clip: bound on the global gradient norm; 0 leaves gradients alone.
    """

    name: str = "muon"
    lr: float = 3e-3
    matrix_lr: float = 3e-3
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    momentum: float = 0.95
    clip: float = 1.0


@dataclass(frozen=True)
class ScheduleConfig:
    """Learning rate over the run, as a factor of the peak; lengths are fractions of the run's steps.

    Attributes:
        name: `cosine`, `wsd` (warm-up, stable, linear decay) or `constant`.
        warmup: linear warm-up.
        decay: the last part, in which `wsd` goes down.
        final: factor reached at the end of the run.
    """

    name: str = "cosine"
    warmup: float = 0.05
    decay: float = 0.2
    final: float = 0.1


@dataclass(frozen=True)
class LogConfig:
    """Where numbers go, besides `log.jsonl`, which is always written.

    Attributes:
        every: steps per row.
        wandb: `offline`, `online` or `disabled`; the variable WANDB_MODE wins where it is set.
        project: Weights & Biases project.
    """

    every: int = 10
    wandb: str = "offline"
    project: str = "hope-lab"


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Attributes:
        run: the name it goes by in folders and reports.
        seed: of initial weights and data order.
        model: the network (see hope-model).
        data: corpora and tokenizer.
        optim: outer optimiser.
        schedule: learning rate over the run.
        log: rows and trackers.
        steps: optimiser steps.
        batch_size: sequences per step.
        length: tokens predicted per sequence.
        accumulate: parts a batch is split into to save memory; the gradient stays that of the whole batch.
        eval_every: steps between validations; 0 leaves only the one at the end.
        eval_windows: validation windows per corpus.
        checkpoint_every: steps between checkpoints; 0 leaves only the one at the end.
        precision: `fp32`, `bf16` (autocast) or `auto` (bf16 where the hardware multiplies it).
        compile: pass the model through torch.compile.
        device: `auto`, `cpu`, `cuda` or `cuda:1`.
    """

    run: str
    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    log: LogConfig = field(default_factory=LogConfig)
    steps: int = 1000
    batch_size: int = 8
    length: int = 512
    accumulate: int = 1
    eval_every: int = 0
    eval_windows: int = 8
    checkpoint_every: int = 0
    precision: str = "auto"
    compile: bool = False
    device: str = "auto"

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        for key, allowed in CHOICES.items():
            if self._value(key) not in allowed:
                raise InputError(f"'{key}' is {self._value(key)!r}; choose one of {', '.join(allowed)}")
        for keys, low, high in RANGES:
            for key in keys:
                if not low <= self._value(key) <= high:
                    wanted = f"at least {low}" if high == inf else f"between {low} and {high}"
                    raise InputError(f"'{key}' is {self._value(key)}; it must be {wanted}")
        if self.batch_size % self.accumulate:
            raise InputError(
                f"'batch_size' {self.batch_size} cannot be split into 'accumulate' {self.accumulate}"
            )

    def _value(self, key: str) -> Any:
        return attrgetter(key)(self)


CHOICES = {
    "optim.name": ("muon", "adamw"),
    "schedule.name": ("cosine", "wsd", "constant"),
    "log.wandb": ("offline", "online", "disabled"),
    "precision": ("auto", "fp32", "bf16"),
}
RANGES = (
    (("steps", "batch_size", "length", "accumulate", "eval_windows", "log.every"), 1, inf),
    (("seed", "eval_every", "checkpoint_every", "optim.lr", "optim.matrix_lr", "optim.clip"), 0, inf),
    (("schedule.warmup", "schedule.decay", "schedule.final"), 0, 1),
)


T = TypeVar("T")


def strict(kind: type[T], values: dict[str, Any], source: str) -> T:
    """Merge plain values into the defaults of a dataclass.

    Args:
        kind: the dataclass.
        values: nested plain values, as YAML gives them.
        source: what to call them in an error, usually the file's name.

    Raises:
        InputError: an unknown or missing key, a wrong type, a value out of range.
    """
    try:
        return cast("T", OmegaConf.to_object(OmegaConf.merge(schema(kind), values)))
    except OmegaConfBaseException as error:
        raise InputError(f"{source}: {describe(error)}") from None
    except InputError as error:
        raise InputError(f"{source}: {error}") from None


def load(path: Path) -> TrainConfig:
    """Read a resolved run file, as `hope-train compose` writes it or a person does.

    Raises:
        InputError: as `strict`; also a missing file or text that is no YAML mapping.
    """
    return strict(TrainConfig, read_yaml(path), str(path))


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Raises:
        InputError: no such file, broken YAML (with its line), or something other than a mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise InputError(f"{where}: not YAML: {getattr(error, 'problem', None) or error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(f"{path}: a mapping of keys to values is wanted, not a {type(values).__name__}")
    return values


def dump(config: TrainConfig) -> str:
    """The whole configuration as YAML, defaults included, in the order of the fields."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True, width=110)


def fingerprint(config: TrainConfig) -> str:
    """SHA-256 over everything that belongs to the run; equal exactly where two runs are the same."""
    text = json.dumps(dataclasses.asdict(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def schema(kind: type) -> DictConfig:
    """The dataclass as an OmegaConf struct to merge into ("frozen" would make it read-only)."""
    node: DictConfig = OmegaConf.structured(kind)
    _unlock(node)
    return node


def _unlock(node: DictConfig) -> None:
    OmegaConf.set_readonly(node, None)
    for key in node:
        child = None if OmegaConf.is_missing(node, key) else node[key]
        if isinstance(child, DictConfig):
            _unlock(child)


def describe(error: OmegaConfBaseException) -> str:
    """One line for people: the key, then what is wrong with it."""
    key = getattr(error, "full_key", None)
    reason = str(getattr(error, "msg", None) or error).strip().splitlines()[0]
    if isinstance(error, MissingMandatoryValue):
        return f"'{key}' is missing"
    if isinstance(error, ConfigKeyError | ConfigAttributeError):
        return f"unknown key '{key}'; remove it or correct its spelling"
    return f"'{key}': {reason}" if key else reason
