"""The suite: lm-eval evaluates, the result is ours: n, standard error, chance, every item's score."""

import logging
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hope_data.errors import InputError
from hope_eval.files import find
from hope_eval.lm_eval_bridge import mirror
from hope_eval.results import Items, Metric, TaskResult, rounded
from hope_eval.results.statistics import ratio
from hope_eval.scoring.load import Loaded
from hope_eval.scoring.scorer import Scorer
from hope_eval.tasks.base import Stopwatch, Task

if TYPE_CHECKING:
    from hope_eval.lm_eval_bridge.model import HopeLM

SUITE = tuple(mirror.FILES)
VERSION = 1
# Scores of single rows that lm-eval's tasks give, with the names they have in results.
SCORES = {"acc": "acc", "acc_norm": "acc_norm", "exact_match": "exact_match"}


@dataclass(frozen=True)
class ZeroShot(Task):
    """Tasks of lm-eval.

    Attributes:
        tasks: names; none given means `SUITE`.
        mirror: folder with the rows; None takes them from the hub.
        limit: the first rows only, for a quick look.
        max_length: tokens of context; 0: the training length.
    """

    tasks: Sequence[str] = ()
    mirror: Path | None = None
    limit: int | None = None
    max_length: int = 0

    def __post_init__(self) -> None:
        os.environ["TQDM_DISABLE"] = "1"  # read when tqdm is imported; our own bar shows the progress
        try:
            import lm_eval  # noqa: F401, PLC0415 (optional)
        except ImportError as error:
            raise InputError(
                f"zeroshot needs lm-eval ({error.name}); pip install 'hope-eval[lm-eval]'"
            ) from None

    def run(self, loaded: Loaded, scorer: Scorer) -> list[TaskResult]:
        from hope_eval.lm_eval_bridge.model import HopeLM  # noqa: PLC0415 (optional, and slow to import)

        lm = HopeLM(loaded, max_length=self.max_length, batch_tokens=scorer.batch_tokens)
        lm.scorer = scorer
        return evaluate(lm, list(self.tasks) or SUITE, self.mirror, self.limit)


def evaluate(
    lm: "HopeLM", tasks: Sequence[str], folder: Path | None, limit: int | None = None
) -> list[TaskResult]:
    """Run tasks of lm-eval.

    Args:
        lm: the model.
        tasks: names; with a mirror, of `SUITE`.
        folder: the mirror; None takes the rows from the hub.
        limit: the first rows only, for a quick look.

    Raises:
        InputError: an unknown task, or a mirror that lacks a file or a field.
    """
    from lm_eval.tasks import TaskManager  # noqa: PLC0415 (optional, and slow to import)

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if folder is not None:
        unknown = [task for task in tasks if task not in SUITE]
        if unknown:
            raise InputError(f"unknown task '{unknown[0]}'; with --mirror choose among {', '.join(SUITE)}")
        for task in tasks:
            find(folder, mirror.FILES[task].file)
        with tempfile.TemporaryDirectory() as definitions:
            mirror.write_tasks(Path(definitions), folder, list(tasks), limit)
            manager = TaskManager(include_path=definitions, include_defaults=False)
            return [_task(lm, manager, task, limit) for task in tasks]
    os.environ.setdefault("HF_DATASETS_TRUST_REMOTE_CODE", "0")
    manager = TaskManager()
    unknown = [task for task in tasks if task not in manager.all_tasks]
    if unknown:
        raise InputError(f"unknown task '{unknown[0]}'; `lm_eval ls tasks` lists those of lm-eval")
    return [_task(lm, manager, task, limit) for task in tasks]


def _task(lm: "HopeLM", manager: Any, name: str, limit: int | None) -> TaskResult:
    from lm_eval import evaluator  # noqa: PLC0415

    try:
        loaded = manager.load([name])
    except (OSError, ConnectionError) as error:
        raise InputError(
            f"{name}: its data set is not to be had ({' '.join(str(error).split())[:120]}); use --mirror FOLDER"
        ) from None
    oracle = lm.scorer.memorize is not None and lm.scorer.memorize.oracle
    lm.answers = _answers(loaded["tasks"][name]) if oracle and name in loaded["tasks"] else {}
    lm.title, watch = name, Stopwatch(lm.scorer, name, None)
    evaluated = evaluator.evaluate(lm, loaded, limit=limit, bootstrap_iters=0, log_samples=True)
    (task, samples), *others = evaluated["samples"].items()
    if others:
        raise InputError(
            f"{name}: is a group of tasks; name them one by one: {task}, {', '.join(k for k, _ in others)}"
        )
    items, extra = _items(samples)
    chance = mirror.FILES[task].chance if task in mirror.FILES else None
    hashes = [[sample["doc_hash"], sample["prompt_hash"], sample["target_hash"]] for sample in samples]
    return watch.finish(
        task=task,
        version=VERSION,
        settings={
            "lm_eval": version("lm-eval"),
            "task_version": str(evaluated["versions"].get(task, "")),
            "max_length": lm.max_length,
            "limit": limit or 0,
        },
        seed=0,
        items=items,
        identity=[task, VERSION, hashes],
        metrics=[*items.metrics({"acc": chance, "acc_norm": chance} if chance else None), *extra],
        notes=_notes(task, samples),
    )


def _answers(task: Any) -> dict[str, str]:
    """Correct answer by context, for the oracle; empty where a task's choices differ in context."""
    if task.OUTPUT_TYPE not in ("multiple_choice", "loglikelihood") or getattr(task, "multiple_input", False):
        return {}
    answers = {}
    for doc in task.eval_docs:
        target = task.doc_to_target(doc)
        if task.OUTPUT_TYPE == "multiple_choice":
            choices = task.doc_to_choice(doc)
            target = choices[target] if isinstance(target, int) else target
            target = f"{task.config.target_delimiter}{target}"
        answers[task.doc_to_text(doc)] = target
    return answers


def _items(samples: Sequence[dict[str, Any]]) -> tuple[Items, list[Metric]]:
    """Items of one task: accuracies per row, or nats and bytes per text with the perplexities that follow."""
    first = samples[0]
    cluster = [int(sample["doc_id"]) for sample in samples]
    if "word_perplexity" in first:
        nats = [-sample["word_perplexity"][0] for sample in samples]
        words = [float(sample["word_perplexity"][1]) for sample in samples]
        weight = [float(sample["bits_per_byte"][1]) for sample in samples]
        scores = {"bits_per_byte": rounded([x / math.log(2) for x in nats])}
        return Items({}, cluster, weight, scores), [_perplexity("word_perplexity", nats, words, cluster)]
    scores = {SCORES[name]: [float(sample[name]) for sample in samples] for name in SCORES if name in first}
    extra = []
    if "perplexity" in first:
        nats = [-float(sample["perplexity"]) for sample in samples]
        scores["target_nats"] = rounded(nats)
        extra = [_perplexity("perplexity", nats, [1.0] * len(nats), cluster)]
    if not scores:
        raise InputError(
            f"its metrics {', '.join(first['metrics'])} are not among those hope-eval knows; use `lm_eval`"
        )
    return Items({}, cluster, [1.0] * len(samples), scores), extra


def _perplexity(name: str, nats: list[float], weight: list[float], cluster: list[int]) -> Metric:
    """exp of a mean; its standard error by the delta method."""
    mean = ratio(nats, weight, cluster)
    value = math.exp(min(mean.value, 700.0))
    stderr = None if mean.stderr is None else value * mean.stderr
    return Metric(name, "all", value, stderr, mean.n, mean.clusters)


def _notes(task: str, samples: Sequence[dict[str, Any]]) -> list[str]:
    notes = []
    if task == "hellaswag" and "ctx" in samples[0]["doc"] and "ind" not in samples[0]["doc"]:
        notes.append("the mirror has the joined context only; where its last sentence begins is inferred")
    if "acc" in samples[0] and len(samples[0]["arguments"]) > 1 < len(samples):
        scores = [[logp for logp, _ in sample["filtered_resps"]] for sample in samples]
        picked = {row.index(max(row)) for row in scores}
        if len(picked) == 1:
            # Of small models: yes or no, or a letter, by its frequency. Two such models are equal to the last digit.
            notes.append(
                f"every row got answer {picked.pop() + 1} of {len(scores[0])}: "
                "acc is the share of rows where it is right"
            )
    return notes
