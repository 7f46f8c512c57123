"""Progress of the studies and the time left: on a terminal a bar, elsewhere one line a training."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from hope_study.measure import COSTS
from hope_study.ledger import ASSUMED, Ledger
from hope_study.records import Record
from hope_study.study import Arm


class Display:
    """A bar over trainings on a terminal, one line for each elsewhere; both with the time left."""

    def __init__(self, ledger: Ledger, jobs: int, todo: list[Arm]) -> None:
        self._ledger, self._jobs, self._todo = ledger, jobs, todo
        self._console = Console(stderr=True)
        columns = (
            TextColumn("studies"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self._bar = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._task = self._bar.add_task("", total=sum(map(ledger.total, todo)), note="")

    def __enter__(self) -> Display:
        self._bar.start()
        self.say(estimate(self._ledger, self._jobs))
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def finished(self, record: Record) -> None:
        """Print what a training measured."""
        total = sum(map(self._ledger.total, self._todo))
        done = total - sum(map(self._ledger.left, self._todo))
        hours = self._ledger.hours(left=True) / self._jobs
        self._bar.update(self._task, completed=done, total=total, note=f"about {hours:.1f} h left")
        values = "; ".join(
            f"{value.group or value.length}: {value.value:.3f}"
            for value in record.metrics
            if value.name not in ("task_exact", *COSTS) and not set(">/") & set(value.group)
        )
        outcome = record.failed or values or f"validation {record.validation.get('val_loss', 0):.4f}"
        name = f"{record.study}/{record.arm}/{record.run}"
        self.say(f"{done}/{total} {name}: {outcome} ({record.wall_seconds:.0f} s); {hours:.1f} h left")

    def say(self, text: str) -> None:
        """Print a line, above the bar where there is one."""
        self._console.print(text, highlight=False, soft_wrap=True, markup=False)


def estimate(ledger: Ledger, jobs: int) -> str:
    """Say in one line how much is done and how long the rest will take."""
    arms = ledger.runnable()
    total = sum(map(ledger.total, arms))
    done = total - sum(map(ledger.left, arms))
    basis = f"{ledger.measured()} of {len(arms)} arms measured, the others by their like"
    if not ledger.measured():
        basis = f"at an assumed {ASSUMED:.0f} s each"
    hours, whole = ledger.hours(left=True) / jobs, ledger.hours(left=False) / jobs
    return (
        f"{done} of {total} results exist; the rest takes about {hours:.1f} h, all of them {whole:.1f} h, "
        f"with {jobs} processes ({basis})"
    )
