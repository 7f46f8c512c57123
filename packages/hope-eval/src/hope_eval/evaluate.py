"""The driver of every evaluator: load the model, run a task, merge with the result file, write it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hope_data.errors import InputError
from hope_data.publishing import exclusive, write_atomic
from hope_eval import results as schema
from hope_eval.lm_eval_bridge.run import ZeroShot
from hope_eval.progress import Display
from hope_eval.results import PairedDifference, Results, TaskResult
from hope_eval.scoring.about import evaluator
from hope_eval.scoring.adaptation import Adaptation
from hope_eval.scoring.load import Loaded
from hope_eval.scoring.memorize import Memorize
from hope_eval.scoring.paired import adapted, both
from hope_eval.scoring.scorer import Scorer
from hope_eval.tasks.babi import Babi
from hope_eval.tasks.base import Task
from hope_eval.tasks.books import Books
from hope_eval.tasks.continual import Continual
from hope_eval.tasks.held_out import HeldOut
from hope_eval.tasks.needle import Needle
from hope_eval.tasks.synthetic import Synthetic

EVALUATORS: dict[str, type[Task]] = {
    "run": HeldOut,
    "zeroshot": ZeroShot,
    "needle": Needle,
    "books": Books,
    "babi": Babi,
    "continual": Continual,
    "task": Synthetic,
}


@dataclass(frozen=True)
class Request:
    """What every evaluator is told.

    Attributes:
        checkpoint: folder of ours, or of transformers.
        json: result file.
        tokenizer: its folder; None looks for the one that the checkpoint names.
        add: keep other tasks of the result file.
        device: where to compute.
        batch_tokens: most tokens in one forward pass.
        memorize: run everything with memories frozen, and written in this way.
        adapt: run everything plain, then adapted in each of these ways.
    """

    checkpoint: Path
    json: Path
    tokenizer: Path | None = None
    add: bool = False
    device: str = "cpu"
    batch_tokens: int = 1024
    memorize: Memorize | None = None
    adapt: Sequence[Adaptation] = ()


def evaluate(request: Request, task: Task) -> Results:
    """Run one evaluator and write its result file.

    Raises:
        InputError: something is missing, damaged or does not fit; the result file is then as before.
    """
    if request.adapt and request.memorize:
        raise InputError("--adapt and --memorize exclude each other; give one of them")
    if request.memorize:
        task.refuse(request.memorize)
    start, existing = time.monotonic(), stored(request.json, add=request.add)
    with Display() as display:
        display.begin("loading", None)
        loaded = task.load(request.checkpoint, request.tokenizer, request.device)
        check_same(request.json, existing, loaded.about.sha256)
        scorer = Scorer(loaded.model, request.device, request.batch_tokens, display.advance)
        scorer.begin = display.begin
        display.passes = task.passes(len(request.adapt)) * (2 if request.memorize else 1)
        tasks, differences = _run(request, task, loaded, scorer)
    seconds = round(time.monotonic() - start, 3)
    result = Results(schema.SCHEMA, loaded.about, evaluator(request.device), tasks, seconds, differences)
    write(request.json, result, add=request.add)
    return result


def _run(
    request: Request, task: Task, loaded: Loaded, scorer: Scorer
) -> tuple[list[TaskResult], list[PairedDifference]]:
    """Run a task as trained, or twice where the model memorises or adapts while it reads."""

    def run(scorer: Scorer) -> list[TaskResult]:
        return task.run(loaded, scorer)

    if request.adapt:
        texts, again = task.training_text(loaded), task.adapted()
        return adapted(
            scorer,
            request.adapt,
            run,
            lambda scorer: again.run(loaded, scorer),
            length=task.window(loaded),
            texts=texts,
        )
    if request.memorize:
        return both(scorer, request.memorize, run)
    return run(scorer), []


def stored(path: Path, *, add: bool) -> Results | None:
    """Return what the result file holds, where it is to be kept."""
    return schema.load(path) if add and path.is_file() else None


def write(path: Path, result: Results, *, add: bool = False) -> None:
    """Write a result, or add it to the file; several that add at once wait for each other."""
    with exclusive(path, wait=True):
        existing = stored(path, add=add)
        check_same(path, existing, result.checkpoint.sha256)
        write_atomic(path, schema.sealed(schema.merge(existing, result) if existing else result))


def check_same(path: Path, existing: Results | None, sha256: str) -> None:
    """Refuse to add to results of other weights."""
    if existing and existing.checkpoint.sha256 != sha256:
        raise InputError(f"{path}: holds results of other weights; leave out --add or name another file")
