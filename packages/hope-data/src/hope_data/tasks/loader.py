"""Batches of a task with the loader's interface: endless, resumable, the same for any number of ranks."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hope_data.errors import InputError
from hope_data.files import sha256_bytes
from hope_data.loader import check_stream
from hope_data.tasks.base import Examples, Task, check_sizes, draw

IGNORED = -100  # as torch's cross_entropy leaves out


class TaskBatch(NamedTuple):
    """One rank's part of a batch.

    Attributes:
        inputs: int64 [B, T].
        targets: int64 [B, T], `IGNORED` where nothing is asked.
        corpus: int64 [B], zeros.
        share: of the positions of the whole batch, those that are asked.
    """

    inputs: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]
    corpus: npt.NDArray[np.int64]
    share: float


def answers(examples: Examples) -> npt.NDArray[np.int64]:
    """Targets [B, T] with `IGNORED` where nothing is asked."""
    return np.where(examples.mask, examples.targets, IGNORED)


class TaskLoader(Iterator[TaskBatch]):
    """Every batch is a function of task, length, batch size, seed and number.

    Args:
        name: of the task, for messages.
        task: what is drawn.
        length: T.
        batch_size: sequences per step, of all ranks.
        seed: of the stream.
        rank: of this process.
        world: number of processes; divides `batch_size`.
    """

    def __init__(
        self, name: str, task: Task, length: int, batch_size: int, seed: int, rank: int = 0, world: int = 1
    ) -> None:
        check_sizes(task, batch_size, length)
        if not 0 <= rank < world or batch_size % world:
            raise InputError(
                f"task {name}: batch {batch_size} cannot be split over {world} processes (rank {rank})"
            )
        self.corpora = [name]
        self._task, self._length, self._batch, self._seed = task, length, batch_size, seed
        self._mine = slice(rank * batch_size // world, (rank + 1) * batch_size // world)
        self._number = 0
        text = repr((name, sorted(asdict(task).items()), length, batch_size, seed))
        self._fingerprint = sha256_bytes(text.encode())
        draw(task, "train", seed, 0, 1, length)

    def __next__(self) -> TaskBatch:
        examples = draw(self._task, "train", self._seed, self._number, self._batch, self._length)
        self._number += 1
        targets = answers(examples)[self._mine]
        corpus = np.zeros(len(targets), np.int64)
        return TaskBatch(examples.tokens[self._mine], targets, corpus, float(examples.mask.mean()))

    def state_dict(self) -> dict[str, Any]:
        """Position after the batches taken so far: JSON-able, the same for every rank."""
        return {"batches": self._number, "fingerprint": self._fingerprint}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a loader of the same stream stood.

        Raises:
            InputError: the state is of another stream.
        """
        check_stream(state, self._fingerprint, "another task, length, batch or seed")
        self._number = int(state["batches"])
