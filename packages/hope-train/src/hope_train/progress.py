"""How far the studies are, and how long the rest will take: on a terminal a bar, elsewhere a line each."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

if TYPE_CHECKING:
    from hope_train.ablations import Suite
    from hope_train.study import Chain, Unit

ASSUMED = 60.0  # seconds of a training nobody has measured


class Display:
    """A bar over trainings on a terminal, a line for each elsewhere; both with the time left."""

    def __init__(self, suite: Suite, todo: list[Chain]) -> None:
        self._suite, self._todo = suite, todo
        self._console = Console(stderr=True)
        columns = (
            TextColumn("ablations"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self._bar = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._total = sum(map(suite.total, todo))
        self._task = self._bar.add_task("", total=self._total, note="")

    def __enter__(self) -> Display:
        self._bar.start()
        self.say(estimate(self._suite))
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def finished(self, unit: Unit, record: dict[str, Any]) -> None:
        """Tell what a training found."""
        done, hours = progress(self._suite)
        self._total = sum(map(self._suite.total, self._todo))
        self._bar.update(self._task, completed=done, total=self._total, note=f"about {hours:.1f} h left")
        score = "; ".join(
            f"{m.get('group') or m['length']}: {m['value']:.3f}"
            for m in record["metrics"]
            if m["name"] != "task_exact" and ">" not in m.get("group", "")
        )
        found = record["failed"] or score or f"validation {record['validation'].get('val_loss', 0):.4f}"
        self.say(
            f"{done}/{self._total} {unit.config.run}: {found} ({record['wall_seconds']:.0f} s); {hours:.1f} h left"
        )

    def say(self, text: str) -> None:
        """A line, above the bar where there is one."""
        self._console.print(text, highlight=False, soft_wrap=True)


def progress(suite: Suite) -> tuple[int, float]:
    """Results that are there, and hours that the others will take."""
    chains = [chain for chain in suite.chains if not chain.missing]
    done = sum(suite.total(chain) - suite.left(chain) for chain in chains)
    return done, _hours(suite, suite.untrained)


def _hours(suite: Suite, of: Callable[[Chain], list[str]]) -> float:
    """What trainings take, each counted once, however many arms it answers for."""
    seconds = {key: suite.seconds(chain) for chain in suite.chains if not chain.missing for key in of(chain)}
    return sum(seconds.values()) / suite.jobs / 3600


def estimate(suite: Suite) -> str:
    """One line: how much is done and how long the rest will take."""
    done, hours = progress(suite)
    chains = [chain for chain in suite.chains if not chain.missing]
    total, whole = sum(map(suite.total, chains)), _hours(suite, suite.trainings)
    basis = f"{suite.measured()} of {len(chains)} arms measured, the others by their like"
    if not suite.measured():
        basis = f"at an assumed {ASSUMED:.0f} s each"
    return (
        f"{done} of {total} results there; the rest takes about {hours:.1f} h, all of them {whole:.1f} h, "
        f"on {suite.jobs} processes ({basis})"
    )
