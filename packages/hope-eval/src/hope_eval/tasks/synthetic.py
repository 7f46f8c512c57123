"""Accuracy on the synthetic task a checkpoint was trained on, by length.

Letters: B sequences, T tokens.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from hope_data import tasks
from hope_data.errors import InputError
from hope_eval.models import describe
from hope_eval.results import Checkpoint, Items, TaskResult, fingerprint
from hope_model import LanguageModel, MemorySettings, checkpoint
from hope_model.allocator import keep_freed_memory
from hope_model.errors import InputError as ModelInputError

VERSION = 1


def load(folder: Path, device: str = "cpu") -> tuple[LanguageModel, dict[str, object], int, Checkpoint]:
    """A checkpoint that was trained on a task: the model, the task's description, its training length.

    Raises:
        InputError: damaged, or trained on text.
    """
    keep_freed_memory()
    try:
        model, meta = checkpoint.load(folder, device=device)
    except ModelInputError as error:
        raise InputError(str(error)) from None
    if not meta.get("task"):
        raise InputError(f"{folder}: was trained on text, not on a task; use `hope-eval run`")
    return model, meta["task"], int(meta["length"]), describe(folder, model, meta)


def measure(
    model: LanguageModel,
    description: dict[str, object],
    lengths: Sequence[int],
    *,
    count: int = 256,
    seed: int = 0,
    batch_tokens: int = 4096,
    device: str = "cpu",
    advance: Callable[[int], None] = lambda _: None,
    settings: MemorySettings | None = None,
) -> TaskResult:
    """Read fresh sequences of each length and count the positions answered right.

    Args:
        model: trained on the task.
        description: name and dials, as in `data.task` of its run.
        lengths: T of the sequences.
        count: sequences per length.
        seed: of the sequences, which are the same for every model.
        batch_tokens: most tokens per forward pass.
        device: where to compute.
        advance: told the tokens of each pass.
        settings: how memories are written; None as trained.
    """
    task, start = tasks.build(description), time.monotonic()
    labels, weights, hits, exact, drawn = [], [], [], [], []
    for length in lengths:
        examples = tasks.draw(task, "test", seed, 0, count, length)
        drawn.append([column.tolist() for column in examples])
        for at in range(0, count, max(1, batch_tokens // length)):
            rows = slice(at, at + max(1, batch_tokens // length))
            tokens_BT = torch.from_numpy(examples.tokens[rows]).to(device)
            with torch.inference_mode():
                state = model.initial(len(tokens_BT), settings)
                said_BT = model(tokens_BT, state)[0].argmax(-1).cpu().numpy()
            right_BT = (said_BT == examples.targets[rows]) & examples.mask[rows]
            asked_B, right_B = examples.mask[rows].sum(1), right_BT.sum(1)
            labels += [str(length)] * len(asked_B)
            weights += [1.0] * len(asked_B)
            hits += (right_B / asked_B).tolist()
            exact += (right_B == asked_B).astype(float).tolist()
            advance(tokens_BT.numel())
    items = Items(
        labels={"length": labels},
        cluster=list(range(len(labels))),
        weight=weights,
        scores={"task_accuracy": np.round(hits, 6).tolist(), "task_exact": exact},
    )
    return TaskResult(
        task=str(description["name"]),
        version=VERSION,
        settings={"count": count, "lengths": list(lengths), **_dials(description)},
        seed=seed,
        items_sha256=fingerprint(drawn),
        tokens=count * sum(lengths),
        seconds=round(time.monotonic() - start, 3),
        metrics=[m for m in items.metrics({"task_accuracy": task.chance}) if m.group != "all"],
        items=items,
    )


def _dials(description: dict[str, object]) -> dict[str, int | float | str]:
    return {
        f"task.{k}": v for k, v in description.items() if isinstance(v, int | float | str) and k != "name"
    }
