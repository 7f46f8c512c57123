"""Validation of a synthetic task: accuracy and loss over fixed sequences, by length."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hope_data.tasks import Task, draw
from hope_data.tasks.loader import answers
from hope_train.parallel.distributed import World

Floats = npt.NDArray[np.float64]
Scores = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class TaskValidation:
    """The same sequences for every run of a task, whatever its seed.

    Args:
        task: what is drawn.
        lengths: T of the sequences; the first is the one that `val_loss` and `val_accuracy` tell of.
        count: sequences per length.
        batch_size: sequences of the first length per forward pass; longer ones go in fewer at a time.
    """

    def __init__(self, task: Task, lengths: Sequence[int], count: int, batch_size: int) -> None:
        self._lengths, self._batch_size = list(lengths), batch_size
        self._drawn = {length: draw(task, "val", 0, 0, count, length) for length in lengths}
        self.chance = task.chance

    def measure(self, scores: Scores, world: World) -> dict[str, float]:
        """Score every sequence, in turns over processes; all get the same numbers.

        Args:
            scores: from inputs and targets `[B, T]` to nats of each target and whether it was the likeliest token.
            world: the processes; each puts the tokens on its device.

        Returns:
            `val_loss` (nats per asked position), `val_accuracy`, `val_accuracy_se` (over sequences),
            `val_sequences` and, for each further length, `val_loss_<T>` and `val_accuracy_<T>`.
        """
        out: dict[str, float] = {}
        for length in self._lengths:
            nats_N, hits_N, asked_N = self._score(scores, world, length)
            loss, accuracy = nats_N.sum() / asked_N.sum(), hits_N.sum() / asked_N.sum()
            if length != self._lengths[0]:
                out |= {f"val_loss_{length}": float(loss), f"val_accuracy_{length}": float(accuracy)}
                continue
            residual_N = hits_N - accuracy * asked_N
            out |= {
                "val_loss": float(loss),
                "val_accuracy": float(accuracy),
                "val_sequences": float(len(nats_N)),
            }
            if len(nats_N) > 1:
                error = residual_N.std(ddof=1) / (asked_N.mean() * np.sqrt(len(nats_N)))
                out["val_accuracy_se"] = float(error)
        return out

    def _score(
        self, scores: Scores, world: World, length: int
    ) -> tuple[Floats, Floats, npt.NDArray[np.int64]]:
        examples = self._drawn[length]
        size = max(1, self._batch_size * self._lengths[0] // length)
        tokens = torch.split(torch.from_numpy(examples.tokens), size)
        targets = torch.split(torch.from_numpy(answers(examples)), size)
        sums = np.zeros((2, len(examples.tokens)))
        # Everybody makes as many forward passes: with shared weights each pass is a collective.
        for turn in range(-(-len(tokens) // world.size)):
            number = turn * world.size + world.rank
            part = min(number, len(tokens) - 1)
            with torch.no_grad():
                nats, hits = scores(tokens[part].to(world.device), targets[part].to(world.device))
            if number < len(tokens):
                rows = slice(number * size, number * size + len(nats))
                sums[:, rows] = torch.stack((nats.double().sum(1), hits.double().sum(1))).cpu().numpy()
        nats_N, hits_N = np.array(world.sum(sums.ravel().tolist())).reshape(2, -1)
        return nats_N, hits_N, examples.mask.sum(1)
