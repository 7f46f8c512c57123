"""What every synthetic task is: a frozen dataclass that draws examples from a random generator.

Letters: B sequences, T tokens.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from hope_data.errors import InputError

Ints = npt.NDArray[np.int64]
SPLITS = ("train", "val", "test")


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
    """Batch `number` of a split's endless stream: a function of the arguments alone."""
    return task.sample(np.random.default_rng([seed, SPLITS.index(split), number, length]), batch, length)


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
