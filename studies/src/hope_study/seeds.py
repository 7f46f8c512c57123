"""One run of the pipeline with every seed of params.yaml: trainings side by side, then evaluations side by side.

    runs/RUN/config.yaml            composed, with the first seed
    runs/RUN/seeds/SEED/            checkpoint/ and log.jsonl, as `hope-train run` writes them
    runs/RUN/checkpoint             link to the first seed's
    reports/results/RUN/SEED.json   as `hope-eval run` writes it
    reports/results/RUN/surprise-CORPUS.html    of the pipeline's first run: a test document by what writing saved

Each seed is a process with one thread. A seed that was interrupted resumes from its checkpoint, a finished one is kept.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hope_data.files import write_json
from hope_data.publishing import write_atomic
from hope_data.shards import Split
from hope_data.tokenizer import Tokenizer
from hope_model.errors import InputError
from hope_model.ranges import check_ranges, shown, within
from hope_study.side_by_side import FINISHED, Rest, Task, at_a_time, side_by_side
from hope_train import config as configuration
from hope_train.values import read_yaml, strict

TASKS = ("perplexity", "choice", "passkey")  # as hope_eval.tasks.held_out has them
KEPT = ("tokens_per_s", "flops_per_token", "parameters")  # of a training's numbers
SHOWN, TOKENS = 3, 768  # test documents with a page of their own, and their tokens
# What an evaluation costs in tokens of training, and an adaptation in evaluations: means of reports/results.md.
EVALUATION, ADAPTATION = 155_000, 0.7
PASS = re.compile(
    r"([\d,]+) of about ([\d,]+) tokens, .*; (\d+) of (\d+)$"
)  # as hope_eval.progress writes it


def train(
    run: str,
    seeds: Sequence[str],
    runs: Path,
    metrics: Path,
    of: Sequence[str],
    how: Evaluation | None = None,
) -> int:
    """Train every seed of a run, or resume it.

    Args:
        run: its name; `runs/RUN/config.yaml` is there.
        seeds: numbers, as text.
        runs: folder of all runs.
        metrics: file for the means over seeds; those of other runs are beside it.
        of: all runs of the pipeline, for the display.
        how: they are evaluated, for the display.

    Returns:
        Exit status: 0 finished, 75 stopped with everything saved.
    """
    config = configuration.load(runs / run / "config.yaml")
    home = runs / run / "seeds"
    tasks = []
    for seed in seeds:
        folder = home / seed
        same = (folder / "config.yaml").is_file() and (folder / "config.yaml").read_bytes() == _with_seed(
            config, seed
        )
        write_atomic(folder / "config.yaml", _with_seed(config, seed))
        command = ["hope-train", "run", str(folder / "config.yaml"), "--fresh-on-mismatch"]
        command += ["--out", str(folder), "--json", str(folder / "train.json")]
        (folder / "train.json").unlink(missing_ok=True)
        tasks.append(
            Task(seed, command, _steps(folder / "log.jsonl", config.steps, 0.0 if same else time.time()))
        )
    for other in home.iterdir():  # the result shall be that of the present parameters alone
        if other.is_dir() and other.name not in seeds:
            shutil.rmtree(other)
    later = [name for name in of if name != run and not _finished(runs / name, seeds)]
    times = {run: 1.0} | _relative_times(run, later, metrics.parent)
    tokens = config.steps * config.batch_size * config.length
    evaluation = (
        _evaluation_cost(of, seeds[0], runs, metrics.parents[1] / "results", how) or EVALUATION / tokens
    )
    work = sum(times[name] * (1 + evaluation * _passes(how, name)) for name in times) - 1
    title = f"{run}, {_numbered('training', len(of) - len(later), len(of), len(seeds))}"
    rest = Rest(["evaluations", *later], work) if how else Rest(later, sum(times.values()) - 1)
    status = side_by_side(title, tasks, runs / run, config.device, rest)
    if status == FINISHED:
        numbers = [json.loads((home / seed / "train.json").read_text()) for seed in seeds]
        write_json(metrics, {run: _means(numbers)})
        link = runs / run / "checkpoint"
        if link.is_symlink() or not link.exists():
            link.unlink(missing_ok=True)
            link.symlink_to(Path("seeds", seeds[0], "checkpoint"))
    return status


def _numbered(what: str, place: int, runs: int, seeds: int) -> str:
    """Say which of all seeds' trainings or evaluations those of the run at `place`, counted from 1, are."""
    first, last = (place - 1) * seeds + 1, place * seeds
    return f"{what}s {first} to {last} of {runs * seeds}" if seeds > 1 else f"{what} {first} of {runs}"


def _passes(how: Evaluation | None, run: str) -> float:
    """Return how long evaluating a run takes, in evaluations without adaptations."""
    return 1 + ADAPTATION * len(how.adapt.get(run, [])) if how else 0.0


def _evaluation_cost(
    of: Sequence[str], seed: str, runs: Path, results: Path, how: Evaluation | None
) -> float | None:
    """Return what an evaluation without adaptations costs in trainings, by the first run that had both."""
    for name in of:
        with contextlib.suppress(OSError, ValueError, KeyError, ZeroDivisionError):
            trained = json.loads((runs / name / "seeds" / seed / "train.json").read_text())["seconds"]
            evaluated = json.loads((results / name / f"{seed}.json").read_text())["seconds"]
            return float(evaluated / trained / _passes(how, name))
    return None


def _with_seed(config: configuration.TrainConfig, seed: str) -> bytes:
    return configuration.dump(dataclasses.replace(config, seed=int(seed))).encode()


def _finished(folder: Path, seeds: Sequence[str]) -> bool:
    """Whether a run has been trained as its configuration says now."""
    if not (folder / "config.yaml").is_file():
        return False
    config = configuration.load(folder / "config.yaml")
    trained = [
        folder / "seeds" / seed for seed in seeds if (folder / "seeds" / seed / "train.json").is_file()
    ]
    return len(trained) == len(seeds) and all(
        (one / "config.yaml").read_bytes() == _with_seed(config, one.name) for one in trained
    )


def _relative_times(run: str, later: Sequence[str], metrics: Path) -> dict[str, float]:
    """Times of the trainings still to come as multiples of this one's, by the speeds of the last time; 1 if unknown."""
    speeds = {}
    for name in (run, *later):
        with contextlib.suppress(OSError, ValueError, KeyError):
            speeds[name] = float(
                json.loads((metrics / f"train_{name}.json").read_text())[name]["tokens_per_s"]
            )
    return {name: speeds[run] / speeds[name] if {run, name} <= set(speeds) else 1.0 for name in later}


def _means(numbers: Sequence[dict[str, float]]) -> dict[str, float]:
    means = {key: sum(one[key] for one in numbers) / len(numbers) for key in KEPT}
    return {key: int(value) if key == "parameters" else float(f"{value:.4g}") for key, value in means.items()}


def _steps(log: Path, steps: int, since: float) -> Callable[[], float]:
    """Return what tells the share of a training's steps; a log of before `since` is of another configuration."""

    def done() -> float:
        with contextlib.suppress(OSError, ValueError, IndexError, KeyError):
            if log.stat().st_mtime >= since:
                return float(json.loads(log.read_bytes().splitlines()[-1])["step"]) / steps
        return 0.0

    return done


def _passed(output: Path) -> Callable[[], float]:
    """Return what tells the share of an evaluation's passes over its text."""

    def done() -> float:
        with contextlib.suppress(OSError):
            for line in reversed(output.read_text(errors="replace").splitlines()):
                if found := PASS.search(line):
                    tokens, of, number, passes = (int(part.replace(",", "")) for part in found.groups())
                    return (number - 1 + min(1.0, tokens / of)) / passes
        return 0.0

    return done


@dataclass(frozen=True)
class Evaluation:
    """How the pipeline evaluates: conf/evaluate.yaml.

    Attributes:
        limit: `hope-eval run --limit`; 0: none.
        adapt: by run, adaptations at test time as `hope-eval run --adapt` takes them, for bits per byte alone.
        tasks: of `TASKS`, `perplexity` among them.
    """

    limit: int = field(default=0, metadata=within(0, 2**40))
    adapt: dict[str, list[str]] = field(default_factory=dict)
    tasks: list[str] = field(default_factory=lambda: list(TASKS))

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_ranges(self, "")
        if not {TASKS[0]} <= set(self.tasks) <= set(TASKS):
            raise InputError(
                f"tasks is {shown(self.tasks)}; name {TASKS[0]} and any of {', '.join(TASKS[1:])}"
            )


def evaluation(path: Path) -> Evaluation:
    """Read the file; without one nothing is limited or adapted."""
    return strict(Evaluation, read_yaml(path), str(path)) if path.is_file() else Evaluation()


def evaluate(
    run: str,
    seeds: Sequence[str],
    runs: Path,
    out: Path,
    data: Path,
    how: Evaluation = Evaluation(),
    corpora: Sequence[str] = (),
    of: Sequence[str] = (),
) -> int:
    """Evaluate every seed of a run on the same items.

    Args:
        run: its name.
        seeds: numbers, as text.
        runs: folder of all runs.
        out: folder for `SEED.json`.
        data: folder of `shards` and `tokenizer`.
        how: see `Evaluation`.
        corpora: whose test documents get a page, each the first that is long enough.
        of: all runs of the pipeline, for the display.
    """
    out.mkdir(parents=True, exist_ok=True)
    for other in out.glob("*.*"):
        if other.suffix == ".html" or other.stem not in seeds:
            other.unlink()
    config, adapt = configuration.load(runs / run / "config.yaml"), how.adapt.get(run, [])
    tasks = []
    for seed in seeds:
        folder, path = runs / run / "seeds" / seed, out / f"{seed}.json"
        command = ["hope-eval", "run", "--checkpoint", str(folder / "checkpoint"), "--json", str(path)]
        command += ["--shards", str(data / "shards"), "--tokenizer", str(data / "tokenizer")]
        command += [] if how.tasks == list(TASKS) else ["--tasks", ",".join(how.tasks)]
        command += ["--limit", str(how.limit)] if how.limit else []
        command += [f"--adapt={text}" for text in adapt] + (["--adapt-tasks=perplexity"] if adapt else [])
        output = runs / run / f"hope-eval-{seed}.txt"
        output.unlink(missing_ok=True)
        tasks.append(Task(seed, command, _passed(output)))
    checkpoint = runs / run / "seeds" / seeds[0] / "checkpoint"
    own = not config.model.variant.startswith("transformer")
    for corpus, text in _test_documents(data, corpora if own or adapt else ()):
        file = runs / run / "surprise" / f"{corpus}.txt"
        write_atomic(file, text.encode())
        command = ["hope-eval", "surprise", str(checkpoint), str(file), "--tokens", str(TOKENS)]
        command += ["--html", str(out / f"surprise-{corpus}.html"), "--tokenizer", str(data / "tokenizer")]
        tasks.append(
            Task(f"surprise-{corpus}", command + ([] if own else ["--adapt", adapt[0]]), lambda: 0.0, 0.1)
        )
    later = [name for name in of if name != run and not _finished(runs / name, seeds)]
    title = f"{run}, {_numbered('evaluation', max(1, len(of) - len(later)), max(1, len(of)), len(seeds))}"
    times = _relative_times(run, later, out.parent.parent / "metrics")
    evaluations = sum(times[name] * _passes(how, name) for name in later) / _passes(how, run)
    rest = Rest(later, evaluations, _seconds(runs / run, seeds) * sum(times.values()))
    return side_by_side(title, tasks, runs / run, "auto", rest)


def _seconds(folder: Path, seeds: Sequence[str]) -> float:
    """Return how long a run's trainings took side by side, 0 if unknown."""
    each = []
    for seed in seeds:
        with contextlib.suppress(OSError, ValueError, KeyError):
            each.append(float(json.loads((folder / "seeds" / seed / "train.json").read_text())["seconds"]))
    turns = -(-len(seeds) // at_a_time(len(seeds), len(os.sched_getaffinity(0))))
    return turns * max(each, default=0.0)


def _test_documents(data: Path, corpora: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield a test document of some corpora: the first that is long enough, else the longest."""
    if not corpora:
        return
    tokenizer = Tokenizer.load(data / "tokenizer")
    for corpus in corpora[:SHOWN]:
        split = Split.open(data / "shards" / corpus, "test", tokenizer)
        documents = [split.document(n) for n in range(split.n_documents)]
        long = next((one for one in documents if len(one) >= TOKENS), max(documents, key=len))
        yield corpus, tokenizer.decode(long[:TOKENS].tolist())
