"""What every synthetic task is: a frozen dataclass that draws examples from a random generator.

Letters: B sequences, T tokens.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from hope_data.errors import InputError

Ints = npt.NDArray[np.int64]
SPLITS = ("train", "val", "test")
LARGEST = 1 << 25  # numbers of a batch: a quarter of a gigabyte


class Examples(NamedTuple):
    """Drawn sequences.

    Attributes:
        tokens: int64 [B, T], what is read.
        targets: int64 [B, T], the right answer at each position; 0 where nothing is asked.
        mask: bool [B, T], the positions that are asked.
    """

    tokens: Ints
    targets: Ints
    mask: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Task(ABC):
    """A task of any length; equal generators draw equal examples."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Tokens and answers are below it."""

    @property
    @abstractmethod
    def chance(self) -> float:
        """Accuracy of the best guess that reads nothing."""

    @abstractmethod
    def sample(self, rng: np.random.Generator, batch: int, length: int) -> Examples:
        """Draw `batch` examples of `length` tokens.

        Raises:
            InputError: a length for which there is no example.
        """

    def show(self, token: int) -> str:
        """A token for people."""
        return str(token)

    def answer(self, target: int) -> str:
        """A target for people."""
        return self.show(target)


class OfSymbols(Task):
    """A task whose answers are any of `symbols`, equally likely; `signs` more tokens have a meaning of their own."""

    symbols: int
    signs: ClassVar[int] = 1

    @property
    def vocab_size(self) -> int:
        """Symbols, then signs."""
        return self.symbols + self.signs

    @property
    def chance(self) -> float:
        """Symbols are equally likely."""
        return 1 / self.symbols


class OfPairs(Task):
    """A task whose answers are any of `values`, equally likely, found by their keys."""

    keys: int
    values: int

    @property
    def vocab_size(self) -> int:
        """Keys, then values."""
        return self.keys + self.values

    @property
    def chance(self) -> float:
        """Values are equally likely."""
        return 1 / self.values


def draw(task: Task, split: str, seed: int, number: int, batch: int, length: int) -> Examples:
    """Batch `number` of a split's endless stream: a function of the arguments alone.

    Raises:
        InputError: a size or seed that is negative or too large, or a length for which there is no example.
    """
    check_sizes(task, batch, length)
    if seed < 0:
        raise InputError(f"task {type(task).__name__}: seed {seed} must be 0 or more")
    return task.sample(np.random.default_rng([seed, SPLITS.index(split), number, length]), batch, length)


def check_sizes(task: Task, batch: int, length: int) -> None:
    """Refuse a batch that would fill the memory before anything of it is made."""
    # Rows are as long as the sequence, or as the longest list that a dial of the task asks for.
    dials = {field.name: getattr(task, field.name) for field in fields(task)}
    numbers = {"batch": batch, "length": length, **{k: v for k, v in dials.items() if type(v) is int}}
    for name, number in numbers.items():
        if not 1 <= number <= LARGEST:
            raise InputError(
                f"task {type(task).__name__}: {name} {str(number)[:20]} must lie between 1 and {LARGEST}"
            )
    longest = max(number for name, number in numbers.items() if name != "batch")
    if batch * longest > LARGEST:
        raise InputError(
            f"task {type(task).__name__}: a batch of {batch} times {longest} is too large; at most {LARGEST} in all"
        )


def need(condition: bool, task: Task, length: int, what: str) -> None:
    """Refuse a length."""
    if not condition:
        raise InputError(f"task {type(task).__name__}: length {length}: {what}")


def choose(rng: np.random.Generator, batch: int, of: int, count: int) -> Ints:
    """Per row, `count` different numbers below `of`, in random order: [B, count]."""
    return np.argsort(rng.random((batch, of)), axis=1, kind="stable")[:, :count].astype(np.int64)


def take(table: Ints, index: Ints) -> Ints:
    """Row-wise table[b, index[b, i]]."""
    return np.take_along_axis(table, index, axis=1)


def asked_last(tokens: Ints, answers: Ints) -> Examples:
    """Examples [B, T] whose last positions ask for the answers [B, n]."""
    targets, mask = np.zeros_like(tokens), np.zeros(tokens.shape, bool)
    n = answers.shape[1]
    targets[:, -n:], mask[:, -n:] = answers, True
    return Examples(tokens, targets, mask)
