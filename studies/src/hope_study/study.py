"""The definition of a study: arms that differ in one thing, each with its own learning rate and several seeds.

A study is a file of conf/study; Hydra composes each arm's run from it and from the other groups of conf/.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from hope_model import counting
from hope_model.blocks import identity
from hope_model.errors import InputError
from hope_model.ranges import check_ranges, shown, within
from hope_train.compose import Params, compose
from hope_train.config import LENGTH, SEED, TrainConfig, digest
from hope_train.provenance import code_sha256
from hope_train.values import check_name, read_yaml, strict

MULTIPLE = re.compile(r"[1-9][0-9]{0,8}x?")
RATES = within(0, 1e6, above=True, most=64)


# Keys that configurations got after the first records. At its default each does nothing, and is left out of the digest,
# so that what was trained before it counts. A new key belongs here, too.
ADDED = [
    "init",
    "init_sha256",
    "attach",
    "tf32",
    "model.hidden",
    "model.mlp_bias",
    "model.norm_eps",
    "model.attention.heads",
    "model.attention.kv_heads",
    "model.attention.qk_norm",
    "model.attention.bias",
    "model.attention.rope",
    "model.memory.inner_clip",
    "model.memory.erase_layers",
    "model.memory.read",
    "model.memory.bank_momentum",
    "model.memory.momentum_sum",
    "model.memory.normalise",
]


@dataclass  # not frozen: OmegaConf could not fill it inside a mapping
class ArmSettings:
    """One side of a comparison, as conf/study says it.

    Attributes:
        run: a file of conf/run.
        overrides: Hydra overrides, `model.memory.self_modify=false`.
        writes: memories that are written at test time (`titans`, `cms.0`); none given means all. For text.
        missing: why it cannot be run yet; pages print it.
        adapt: adaptations of `hope-eval --adapt` that its text is also measured with; none given means the study's.
    """

    run: str = "hope"
    overrides: list[str] = field(default_factory=list)
    writes: list[str] = field(default_factory=list)
    missing: str = ""
    adapt: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Stream:
    """Domains that a trained model meets one after another; without domains nothing is streamed.

    Attributes:
        domains: corpora in the order they come; the arms must not have been trained on them.
        tokens: learned of each.
        held_out: tokens measured of each.
        lr: of training on the stream, as a share of the training's own.
        shards: their folder; none given means that of the training.
        classes: instead of text, labelled texts in groups: a kind of `hope-eval continual --classes`, whose first
            groups are the domains.
        data: folder of the labelled texts.
    """

    domains: list[str] = field(default_factory=list)
    tokens: int = field(default=4000, metadata=within(1, LENGTH))
    held_out: int = field(default=800, metadata=within(1, LENGTH))
    lr: float = field(default=0.1, metadata=within(0, 1e6))
    shards: str = ""
    classes: str = ""
    data: str = ""

    def identity(self) -> list[str]:
        """What decides its results; of a key that came later only what is set."""
        later = [self.shards, self.classes]
        return [str(self.domains), str(self.tokens), str(self.held_out), str(self.lr), *filter(None, later)]


@dataclass(frozen=True)
class Study:
    """One question and the arms that answer it; the first is the one the others are compared with.

    Attributes:
        question: one sentence.
        order: place among the studies, then by name.
        scale: a file of conf/scale.
        overrides: of all arms, before their own.
        arms: by name.
        rates: factors of the scale's learning rates; validation chooses one for each arm.
        widen: times to extend the learning-rate grid when the best rate is at its edge.
        seeds: of the trainings that count.
        rate_seeds: how many of them choose the learning rate.
        rates_of: a study whose arms of the same names have chosen the rates, or `STUDY/ARM`, whose rate all arms
            get; here none is tried.
        adapt: adaptations at test time that every training is measured with, too, their dials tuned on validation
            text: `neural_cache`, or with a start and the dials to tune, `dynamic:rate=0.001 rate`. `off` has none.
        lengths: at which a task is evaluated, `2x` being twice the training length.
        tolerance: allowed difference of parameters, as a share of the first arm's.
        stream: what is learned after training, instead of a test on text.
        equal_time: an arm; arms whose steps cost more or less are trained again, for as long as it was.
        follow_up: asked because of other results; trained only by name, or with `--follow-ups`.
    """

    question: str = MISSING
    order: int = field(default=0, metadata=within(-1_000_000, 1_000_000))
    scale: str = MISSING
    overrides: list[str] = field(default_factory=list)
    arms: dict[str, ArmSettings] = field(default_factory=dict)
    rates: list[float] = field(default_factory=lambda: [0.3, 1.0, 3.0], metadata=RATES)
    widen: int = field(default=1, metadata=within(0, 10))
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata=SEED)
    rate_seeds: int = field(default=1, metadata=within(1, 1_000))
    rates_of: str = ""
    adapt: list[str] = field(default_factory=list)
    lengths: list[str] = field(default_factory=lambda: ["1x", "2x", "4x", "8x"])
    tolerance: float = field(default=0.03, metadata=within(0, 1e6))
    stream: Stream = field(default_factory=Stream)
    equal_time: str = ""
    follow_up: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be run, and a comparison that cannot be fair."""
        check_ranges(self, "")
        for name in (*self.arms, *self.stream.domains):
            check_name("arms" if name in self.arms else "stream.domains", name)
        if wrong := [length for length in self.lengths if not MULTIPLE.fullmatch(length)]:
            raise InputError(f"lengths is {shown(wrong[0])}; it must be a number of tokens, or such as 2x")
        if (len(set(self.rates)) < 3 and not self.rates_of) or len(set(self.seeds)) < 3:
            raise InputError("at least three 'rates' and three 'seeds'")
        if self.rate_seeds > len(self.seeds):
            raise InputError(f"rate_seeds is {self.rate_seeds}; there are {len(self.seeds)} seeds")
        if self.equal_time and self.equal_time not in self.arms:
            raise InputError(
                f"'equal_time: {self.equal_time}' is no arm; choose among {', '.join(self.arms)}"
            )


def _drop_added(config: dict[str, Any]) -> None:
    """Remove the keys of `ADDED` that have their defaults."""
    defaults = dataclasses.asdict(TrainConfig(run="any"))
    for path in ADDED:
        *parents, key = path.split(".")
        values, usual = config, defaults
        for parent in parents:
            values, usual = values.get(parent, {}), usual[parent]
        if key in values and values[key] == usual[key]:
            del values[key]


@dataclass(frozen=True)
class Arm:
    """One arm of a study, composed: what its trainings have in common."""

    study: str
    name: str
    definition: Study
    settings: ArmSettings
    config: TrainConfig
    parameters: int
    _trainings: dict[tuple[float, int, int], Training] = field(
        default_factory=dict, repr=False, compare=False
    )

    @property
    def adapt(self) -> list[str]:
        """What its text is also measured with."""
        return self.settings.adapt or self.definition.adapt

    @property
    def rates_from(self) -> tuple[str, str]:
        """Study and arm that choose its learning rate."""
        study, _, arm = self.definition.rates_of.partition("/")
        return study, arm or self.name

    def training(self, rate: float, seed: int, steps: int = 0) -> Training:
        """Return the training with one learning rate and seed, of another length if `steps` is given.

        Each is made once, since its digest is asked for often.
        """
        key = rate, seed, steps or self.config.steps
        if key not in self._trainings:
            self._trainings[key] = self._training(*key)
        return self._trainings[key]

    def _training(self, rate: float, seed: int, steps: int) -> Training:
        optim = self.config.optim
        optim = dataclasses.replace(optim, lr=optim.lr * rate, matrix_lr=optim.matrix_lr * rate)
        name = f"rate{rate:g}-seed{seed}" + (f"-steps{steps}" if steps != self.config.steps else "")
        run = f"{self.study}/{self.name}/{name}"
        config = dataclasses.replace(self.config, run=run, seed=seed, optim=optim, steps=steps)
        return Training(self, name, rate, config)


@dataclass(frozen=True)
class Training:
    """One training of an arm.

    Attributes:
        arm: whose.
        name: `rateR-seedS`, of another length `rateR-seedS-stepsN`.
        rate: factor of the scale's learning rates.
        config: of the run.
    """

    arm: Arm
    name: str
    rate: float
    config: TrainConfig

    @cached_property
    def sha256(self) -> str:
        """Digest of what is trained and how it is measured, whichever study asks; new equations change it."""
        study = self.arm.definition
        measured = study.lengths if self.config.data.task else self.arm.settings.writes
        if study.stream.domains:
            measured = ["stream", *study.stream.identity()]
        if self.arm.adapt:
            measured = [*measured, "adapt", *self.arm.adapt]
        config = dataclasses.asdict(self.config)
        config |= {"run": ":".join(measured), "model": identity(self.config.model)}
        _drop_added(config)
        return digest(config)

    @cached_property
    def constant(self) -> int:
        """Steps before the rate begins to fall; 0 where it falls from the start."""
        plan, steps = self.config.schedule, self.config.steps
        return max(self._warmup, steps - round(plan.decay * steps)) if plan.name == "wsd" else 0

    @property
    def _warmup(self) -> int:
        return round(self.config.schedule.warmup * self.config.steps)

    @cached_property
    def trunk(self) -> str:
        """Digest of its steps before the decay: of the code, and of everything but its length and the decay."""
        config = dataclasses.asdict(self.config)
        for key in ("run", "steps", "schedule"):
            del config[key]
        return digest({**config, "warmup": self._warmup, "code": code_sha256()})[:16]


def load(conf: Path, only: list[str]) -> dict[str, Study]:
    """Read the studies of conf/study, all or those named as `STUDY` or `STUDY/ARM`, in their order.

    Raises:
        InputError: a file that is no study, or a name that is none.
    """
    files = {path.stem: path for path in sorted((conf / "study").glob("*.yaml"))}
    if not files:
        raise InputError(f"{conf / 'study'}: no study there; --conf names the folder above it")
    wanted = [name.split("/")[0] for name in only] or list(files)
    if unknown := [name for name in wanted if name not in files]:
        raise InputError(f"--only {unknown[0]}: no such study; choose among {', '.join(files)}")
    studies: dict[str, Study] = {}
    for name in wanted:  # grows by the studies whose rates the others take
        if name not in studies:
            studies[name] = strict(Study, read_yaml(files[name]), str(files[name]))
            other = studies[name].rates_of.partition("/")[0]
            if other and other not in files:
                raise InputError(
                    f"{files[name]}: rates_of is {other[:80]!r}; choose among {', '.join(files)}"
                )
            wanted += [other] if other else []
    return dict(sorted(studies.items(), key=lambda item: (item[1].order, item[0])))


def arms(name: str, study: Study, conf: Path, corpora: list[str], scale: str = "") -> list[Arm]:
    """Compose every arm of a study and count its parameters.

    Raises:
        InputError: an arm that does not compose, or of another size.
    """
    composed: list[Arm] = []
    file = f"{conf}/study/{name}.yaml"
    for arm, settings in study.arms.items():
        params = Params(scale=scale or study.scale, teach_scale=0.1, seeds=[0], corpora=corpora)
        config = compose(settings.run, conf, params, [*study.overrides, *settings.overrides])
        count = counting.parameters(config.model)
        if both := sorted(set(study.stream.domains) & set(config.data.corpora)):
            raise InputError(
                f"{file}: arm '{arm}' is trained on '{both[0]}', which the stream brings as new; set data.corpora"
            )
        first = composed[0].parameters if composed else count
        if abs(count / first - 1) > study.tolerance:
            raise InputError(
                f"{file}: arm '{arm}' has {count:,} parameters, '{composed[0].name}' {first:,}: "
                f"more than {study.tolerance:.0%} apart"
            )
        composed.append(Arm(name, arm, study, settings, config, count))
    return composed
