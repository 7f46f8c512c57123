"""State tracking on regular languages: what a state must do at every token, for as long as it takes.

Without negative eigenvalues in its transitions no linear recurrence learns parity (arXiv 2411.12537); a Transformer
of fixed depth cannot track S5 at all lengths (arXiv 2404.08819).
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import permutations

import numpy as np

from hope_data.tasks.base import Examples, Ints, Task, need


def _everywhere(tokens: Ints, targets: Ints) -> Examples:
    return Examples(tokens, targets, np.ones(tokens.shape, bool))


@dataclass(frozen=True)
class Parity(Task):
    """Parity of the bits so far.

    tokens   0 1 1 0 1
    targets  0 1 0 0 1
    """

    @property
    def vocab_size(self) -> int:
        """Two bits."""
        return 2

    @property
    def chance(self) -> float:
        """A coin."""
        return 0.5

    def sample(self, rng: np.random.Generator, batch: int, length: int) -> Examples:
        """Uniform bits."""
        bits = rng.integers(2, size=(batch, length))
        return _everywhere(bits, bits.cumsum(1) % 2)


@dataclass(frozen=True)
class ModularAddition(Task):
    """Sum of the digits so far, modulo `modulus`.

    tokens   3 4 0 2 1     (modulus 5)
    targets  3 2 2 4 0
    """

    modulus: int = 5

    @property
    def vocab_size(self) -> int:
        """One token per digit."""
        return self.modulus

    @property
    def chance(self) -> float:
        """All sums are equally likely."""
        return 1 / self.modulus

    def sample(self, rng: np.random.Generator, batch: int, length: int) -> Examples:
        """Uniform digits."""
        digits = rng.integers(self.modulus, size=(batch, length))
        return _everywhere(digits, digits.cumsum(1) % self.modulus)


@dataclass(frozen=True)
class PermutationS5(Task):
    """Product of the permutations of five things so far, each token applied after those before it.

        tokens   (01)   (12)   (01)       things 01234 -> 10234 -> 12034 -> 21034
        targets  10234  12034  21034

    A permutation is numbered by its place in lexicographic order; token p moves what stands at p[i] to place i.
    With `swaps`, tokens are the ten transpositions only: a state learns more easily what each of them does.
    """

    swaps: bool = False

    @property
    def vocab_size(self) -> int:
        """All 120 permutations."""
        return 120

    @property
    def chance(self) -> float:
        """Almost: after t swaps only half of them can be (those of one parity)."""
        return 1 / 60 if self.swaps else 1 / 120

    @cached_property
    def table(self) -> Ints:
        """[120, 5], lexicographic."""
        return np.array(list(permutations(range(5))), np.int64)

    @cached_property
    def products(self) -> Ints:
        """[120, 120]: number of `state` followed by `token`."""
        products = self.table[:, self.table]
        place = {tuple(row): number for number, row in enumerate(self.table.tolist())}
        flat = [place[tuple(row)] for row in products.reshape(-1, 5).tolist()]
        return np.array(flat, np.int64).reshape(120, 120)

    def sample(self, rng: np.random.Generator, batch: int, length: int) -> Examples:
        """Uniform permutations, or uniform transpositions."""
        alphabet = np.arange(120)
        if self.swaps:
            alphabet = np.flatnonzero((self.table != np.arange(5)).sum(1) == 2)
        tokens = alphabet[rng.integers(len(alphabet), size=(batch, length))]
        state, targets = np.zeros(batch, np.int64), np.empty((batch, length), np.int64)
        for t in range(length):
            state = targets[:, t] = self.products[state, tokens[:, t]]
        return _everywhere(tokens, targets)

    def show(self, token: int) -> str:
        """The five things in their new order."""
        return "".join(map(str, self.table[token]))


@dataclass(frozen=True)
class Dyck(Task):
    """The bracket that closes next, in a balanced string of `kinds` kinds nested at most `depth` deep.

    tokens   ( [ ] { } )
    targets  ) ] ) } )        asked wherever a bracket is open
    """

    kinds: int = 4
    depth: int = 8

    @property
    def vocab_size(self) -> int:
        """Opening brackets, then closing ones."""
        return 2 * self.kinds

    @property
    def chance(self) -> float:
        """Kinds are equally likely."""
        return 1 / self.kinds

    def sample(self, rng: np.random.Generator, batch: int, length: int) -> Examples:
        """A fair coin opens or closes wherever both are possible."""
        need(length % 2 == 0, self, length, "a balanced string has an even one")
        rows = np.arange(batch)
        stack, level = np.zeros((batch, self.depth + 1), np.int64), np.zeros(batch, np.int64)
        opens, kinds = rng.random((batch, length)) < 0.5, rng.integers(self.kinds, size=(batch, length))
        tokens, targets = np.empty((2, batch, length), np.int64)
        mask = np.empty((batch, length), bool)
        for t in range(length):
            must = level == 0
            may = (level < self.depth) & (level < length - t)
            up = must | (opens[:, t] & may)
            top = stack[rows, level]
            tokens[:, t] = np.where(up, kinds[:, t], self.kinds + top)
            level += np.where(up, 1, -1)
            stack[rows[up], level[up]] = kinds[up, t]
            mask[:, t] = level > 0
            targets[:, t] = np.where(mask[:, t], self.kinds + stack[rows, level], 0)
        return Examples(tokens, targets, mask)

    def show(self, token: int) -> str:
        """A bracket; beyond the third kind, numbered."""
        kind = token % self.kinds
        pair = ("( )", "[ ]", "{ }")[kind] if kind < 3 else f"<{kind} {kind}>"
        return pair.split()[token // self.kinds]
