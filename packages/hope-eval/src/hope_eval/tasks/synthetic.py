"""Accuracy on the synthetic task a checkpoint was trained on, by length.

Letters: B sequences, T tokens.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hope_data import tasks
from hope_data.errors import InputError
from hope_eval.results import Checkpoint, Items, TaskResult, fingerprint
from hope_eval.scoring.load import describe
from hope_eval.scoring.scorer import Scorer
from hope_eval.tasks.base import Stopwatch, refuse_rereading
from hope_model import LanguageModel, checkpoint
from hope_model.cpu import prepare_cpu
from hope_model.errors import InputError as ModelInputError

VERSION = 1


def load(folder: Path, device: str = "cpu") -> tuple[LanguageModel, dict[str, object], int, Checkpoint]:
    """A checkpoint that was trained on a task: the model, the task's description, its training length.

    Raises:
        InputError: damaged, or trained on text.
    """
    prepare_cpu()
    try:
        model, meta = checkpoint.load(folder, device=device)
    except ModelInputError as error:
        raise InputError(str(error)) from None
    if not meta.get("task"):
        raise InputError(f"{folder}: was trained on text, not on a task; use `hope-eval run`")
    return model, meta["task"], int(meta["length"]), describe(folder, model, meta)


def measure(
    scorer: Scorer,
    description: dict[str, object],
    lengths: Sequence[int],
    *,
    count: int = 256,
    seed: int = 0,
) -> TaskResult:
    """Read fresh sequences of each length and count the positions answered right.

    Args:
        scorer: of a model that was trained on the task.
        description: name and dials, as in `data.task` of its run.
        lengths: T of the sequences.
        count: sequences per length.
        seed: of the sequences, which are the same for every model.

    Raises:
        InputError: sequences are to be read more than once, or with answers.
    """
    refuse_rereading(scorer, "task")
    task, watch = tasks.build(description), Stopwatch(scorer)
    scorer.begin(str(description["name"]), count * sum(lengths))
    labels, weights, hits, exact, drawn = [], [], [], [], []
    for length in lengths:
        examples = tasks.draw(task, "test", seed, 0, count, length)
        drawn.append([column.tolist() for column in examples])
        for rows in scorer.batches(count, length):
            said_BT = scorer.likeliest(examples.tokens[rows])
            right_BT = (said_BT == examples.targets[rows]) & examples.mask[rows]
            asked_B, right_B = examples.mask[rows].sum(1), right_BT.sum(1)
            labels += [str(length)] * len(asked_B)
            weights += [1.0] * len(asked_B)
            hits += (right_B / asked_B).tolist()
            exact += (right_B == asked_B).astype(float).tolist()
    items = Items(
        labels={"length": labels},
        cluster=list(range(len(labels))),
        weight=weights,
        scores={"task_accuracy": np.round(hits, 6).tolist(), "task_exact": exact},
    )
    tokens, seconds = watch.stop()
    return TaskResult(
        task=str(description["name"]),
        version=VERSION,
        settings={"count": count, "lengths": list(lengths), **_dials(description)},
        seed=seed,
        items_sha256=fingerprint(drawn),
        tokens=tokens,
        seconds=seconds,
        metrics=[m for m in items.metrics({"task_accuracy": task.chance}) if m.group != "all"],
        items=items,
    )


def _dials(description: dict[str, object]) -> dict[str, int | float | str]:
    return {
        f"task.{k}": v for k, v in description.items() if isinstance(v, int | float | str) and k != "name"
    }
