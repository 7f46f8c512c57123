"""From folders to results: load a checkpoint, check that everything fits together, run the tasks."""

import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import hope_data
import hope_eval
import hope_model
from hope_data import shards
from hope_data.errors import InputError
from hope_data.shards import Split
from hope_data.tokenizer import Tokenizer
from hope_eval.names import trained_length
from hope_eval.progress import Display
from hope_eval.results import SCHEMA, Checkpoint, Evaluator, Results, TaskResult
from hope_eval.scoring.adaptation import Adaptation, adapted
from hope_eval.scoring.load import HopeModel, check_tokenizer, describe
from hope_eval.scoring.memorize import Memorize, both
from hope_eval.scoring.scorer import Scorer
from hope_eval.tasks import TASKS, USUAL
from hope_eval.tasks.base import Context
from hope_eval.tasks.tune import training_texts
from hope_model import LanguageModel, checkpoint
from hope_model.cpu import prepare_cpu
from hope_model.errors import InputError as ModelInputError

LENGTH = 512  # of windows, where the checkpoint does not say what it was trained with


@dataclass(frozen=True)
class Request:
    """One evaluation.

    Attributes:
        checkpoint: folder written by hope-model.
        shards: folder with one folder of shards per corpus.
        tokenizer: folder of the tokenizer.
        tasks: names of `tasks.TASKS`.
        domains: corpora to evaluate on; none given means those it was trained on.
        length: tokens of a window; 0 takes the training length.
        limit: see `tasks.base.Context`.
        seed: of the items; the same seed gives every checkpoint the same items.
        device: where to compute.
        batch_tokens: most tokens in one forward pass.
        memorize: run everything with memories frozen and so, too.
        adapt: run everything plain and so, too.
    """

    checkpoint: Path
    shards: Path
    tokenizer: Path
    tasks: Sequence[str] = USUAL
    domains: Sequence[str] = ()
    length: int = 0
    limit: int | None = None
    seed: int = 0
    device: str = "cpu"
    batch_tokens: int = 4096
    memorize: Memorize | None = None
    adapt: Adaptation | None = None


def evaluate(request: Request) -> Results:
    """Run the tasks.

    Raises:
        InputError: something is missing, damaged, or of another tokenizer.
    """
    try:
        return _evaluate(request)
    except ModelInputError as error:
        raise InputError(str(error)) from None


def _evaluate(request: Request) -> Results:
    start = time.monotonic()
    unknown = [name for name in request.tasks if name not in TASKS]
    if unknown or not request.tasks:
        raise InputError(f"unknown task '{''.join(unknown[:1])}'; choose among {', '.join(TASKS)}")
    if request.adapt and request.memorize:
        raise InputError("--adapt and --memorize exclude each other; give one of them")
    with opened(request) as (context, about):

        def run(scorer: Scorer) -> list[TaskResult]:
            given = replace(context, scorer=scorer)
            return [result for name in request.tasks for result in TASKS[name](given)]

        if request.adapt:
            texts = training_texts(context)
            done, differences = adapted(
                context.scorer, request.adapt, run, length=context.length, texts=texts
            )
        elif request.memorize:
            done, differences = both(context.scorer, request.memorize, run)
        else:
            done, differences = run(context.scorer), []
    return Results(
        schema=SCHEMA,
        checkpoint=about,
        evaluator=Evaluator(
            revision(), version("hope-eval"), torch.__version__, request.device, torch.get_num_threads()
        ),
        tasks=done,
        seconds=round(time.monotonic() - start, 3),
        memorized=differences,
    )


@contextmanager
def opened(
    request: Request, splits: Sequence[str] = ("train", "test")
) -> Iterator[tuple[Context, Checkpoint]]:
    """The model and the text of a request, known to belong together, and what results say of the checkpoint.

    Args:
        request: its tasks and what is done at test time do not matter here.
        splits: what has to be there of every corpus.
    """
    tokenizer = Tokenizer.load(request.tokenizer)
    prepare_cpu()
    model, meta = checkpoint.load(request.checkpoint, device=request.device)
    trained = trained_length(request.checkpoint, meta, LENGTH)
    domains = _check(request, model, meta, tokenizer, splits)
    with Display() as display:
        context = Context(
            scorer=Scorer(
                HopeModel(model, request.device, tokens=tokenizer.vocab_size),
                request.device,
                request.batch_tokens,
                display.advance,
            ),
            tokenizer=tokenizer,
            domains=domains,
            length=request.length or trained,
            limit=request.limit,
            seed=request.seed,
            display=display,
        )
        yield context, describe(request.checkpoint, model, meta)


def revision() -> str:
    """Git revision of the evaluating code, `-dirty` where the code was changed; `unknown` outside git."""
    folders = [path for package in (hope_eval, hope_model, hope_data) for path in package.__path__]

    def git(*arguments: str) -> str:
        command = ["git", "-C", folders[0], *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        if not git("ls-files", "."):
            return "unknown"
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--", *folders) else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _check(
    request: Request,
    model: LanguageModel,
    meta: dict[str, Any],
    tokenizer: Tokenizer,
    splits: Sequence[str],
) -> dict[str, Path]:
    """Domains by name, once checkpoint, tokenizer and shards are known to belong together."""
    check_tokenizer(request.checkpoint, model, meta, tokenizer, request.tokenizer)
    own = meta.get("corpora", [])
    if not isinstance(own, list) or not all(isinstance(name, str) for name in own):
        raise InputError(f"{request.checkpoint / 'meta.json'}: corpora is no list of names; save it again")
    folders = corpora(request.shards, list(request.domains or own))
    for folder in folders:
        for name in splits:
            Split.open(folder, name, tokenizer)
    return {folder.name: folder for folder in folders}


def corpora(folder: Path, names: list[str]) -> list[Path]:
    """Folders of shards by name, or all of them.

    Raises:
        InputError: none there, or a name that is not among them, which are listed.
    """
    there = sorted(path.name for path in shards.corpora(folder))
    missing = [name for name in names if not (folder / name / shards.INDEX).is_file()]
    if missing and len(there) > 0:
        raise InputError(f"{folder}: no shards of corpus {', '.join(missing)}; there are {', '.join(there)}")
    return shards.corpora(folder, names)
