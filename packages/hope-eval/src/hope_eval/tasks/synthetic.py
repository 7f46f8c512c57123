"""Accuracy on the synthetic task a checkpoint was trained on, by length.

Letters: B sequences, T tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hope_data import tasks
from hope_data.errors import InputError
from hope_eval.results import Items, TaskResult
from hope_eval.scoring.about import describe
from hope_eval.scoring.load import HopeModel, Loaded, load_weights
from hope_eval.scoring.memorize import Memorize, refuse_rereading
from hope_eval.scoring.scorer import Scorer
from hope_eval.tasks.base import Stopwatch, Task

VERSION = 1


@dataclass(frozen=True)
class Synthetic(Task):
    """Fresh sequences of the task a checkpoint was trained on.

    Attributes:
        lengths: tokens, or `2x` for twice the training length.
        count: sequences per length.
        seed: of the sequences.
    """

    lengths: Sequence[str] = ("1x", "2x", "4x", "8x")
    count: int = 256
    seed: int = 0

    def load(self, checkpoint: Path, tokenizer: Path | None, device: str) -> Loaded:
        """Load a checkpoint that was trained on a task.

        Raises:
            InputError: damaged, or trained on text.
        """
        del tokenizer
        model, meta = load_weights(checkpoint, device)
        if not meta.get("task"):
            raise InputError(f"{checkpoint}: was trained on text, not on a task; use `hope-eval run`")
        about = describe(checkpoint, model, meta)
        return Loaded(HopeModel(model, device), about, int(meta["length"]), meta, None)

    def refuse(self, memorize: Memorize) -> None:
        refuse_rereading(memorize, "task")

    def run(self, loaded: Loaded, scorer: Scorer) -> list[TaskResult]:
        lengths = [
            int(text.removesuffix("x")) * (loaded.length if text.endswith("x") else 1)
            for text in self.lengths
        ]
        return [measure(scorer, loaded.meta["task"], lengths, count=self.count, seed=self.seed)]

    def is_headline(self, metric: str, group: str) -> bool:
        """Whether a number is printed: the accuracy at each length."""
        return metric == "task_accuracy" and group != "all"


def measure(
    scorer: Scorer, description: dict[str, object], lengths: Sequence[int], *, count: int = 256, seed: int = 0
) -> TaskResult:
    """Read fresh sequences of each length and count the positions answered right.

    Args:
        scorer: of a model that was trained on the task.
        description: name and dials, as in `data.task` of its run.
        lengths: T of the sequences.
        count: sequences per length.
        seed: of the sequences, which are the same for every model.
    """
    name = str(description["name"])
    task, watch = tasks.build(description), Stopwatch(scorer, name, count * sum(lengths))
    labels, weights, hits, exact, drawn = [], [], [], [], []
    for length in lengths:
        examples = tasks.draw(task, "test", seed, 0, count, length)
        drawn.append([column.tolist() for column in examples])
        for rows in scorer.batches(count, length):
            answered_BT = scorer.likeliest(examples.tokens[rows])
            right_BT = (answered_BT == examples.targets[rows]) & examples.mask[rows]
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
    by_length = [m for m in items.metrics({"task_accuracy": task.chance}) if m.group != "all"]
    return watch.finish(
        task=name,
        version=VERSION,
        settings={"count": count, "lengths": list(lengths), **_dials(description)},
        seed=seed,
        items=items,
        identity=drawn,
        metrics=by_length,
    )


def _dials(description: dict[str, object]) -> dict[str, int | float | str]:
    return {
        f"task.{k}": v for k, v in description.items() if isinstance(v, int | float | str) and k != "name"
    }
