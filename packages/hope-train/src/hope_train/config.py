"""What one training run is: frozen dataclasses hold the defaults, a YAML file holds the rest.

`values.strict` merges the two; an unknown key or a wrong type is an error.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import MISSING

from hope_model.config import ModelConfig
from hope_model.errors import InputError
from hope_model.ranges import check_ranges, one_of, within
from hope_train.values import check_name, read_yaml, strict

SEED = within(0, 2**63 - 1)  # torch takes no larger one
STEPS = 2**40  # no run is longer, and floats hold the number exactly
LENGTH = 2**30  # tokens of a sequence, and of a step
HUGE = 1e30  # float32 holds its products with a learning rate's factors
BELOW_ONE = within(0, 0.999999)
SHARE = within(0, 1)


@dataclass(frozen=True)
class DataConfig:
    """Where the tokens come from.

    Attributes:
        shards: folder with one subfolder per corpus.
        tokenizer: folder of the tokenizer the shards were made with.
        corpora: the subfolders to train on; none given means all of them.
        weights: share of each corpus in a batch; none given means proportional to tokens.
        task: instead of text, a synthetic task of hope-data by name, with its dials: `{name: mqar, pairs: 16}`.
        eval_lengths: of a task's validation examples; none given means the run's `length`.
        reset: every document of a row is read as if it stood alone, each padded to the longest: slower. Otherwise a
            row's state goes on from one to the next.
    """

    shards: str = "data/shards"
    tokenizer: str = "data/tokenizer"
    corpora: list[str] = field(default_factory=list)
    weights: dict[str, float] = field(default_factory=dict, metadata=within(0, 1e12, above=True))
    task: dict[str, Any] = field(default_factory=dict)
    eval_lengths: list[int] = field(default_factory=list, metadata=within(1, LENGTH, most=64))
    reset: bool = False

    def __post_init__(self) -> None:
        """Refuse names that are no folders of `shards`, and a task with documents."""
        check_ranges(self, "data")
        if self.reset and self.task:
            raise InputError("data.reset: a task's rows are examples, not documents; leave it out")
        for key, names in {"data.corpora": self.corpora, "data.weights": list(self.weights)}.items():
            for name in names:
                check_name(key, name)


@dataclass  # not frozen: OmegaConf could not fill it inside a list's entry
class ScheduleConfig:
    """Learning rate over the run, as a factor of the peak; lengths are fractions of the run's steps.

    Attributes:
        name: `cosine`, `wsd` (warm-up, stable, linear decay) or `constant`.
        warmup: linear warm-up.
        decay: the last part, in which `wsd` goes down.
        final: factor reached at the end of the run.
    """

    name: str = field(default="cosine", metadata=one_of("cosine", "wsd", "constant"))
    warmup: float = field(default=0.05, metadata=SHARE)
    decay: float = field(default=0.2, metadata=SHARE)
    final: float = field(default=0.1, metadata=SHARE)


@dataclass(frozen=True)
class GroupConfig:
    """Parameters that learn at another pace, such as one level of the CMS.

    Attributes:
        match: shell pattern of parameter names, e.g. `*.channel.levels.3.*`; the first that fits counts.
        lr: factor of the optimiser's learning rate.
        schedule: their own; none given means the run's.
    """

    match: str = MISSING
    lr: float = field(default=1.0, metadata=within(0, 1e6))
    schedule: ScheduleConfig | None = None


@dataclass(frozen=True)
class OptimConfig:
    """The outer optimiser.

    Attributes:
        name: `muon` or `m3` (on hidden matrices, with AdamW on everything else), or `adamw` (on everything).
        lr: peak learning rate of AdamW.
        matrix_lr: peak learning rate of Muon and M3, on AdamW's scale (update rms 0.2 per unit of learning rate).
        weight_decay: decoupled decay of tensors with two axes or more.
        beta1: AdamW's first decay.
        beta2: AdamW's second decay, also M3's.
        eps: AdamW's epsilon, also M3's.
        momentum: Muon's Nesterov momentum, M3's fast one.
        slow_every: steps between refreshes of M3's slow momentum (f in algorithm 1).
        slow_momentum: what a refresh keeps of the slow momentum.
        slow_share: weight of its direction beside the fast one's (alpha in algorithm 1).
        clip: bound on the global gradient norm; 0 leaves gradients alone.
        groups: exceptions, see `GroupConfig`.
    """

    name: str = field(default="muon", metadata=one_of("muon", "m3", "adamw"))
    lr: float = field(default=3e-3, metadata=within(0, HUGE))
    matrix_lr: float = field(default=3e-3, metadata=within(0, HUGE))
    weight_decay: float = field(default=0.1, metadata=within(0, 1e6))
    beta1: float = field(default=0.9, metadata=BELOW_ONE)
    beta2: float = field(default=0.95, metadata=BELOW_ONE)
    # Less is nothing in float32, and 0 / 0 where a parameter has had no gradient.
    eps: float = field(default=1e-8, metadata=within(1e-30, 1))
    momentum: float = field(default=0.95, metadata=BELOW_ONE)
    slow_every: int = field(default=16, metadata=within(1, STEPS))
    slow_momentum: float = field(default=0.9, metadata=SHARE)
    slow_share: float = field(default=0.5, metadata=within(0, 1e6))
    clip: float = field(default=1.0, metadata=within(0, HUGE))
    groups: list[GroupConfig] = field(default_factory=list)


@dataclass(frozen=True)
class TeachConfig:
    """How the CMS's writes come in over the run; shares are of the run's steps.

    Attributes:
        warmup: share over which teach_scale rises linearly to the model's.
        begin: per CMS level, the share of the run before its first write; none given means from the start.
        lr: per CMS level, fastest first, a schedule of its inner learning rate as a factor of the model's `cms.lr`;
            levels without one keep it. Validation and evaluation use `cms.lr` itself: a schedule should end near 1.
    """

    warmup: float = field(default=0.0, metadata=SHARE)
    begin: list[float] = field(default_factory=list, metadata=SHARE)
    lr: list[ScheduleConfig] = field(default_factory=list)


@dataclass(frozen=True)
class AttachConfig:
    """A memory on the MLPs of a trained Transformer (arXiv 2512.24695, 7.3), see `hope_model.adapt.attach_memory`.

    Each block's MLP is a level with a period of its own. Deltas begin at zero in every sequence and are constants for
    the gradient; a checkpoint holds the trained matrices alone.

    Attributes:
        period: tokens between writes of the first blocks; 0: no memory.
        ratio: each next group of blocks is this much slower.
        levels: groups of blocks.
        scale: strength of the writes; `teach.warmup` brings it in.
        clip: largest norm of a token's teach signal.
        threshold: tokens with a smaller teach signal write nothing.
        bound: largest norm of a delta, times its matrix's; 0: none.
        retention: what a write keeps of the former delta.
        matrices: `down`, `up` or `all`.
    """

    period: int = field(default=0, metadata=within(0, 2**40))
    ratio: int = field(default=4, metadata=within(1, 2**20))
    levels: int = field(default=1, metadata=within(1, 64))
    scale: float = field(default=0.3, metadata=within(0, 1_000))
    clip: float = field(default=1.0, metadata=within(0, 1e12, above=True))
    threshold: float = field(default=0.0, metadata=within(0, 1e12))
    bound: float = field(default=0.5, metadata=within(0, 1_000))
    retention: float = field(default=1.0, metadata=SHARE)
    matrices: str = field(default="down", metadata=one_of("down", "up", "all"))


@dataclass(frozen=True)
class LogConfig:
    """Where numbers go, besides `log.jsonl`, which is always written.

    Attributes:
        every: steps per row.
        wandb: `offline`, `online` or `disabled`; the variable WANDB_MODE wins where it is set.
        mlflow: tracking URI such as `sqlite:///mlflow.db`, needs the extra `mlflow`; empty: none.
        project: Weights & Biases project, MLflow experiment.
    """

    every: int = field(default=10, metadata=within(1, STEPS))
    wandb: str = field(default="offline", metadata=one_of("offline", "online", "disabled"))
    mlflow: str = ""
    project: str = "hope-lab"


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Attributes:
        run: the name it goes by in folders and reports.
        seed: of initial weights and data order.
        model: the network (see hope-model).
        init: checkpoint whose model and weights the run begins with; empty: `model` and `seed` say.
        init_sha256: of its weights; `hope-train compose` fills it in, and another checkpoint is then refused.
        attach: a memory that is attached to the model while it trains.
        data: corpora and tokenizer.
        optim: outer optimiser.
        schedule: learning rate over the run.
        teach: the CMS's writes over the run.
        log: rows and trackers.
        steps: optimiser steps.
        batch_size: sequences per step, of all processes together.
        length: tokens predicted per sequence.
        memory_chunks: chunk lengths of deep memories, of which each step draws one; none given means the model's, which
            validation and evaluation always use. Where training sequences have few chunks, memories so learn what
            being rewritten between chunks does to them.
        lengths: shorter contexts, by the step they begin at: `{0: 512, 2000: 2048}`. A sequence of `length` tokens is
            then cut into as many as fit, so that steps, tokens and their order stay what they are.
        accumulate: parts a process's share of the batch is split into to save memory; same gradient.
        eval_every: steps between validations; 0 leaves only the one at the end.
        eval_windows: validation windows per corpus, or a task's sequences per length.
        checkpoint_every: steps between checkpoints; 0 leaves only the one at the end.
        milestone_every: steps between checkpoints that are kept beside the newest; a multiple of the former.
        milestones: how many of those to keep, newest first; 0 keeps all.
        parallel: with several processes, `ddp` (weights on each), `fsdp` (weights shared out), or DeepSpeed's `zero1`,
            `zero2`, `zero3`, which slice flattened weights: for AdamW only, needs the extra `deepspeed`.
        precision: `fp32`, `bf16` (autocast) or `auto` (bf16 where the hardware multiplies it).
        tf32: on CUDA, round operands of float32 products to TF32's 11 bits; no CPU does.
        compile: pass the model through torch.compile, where that works.
        activation_checkpoint: recompute each block in the backward pass instead of keeping its activations.
        sdpa: kernel of softmax attention: `auto`, `flash`, `efficient`, `cudnn` or `math`.
        device: `auto`, `cpu`, `cuda` or `cuda:1`.
    """

    run: str
    seed: int = field(default=0, metadata=SEED)
    model: ModelConfig = field(default_factory=ModelConfig)
    init: str = ""
    init_sha256: str = ""
    attach: AttachConfig = field(default_factory=AttachConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    teach: TeachConfig = field(default_factory=TeachConfig)
    log: LogConfig = field(default_factory=LogConfig)
    steps: int = field(default=1000, metadata=within(1, STEPS))
    batch_size: int = field(default=8, metadata=within(1, 2**24))
    length: int = field(default=512, metadata=within(1, LENGTH))
    lengths: dict[int, int] = field(default_factory=dict, metadata=within(1, LENGTH))
    memory_chunks: list[int] = field(default_factory=list, metadata=within(1, 65_536))
    accumulate: int = field(default=1, metadata=within(1, 2**24))
    eval_every: int = field(default=0, metadata=within(0, STEPS))
    eval_windows: int = field(default=8, metadata=within(1, 2**24))
    checkpoint_every: int = field(default=0, metadata=within(0, STEPS))
    milestone_every: int = field(default=0, metadata=within(0, STEPS))
    milestones: int = field(default=0, metadata=within(0, STEPS))
    parallel: str = field(default="ddp", metadata=one_of("ddp", "fsdp", "zero1", "zero2", "zero3"))
    precision: str = field(default="auto", metadata=one_of("auto", "fp32", "bf16"))
    tf32: bool = True
    compile: bool = False
    activation_checkpoint: bool = False
    sdpa: str = field(default="auto", metadata=one_of("auto", "flash", "efficient", "cudnn", "math"))
    device: str = "auto"

    def __post_init__(self) -> None:
        check_ranges(self, "")
        for part in self.run.split("/"):  # a study's runs are STUDY/ARM/UNIT
            check_name("run", part)
        if self.compile:
            from hope_model.blocks import compile_refusal  # noqa: PLC0415 (imports torch, for seconds)

            if reason := compile_refusal(self.model):
                raise InputError(f"'compile': {reason}; leave it false")
        self._check_attach()
        self._check_sizes()
        self._check_steps()
        if self.parallel.startswith("zero") and self.optim.name != "adamw":
            raise InputError(
                f"'parallel' {self.parallel} slices matrices, which '{self.optim.name}' needs whole; "
                "set optim.name to adamw or parallel to fsdp"
            )

    def _check_attach(self) -> None:
        if not self.attach.period:
            return
        shares = self.parallel != "ddp" and f"'parallel' {self.parallel} (ddp works)"
        for reason in (
            shares,
            self.compile and "'compile'",
            self.activation_checkpoint and "'activation_checkpoint'",
        ):
            if reason:
                raise InputError(
                    f"'attach' reads the matrices of the MLPs itself, which does not go with {reason}"
                )

    def _check_sizes(self) -> None:
        if self.batch_size % self.accumulate:
            raise InputError(
                f"'batch_size' {self.batch_size} cannot be split into 'accumulate' {self.accumulate}"
            )
        if self.batch_size * self.length > LENGTH:
            raise InputError(
                f"'batch_size' {self.batch_size} x 'length' {self.length} tokens a step; at most {LENGTH:,} are allowed"
            )
        if self.eval_windows * max(self.data.eval_lengths, default=1) > LENGTH:
            raise InputError(
                f"'eval_windows' {self.eval_windows} x 'data.eval_lengths' {max(self.data.eval_lengths)} tokens; "
                f"at most {LENGTH:,} are allowed"
            )

    def _check_steps(self) -> None:
        if self.milestone_every and (
            not self.checkpoint_every or self.milestone_every % self.checkpoint_every
        ):
            raise InputError(
                f"'milestone_every' {self.milestone_every} is no multiple of 'checkpoint_every' {self.checkpoint_every}"
            )
        for step, length in self.lengths.items():
            if step < 0 or self.length % length:
                raise InputError(
                    f"'lengths' {{{step}: {length}}}: 'length' {self.length} cannot be cut into it"
                )


def load(path: Path) -> TrainConfig:
    """Read a resolved run file, as `hope-train compose` writes it or a person does.

    Raises:
        InputError: as `strict`; also a missing file or text that is no YAML mapping.
    """
    return strict(TrainConfig, read_yaml(path), str(path))


def dump(config: TrainConfig) -> str:
    """The whole configuration as YAML, defaults included, in the order of the fields."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True, width=110)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by dotted keys."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        out.update(flat(value, f"{name}.") if isinstance(value, dict) else {name: value})
    return out


def fingerprint(config: TrainConfig) -> str:
    """SHA-256 over everything that belongs to the run; equal exactly where two runs are the same."""
    return digest(dataclasses.asdict(config))


def digest(values: Mapping[str, Any]) -> str:
    """SHA-256 of nested values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
