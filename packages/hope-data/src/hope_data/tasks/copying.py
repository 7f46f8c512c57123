"""Holding a whole sequence in the state: selective copying and compression (MAD, arXiv 2403.17844)."""

from dataclasses import dataclass

import numpy as np

from hope_data.tasks.base import Examples, OfSymbols, asked_last, choose, need


@dataclass(frozen=True)
class SelectiveCopying(OfSymbols):
    """Write out the symbols in order, without the blanks between them.

        tokens   . a . . b c . > > >
        targets  - - - - - - - a b c

    As many symbols at any length: a longer sequence has more blanks.
    """

    items: int = 8
    symbols: int = 16
    signs = 2  # the blank, and the one to write

    def sample(self, rng: np.random.Generator, batch: int, length: int) -> Examples:
        """Uniform symbols at uniform places."""
        n, room = self.items, length - self.items
        need(room >= n, self, length, f"{n} items need at least {2 * n}")
        items = rng.integers(self.symbols, size=(batch, n))
        tokens = np.full((batch, length), self.symbols, np.int64)
        np.put_along_axis(tokens, np.sort(choose(rng, batch, room, n), axis=1), items, 1)
        tokens[:, room:] = self.symbols + 1
        return asked_last(tokens, items)

    def show(self, token: int) -> str:
        """A letter, a blank or the sign to write."""
        return {self.symbols: ".", self.symbols + 1: ">"}.get(token, chr(ord("a") + token))


@dataclass(frozen=True)
class Compression(OfSymbols):
    """Read random symbols, then write all of them: the state has to hold the sequence.

        tokens   a c b a > > > >
        targets  - - - - a c b a

    MAD reads the sequence back from one vector through a decoder of its own; here the model itself does, from its
    state. The load grows with the length; attention, whose state grows too, is no compressor.
    """

    symbols: int = 16

    def sample(self, rng: np.random.Generator, batch: int, length: int) -> Examples:
        """Uniform symbols."""
        need(length % 2 == 0, self, length, "it must be even: half is read, half written")
        half = length // 2
        tokens = np.full((batch, length), self.symbols, np.int64)
        tokens[:, :half] = rng.integers(self.symbols, size=(batch, half))
        return asked_last(tokens, tokens[:, :half])

    def show(self, token: int) -> str:
        """A letter or the sign to write."""
        return ">" if token == self.symbols else chr(ord("a") + token)
