"""What an ablation is: arms that differ in one thing, each with its own learning rate and several seeds.

A study is a file of conf/study; Hydra composes each arm's run from it and from the other groups of conf/.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from omegaconf import MISSING

from hope_model import counting
from hope_model.blocks import identity
from hope_model.errors import InputError
from hope_model.ranges import check_ranges, shown, within
from hope_train.compose import Params, compose
from hope_train.config import LENGTH, SEED, TrainConfig, digest
from hope_train.values import check_name, read_yaml, strict

MULTIPLE = re.compile(r"[1-9][0-9]{0,8}x?")
RATES = within(0, 1e6, above=True, most=64)
SOLVED = 1e-3  # validation loss in nats per token below which no learning rate is better than another


@dataclass  # not frozen: OmegaConf could not fill it inside a mapping
class Arm:
    """One side of a comparison.

    Attributes:
        run: a file of conf/run.
        overrides: Hydra overrides, `model.memory.self_modify=false`.
        writes: memories that are written at test time (`titans`, `cms.0`); none given means all. For text.
        missing: why it cannot be run yet; reports say so.
    """

    run: str = "hope"
    overrides: list[str] = field(default_factory=list)
    writes: list[str] = field(default_factory=list)
    missing: str = ""


@dataclass(frozen=True)
class Stream:
    """Domains that a trained model meets one after another; none given means that nothing is streamed.

    Attributes:
        domains: corpora in the order they come; the arms must not have been trained on them.
        tokens: learned of each.
        held_out: tokens measured of each.
        lr: of training on the stream, as a share of the training's own.
    """

    domains: list[str] = field(default_factory=list)
    tokens: int = field(default=4000, metadata=within(1, LENGTH))
    held_out: int = field(default=800, metadata=within(1, LENGTH))
    lr: float = field(default=0.1, metadata=within(0, 1e6))


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
        widen: how often an arm whose best rate lies at an end is given one more beyond it.
        seeds: of the runs that count; the first is that of the runs that choose.
        lengths: at which a task is evaluated, `2x` being twice the training length.
        tolerance: allowed difference of parameters, as a share of the first arm's.
        stream: what is learned after training, instead of being tested on text.
        equal_time: an arm; those whose steps cost otherwise are trained again, for as long as it was.
        follow_up: asked because of what others found; trained where it is named, or with `--follow-ups`.
    """

    question: str = MISSING
    order: int = field(default=0, metadata=within(-1_000_000, 1_000_000))
    scale: str = MISSING
    overrides: list[str] = field(default_factory=list)
    arms: dict[str, Arm] = field(default_factory=dict)
    rates: list[float] = field(default_factory=lambda: [0.3, 1.0, 3.0], metadata=RATES)
    widen: int = field(default=1, metadata=within(0, 10))
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata=SEED)
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
        if len(set(self.rates)) < 3 or len(set(self.seeds)) < 3:
            raise InputError("at least three 'rates' and three 'seeds'")
        if self.equal_time and self.equal_time not in self.arms:
            raise InputError(
                f"'equal_time: {self.equal_time}' is no arm; choose among {', '.join(self.arms)}"
            )


@dataclass(frozen=True)
class Chain:
    """One arm of a study, composed: what its runs have in common."""

    study: str
    arm: str
    definition: Study
    config: TrainConfig
    parameters: int
    writes: list[str]
    missing: str
    _units: dict[tuple[float, int, int], Unit] = field(default_factory=dict, repr=False, compare=False)

    def unit(self, rate: float, seed: int) -> Unit:
        """The run with one learning rate and one seed."""
        return self.longer(rate, seed, self.config.steps)

    def longer(self, rate: float, seed: int, steps: int) -> Unit:
        """The run with another number of steps; made once, since its digest is asked for often."""
        key = rate, seed, steps
        if key not in self._units:
            self._units[key] = self._unit(*key)
        return self._units[key]

    def _unit(self, rate: float, seed: int, steps: int) -> Unit:
        optim = self.config.optim
        optim = dataclasses.replace(optim, lr=optim.lr * rate, matrix_lr=optim.matrix_lr * rate)
        name = f"{self.study}/{self.arm}/rate{rate:g}-seed{seed}"
        name += f"-steps{steps}" if steps != self.config.steps else ""
        return Unit(
            self, rate, dataclasses.replace(self.config, run=name, seed=seed, optim=optim, steps=steps)
        )

    def tuning(self, validated: Callable[[Unit], Mapping[str, float] | None]) -> list[Unit]:
        """The runs that choose a learning rate on validation; the best of them also counts, by what it is tested on.

        Rates beyond an end are asked for until one solves the task; where all diverged, lower ones.

        Args:
            validated: numbers of a run, none where it diverged; None before it was done.
        """
        study = self.definition
        units = [self.unit(rate, study.seeds[0]) for rate in study.rates]
        for _ in range(study.widen):
            found = {unit.rate: score(v) for unit in units if (v := validated(unit)) is not None}
            best = min(sorted(found), key=lambda rate: found[rate], default=0.0)
            if len(found) < len(units) or found[best][0] <= SOLVED:
                break
            if best not in (min(found), max(found)):
                break
            units.append(self.unit(_beyond(best, up=best == max(found)), study.seeds[0]))
        return units


def score(validation: Mapping[str, float]) -> tuple[float, float]:
    """What chooses among learning rates, the lowest.

    Validation loss; those that solve a task are equal in it, so the loss at the longest validated length decides.
    Accuracy there, of all that reach 0.99 here, was tried in its place on MQAR: of one seed, it is noise (log).
    """
    losses = {int(key[9:]): loss for key, loss in validation.items() if key.startswith("val_loss_")}
    loss = _finite(validation.get("val_loss", math.inf))
    if loss > SOLVED:
        return loss, loss
    return SOLVED, _finite(losses[max(losses)]) if losses else loss


def _finite(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf


@dataclass(frozen=True)
class Unit:
    """One training."""

    chain: Chain
    rate: float
    config: TrainConfig

    @cached_property
    def sha256(self) -> str:
        """Of what is trained and how it is measured, whatever study asks for it; new equations make another one."""
        study = self.chain.definition
        measured = study.lengths if self.config.data.task else self.chain.writes
        if study.stream.domains:
            measured = ["stream", *map(str, dataclasses.astuple(study.stream))]
        config = dataclasses.asdict(self.config)
        return digest(config | {"run": ":".join(measured), "model": identity(self.config.model)})


def _beyond(rate: float, *, up: bool) -> float:
    """The next number of the row 0.1, 0.3, 1, 3, 10, which has no end."""
    tens, three = divmod(round(2 * math.log10(rate)) + (1 if up else -1), 2)
    return float(f"{3 if three else 1}e{tens}")


def load(conf: Path, only: list[str]) -> dict[str, Study]:
    """The studies of conf/study in their order.

    Raises:
        InputError: a file that is no study, or a name that is none.
    """
    files = {path.stem: path for path in sorted((conf / "study").glob("*.yaml"))}
    if not files:
        raise InputError(f"{conf / 'study'}: no study there; --conf names the folder above it")
    wanted = [name.split("/")[0] for name in only] or list(files)
    if unknown := [name for name in wanted if name not in files]:
        raise InputError(f"--only {unknown[0]}: no such study; choose among {', '.join(files)}")
    studies = {
        name: strict(Study, read_yaml(files[name]), str(files[name])) for name in dict.fromkeys(wanted)
    }
    return dict(sorted(studies.items(), key=lambda item: (item[1].order, item[0])))


def chains(name: str, study: Study, conf: Path, corpora: list[str], scale: str = "") -> list[Chain]:
    """Every arm of a study, composed, its parameters counted.

    Raises:
        InputError: an arm that does not compose, or of another size.
    """
    made: list[Chain] = []
    for arm, what in study.arms.items():
        params = Params(scale=scale or study.scale, teach_scale=0.1, seed=0, corpora=corpora)
        config = compose(what.run, conf, params, [*study.overrides, *what.overrides])
        count = counting.parameters(config.model)
        if met := sorted(set(study.stream.domains) & set(config.data.corpora)):
            raise InputError(
                f"{conf}/study/{name}.yaml: arm '{arm}' is trained on '{met[0]}', which the stream brings as new; "
                "set data.corpora"
            )
        first = made[0].parameters if made else count
        if abs(count / first - 1) > study.tolerance:
            raise InputError(
                f"{conf}/study/{name}.yaml: arm '{arm}' has {count:,} parameters, '{made[0].arm}' {first:,}: "
                f"more than {study.tolerance:.0%} apart"
            )
        made.append(Chain(name, arm, study, config, count, what.writes, what.missing))
    return made
