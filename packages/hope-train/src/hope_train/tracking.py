"""Where a run's numbers go: one interface; JSONL always, Weights & Biases if wanted, a display."""

import hashlib
import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hope_data.files import read_bytes
from hope_data.publishing import write_atomic
from hope_model.errors import InputError
from hope_model.ranges import shown
from hope_train.config import TrainConfig, flat

Row = Mapping[str, float]
LOG = "log.jsonl"
MODES = ("offline", "online", "disabled")


class Sink(Protocol):
    """A place for rows."""

    def log(self, row: Row) -> None:
        """Take one row; `step` is among its keys."""

    def close(self) -> None:
        """Write out what is left."""


class Jsonl:
    """One JSON object per line; a resumed run leaves no gap and no double row.

    Args:
        path: the file.
        step: rows after this step are dropped first: they belong to steps that will be done again.
        sha256: of the rows up to there, as `sha256` gave it; empty where it is not known.

    Raises:
        InputError: as `rows`.
    """

    def __init__(self, path: Path, step: int, sha256: str = "") -> None:
        kept = rows(path, step, sha256).encode() if step else b""
        write_atomic(path, kept)
        self._digest = hashlib.sha256(kept)
        self._stream = path.open("ab")

    def log(self, row: Row) -> None:
        """Append one row; it is on disk when this returns."""
        line = (json.dumps(row) + "\n").encode()
        self._stream.write(line)
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._digest.update(line)

    @property
    def sha256(self) -> str:
        """Of all rows so far."""
        return self._digest.hexdigest()

    def close(self) -> None:
        self._stream.close()


def rows(path: Path, step: int, sha256: str) -> str:
    """Return the rows of a log up to a step, '' where there is no log.

    Args:
        path: the file.
        step: of the checkpoint beside it.
        sha256: of those rows; empty where it is not known.

    Raises:
        InputError: a line that is no row, or rows other than those that were written.
    """
    if not path.exists():
        return ""
    try:
        # Whole lines: a kill may have torn the last one, and its step is done again anyway.
        lines = read_bytes(path).decode().split("\n")[:-1]
        kept = "".join(f"{line}\n" for line in lines if json.loads(line)["step"] <= step)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(f"{path}: a line of it is no row of a log; move the file away") from None
    if sha256 and hashlib.sha256(kept.encode()).hexdigest() != sha256:
        raise InputError(
            f"{path}: its rows up to step {step} are not those that the run wrote; "
            "put them back, or move the file away to do without them"
        )
    return kept


class Wandb:
    """Weights & Biases, quiet, with its files below the run's folder.

    Args:
        config: of the run.
        folder: of the run.
        mode: `offline` or `online`.
        attempt: same for a run and its continuations.
    """

    def __init__(self, config: TrainConfig, folder: Path, mode: str, attempt: str) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb  # noqa: PLC0415 (a second of start-up that only those pay who want it)

        try:
            self._run: Any = wandb.init(
                project=config.log.project,
                name=config.run,
                id=attempt,
                resume="allow" if mode == "online" else None,
                dir=folder,
                mode=mode,  # type: ignore[arg-type]
                config=asdict(config),
                settings=wandb.Settings(silent=True, console="off", x_disable_stats=config.device == "cpu"),
            )
        except wandb.errors.Error as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"Weights & Biases: {reason}; log.wandb=offline needs no account") from None

    def log(self, row: Row) -> None:
        self._run.log(dict(row), step=int(row["step"]))

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """MLflow, at any tracking URI.

    Args:
        config: of the run.
        attempt: same for a run and its continuations; a tag by which the run is found again.

    Raises:
        InputError: the package is not there, or the tracking URI cannot be used.
    """

    def __init__(self, config: TrainConfig, attempt: str) -> None:
        try:
            import mlflow  # noqa: PLC0415
        except ImportError:
            raise InputError(
                "log.mlflow: the package mlflow is missing; pip install 'hope-train[mlflow]'"
            ) from None
        self._mlflow: Any = mlflow
        try:
            mlflow.set_tracking_uri(config.log.mlflow)
            mlflow.set_experiment(config.log.project)
            runs = mlflow.search_runs(filter_string=f"tags.attempt = '{attempt}'", output_format="list")
            if runs:
                mlflow.start_run(run_id=runs[0].info.run_id)
            else:
                mlflow.start_run(run_name=config.run, tags={"attempt": attempt})
                # Parameters, not a file: for a database MLflow would keep files in ./mlruns.
                mlflow.log_params(flat(asdict(config)))
        except mlflow.exceptions.MlflowException as error:
            reason = str(error).splitlines()[0][:200]
            raise InputError(f"log.mlflow is {shown(config.log.mlflow)}: {reason}") from None

    def log(self, row: Row) -> None:
        step = int(row["step"])
        self._mlflow.log_metrics({k: v for k, v in row.items() if k != "step"}, step=step)

    def close(self) -> None:
        self._mlflow.end_run()


def wandb_mode(config: TrainConfig) -> str:
    """Return what Weights & Biases shall do: the variable WANDB_MODE wins over `log.wandb`.

    Raises:
        InputError: the variable is none of the modes.
    """
    mode = os.environ.get("WANDB_MODE") or config.log.wandb
    if mode not in MODES:
        raise InputError(f"WANDB_MODE is {shown(mode)}; choose one of {', '.join(MODES)}")
    return mode


def open_trackers(config: TrainConfig, folder: Path, attempt: str) -> list[Sink]:
    """Open the trackers that a configuration asks for, besides the log."""
    trackers: list[Sink] = []
    folder.mkdir(parents=True, exist_ok=True)
    if (mode := wandb_mode(config)) != "disabled":
        trackers.append(Wandb(config, folder, mode, attempt))
    if config.log.mlflow:
        trackers.append(MLflow(config, attempt))
    return trackers


class Display:
    """Progress for people, on stderr: a bar on a terminal, a line now and then elsewhere.

    Args:
        name: of the run.
        steps: steps in all.
        every: seconds between lines where there is no terminal.
        quiet: say nothing: another process of the run does.
    """

    def __init__(self, name: str, steps: int, every: float = 20.0, *, quiet: bool = False) -> None:
        self._console = Console(stderr=True, quiet=quiet)
        self._quiet = quiet
        self._every, self._name, self._steps = every, name, steps
        self._last = time.monotonic()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=self._console, disable=quiet or not self._console.is_terminal)
        self._task = self._bar.add_task(name, total=steps, note="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, step: int, loss: float, tokens_per_s: float, left: float) -> None:
        """Show where the run stands; loss in nats per token, `left` in seconds."""
        note = f"loss {loss:.3f}  {tokens_per_s:,.0f} tokens/s"
        self._bar.update(self._task, completed=step, note=note)
        now = time.monotonic()
        if self._console.is_terminal or now - self._last < self._every:
            return
        self._last = now
        self.say(f"{self._name}  step {step}/{self._steps}  {note}  {left:.0f} s left")

    def say(self, text: str) -> None:
        """Print one line without disturbing the bar."""
        if self._quiet:
            return
        if self._console.is_terminal:
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)
        else:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()
