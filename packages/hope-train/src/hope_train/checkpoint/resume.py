"""What the checkpoint in a run's folder means for a configuration: resume, nothing left to do, refuse, or replace."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hope_model.errors import InputError
from hope_train import schedule
from hope_train.checkpoint import state
from hope_train.checkpoint.state import Identity, Saved
from hope_train.config import ScheduleConfig, TrainConfig, flat
from hope_train.values import strict

# Keys, or beginnings of keys, that leave what is learned as it is.
FREE = (
    "run", "log.", "eval_every", "eval_windows", "data.eval_lengths", "data.shards", "data.tokenizer",
    "checkpoint_every", "milestone_every", "milestones", "parallel", "precision", "tf32", "compile",
    "activation_checkpoint", "accumulate", "sdpa", "device",
)  # fmt: skip
PLAN = ("steps", "schedule.name", "schedule.warmup", "schedule.decay", "schedule.final")
MEASURED = ("eval_windows", "data.eval_lengths")  # they decide the numbers of a finished run


@dataclass(frozen=True)
class Existing:
    """The checkpoint that was found.

    Attributes:
        saved: what to resume from; None starts afresh.
        replaced: a checkpoint of another run is there and shall go.
        changes: keys that differ and leave the mathematics as it is, each with both values.
    """

    saved: Saved | None
    replaced: list[str] = dataclasses.field(default_factory=list)
    changes: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether its final numbers are those of this configuration."""
        return (
            bool(self.saved and self.saved.progress.metrics)
            and not {"steps", *MEASURED} & self.changes.keys()
        )


def find(config: TrainConfig, identity: Identity, folder: Path, *, fresh_on_mismatch: bool) -> Existing:
    """Compare a run with the checkpoint in its folder.

    Args:
        config: of the run.
        identity: of its data and code.
        folder: of the checkpoint.
        fresh_on_mismatch: the result must be that of this configuration alone: another run is replaced.

    Raises:
        InputError: the checkpoint is of another run, or damaged.
    """
    saved = state.read(folder)
    if saved is None:
        return Existing(None)
    other, changes = _compare(saved, config, alone=fresh_on_mismatch)
    if saved.identity.tokenizer != identity.tokenizer:
        other.append(_pair("the tokenizer", saved.identity.tokenizer[:12], identity.tokenizer[:12]))
    elif saved.identity.data != identity.data:
        other.append(_pair("the shards", saved.identity.data[:12], identity.data[:12]))
    if saved.identity.code != identity.code:
        # Nobody can say what a change of the code does; it takes a request to lose work for it.
        if fresh_on_mismatch:
            other.append("the code")
        changes["code"] = "other code"
    if other and fresh_on_mismatch:
        return Existing(None, replaced=other)
    if other:
        raise InputError(
            f"{folder} belongs to another run: it differs in {', '.join(other)}; "
            f"choose another --out, move it away, or pass --fresh-on-mismatch"
        )
    return Existing(saved, changes=changes)


def _compare(saved: Saved, config: TrainConfig, *, alone: bool) -> tuple[list[str], dict[str, str]]:
    """Keys that make it another run, and those that do not, with both values."""
    before, now = flat(saved.config), flat(dataclasses.asdict(config))
    other, free = [], {}
    # A plan may change where it has not begun: a decay that branches off from a constant rate.
    branches = any(before.get(key) != now[key] for key in PLAN) and _same_so_far(saved, config)
    for key in (*now, *(before.keys() - now.keys())):
        if before.get(key) == now.get(key):
            continue
        pair = _pair(key, before.get(key), now.get(key))
        if key == "steps":
            done = saved.progress.step
            if config.steps < done:
                other.append(f"{pair} ({done} are done)")
            elif alone and not branches:
                other.append(pair)
            else:
                free[key] = pair
        elif (
            key == "init" or key.startswith(FREE) or (key in PLAN and branches)
        ):  # init's weights have a hash
            free[key] = pair
        else:
            other.append(pair)
    return other, free


def _same_so_far(saved: Saved, config: TrainConfig) -> bool:
    """Whether the steps done are those of a run with the new number of steps, by its schedules."""
    before = strict(TrainConfig, saved.config, "the checkpoint's configuration")
    return all(
        schedule.pace(before, step) == schedule.pace(config, step) for step in range(saved.progress.step)
    )


def bits(saved: Saved, flags: dict[str, Any], processes: int) -> list[str]:
    """What keeps the rest of the run from being bitwise what it would have been, with both values."""
    now = {**flags, "processes": processes}
    before = {**saved.flags, "processes": saved.processes}
    return [_pair(key, before[key], value) for key, value in now.items() if before.get(key, value) != value]


def trained_on(saved: Saved, config: TrainConfig) -> str:
    """How learning rates go on where the number of steps has changed."""
    before, done = saved.config["steps"], saved.progress.step
    plan = strict(ScheduleConfig, saved.config["schedule"], "the checkpoint's schedule")
    last = schedule.factor(plan, done - 1, before) if done else 0.0
    following = (
        f"{schedule.factor(config.schedule, done, config.steps):.3g}" if done < config.steps else "none"
    )
    return (
        f"steps {before} -> {config.steps}: from step {done} on the schedule is that of {config.steps} steps; "
        f"its factor was {last:.3g} and is now {following}"
    )


def _pair(key: str, before: object, now: object) -> str:
    return " ".join((key, _plain(before), "->", _plain(now)))


def _plain(value: object) -> str:
    text = str(value)
    return text if text.isprintable() else repr(text)
