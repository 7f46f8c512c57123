"""Recall: what follows a key now is what followed it before.

MQAR: arXiv 2312.04927. In-context, noisy and fuzzy recall: MAD, arXiv 2403.17844.
"""

from dataclasses import dataclass

import numpy as np

from hope_data.tasks.base import Examples, Ints, OfPairs, OfSymbols, asked_last, choose, need, take


@dataclass(frozen=True)
class MQAR(OfPairs):
    """Multi-query associative recall: pairs first, then each key `asked` times more, somewhere among blanks.

        tokens   k3 v1 k7 v4  .  k7 .  .  k3 .     (asked once)
        targets  -  -  -  -   -  v4 -  -  v1 -

    Pairs stay as many at any length: a longer sequence asks later.
    """

    pairs: int = 8
    keys: int = 64
    values: int = 64
    asked: int = 1

    @property
    def vocab_size(self) -> int:
        """Keys, values, the blank."""
        return super().vocab_size + 1

    def sample(self, rng: np.random.Generator, batch: int, length: int) -> Examples:
        """Keys differ within a sequence; values may repeat."""
        P, rest, times = self.pairs, length - 2 * self.pairs, self.asked
        need(rest >= times * P, self, length, f"{P} pairs and their queries need {(2 + times) * P}")
        need(self.keys >= P, self, length, f"{P} pairs need as many keys")
        keys = choose(rng, batch, self.keys, P)
        values = self.keys + rng.integers(self.values, size=(batch, P))
        tokens = np.full((batch, length), self.keys + self.values, np.int64)
        tokens[:, 0 : 2 * P : 2], tokens[:, 1 : 2 * P : 2] = keys, values
        asked = 2 * P + choose(rng, batch, rest, times * P)
        np.put_along_axis(tokens, asked, np.tile(keys, times), 1)
        targets, mask = np.zeros_like(tokens), np.zeros(tokens.shape, bool)
        np.put_along_axis(targets, asked, np.tile(values, times), 1)
        np.put_along_axis(mask, asked, True, 1)
        return Examples(tokens, targets, mask)

    def show(self, token: int) -> str:
        """k or v with its number, or a dot."""
        if token == self.keys + self.values:
            return "."
        return f"k{token}" if token < self.keys else f"v{token - self.keys}"


@dataclass(frozen=True)
class InContextRecall(OfPairs):
    """Pairs of a map that is new in every sequence; asked at each key that came before.

    tokens   k2 v5 k0 v1 k2 v5 k0 v1
    targets  -  -  -  -  v5 -  v1 -
    """

    keys: int = 16
    values: int = 16

    def sample(self, rng: np.random.Generator, batch: int, length: int) -> Examples:
        """Keys are uniform."""
        need(length % 2 == 0, self, length, "it must be even: keys and values take turns")
        mapped = self.keys + rng.integers(self.values, size=(batch, self.keys))
        keys = rng.integers(self.keys, size=(batch, length // 2))
        tokens = np.stack([keys, take(mapped, keys)], axis=2).reshape(batch, length)
        return _asked_again(tokens, self.keys)

    def show(self, token: int) -> str:
        """k or v with its number."""
        return f"k{token}" if token < self.keys else f"v{token - self.keys}"


def _asked_again(tokens: Ints, keys: int) -> Examples:
    """Ask at every key that came before in its row; the answer is the token after it."""
    following = np.concatenate([tokens[:, 1:], np.zeros((len(tokens), 1), np.int64)], 1)
    mask = np.zeros(tokens.shape, bool)
    for key in range(keys):
        here = tokens == key
        mask |= here & (here.cumsum(1) > 1)
    return Examples(tokens, np.where(mask, following, 0), mask)


@dataclass(frozen=True)
class NoisyRecall(InContextRecall):
    """In-context recall with tokens between the pairs that mean nothing.

    tokens   k2 v5 n3 k0 v1 n8 n1 k2 v5
    targets  -  -  -  -  -  -  -  v5 -
    """

    noise: float = 0.2
    noises: int = 16

    @property
    def vocab_size(self) -> int:
        """Keys, values, noise."""
        return super().vocab_size + self.noises

    def sample(self, rng: np.random.Generator, batch: int, length: int) -> Examples:
        """A share `noise` of all tokens, at random places between pairs."""
        P = int((1 - self.noise) * length / 2)
        need(P > 1, self, length, "no room for two pairs")
        clean = super().sample(rng, batch, 2 * P).tokens
        extra = length - 2 * P
        noisy_BU = choose(rng, batch, P + extra, P + extra) >= P
        noisy_BT = np.repeat(noisy_BU, np.where(noisy_BU, 1, 2).ravel()).reshape(batch, length)
        tokens = self.keys + self.values + rng.integers(self.noises, size=(batch, length))
        tokens[~noisy_BT] = clean.ravel()
        return _asked_again(tokens, self.keys)

    def show(self, token: int) -> str:
        """k, v or n with its number."""
        pairs = self.keys + self.values
        return f"n{token - pairs}" if token >= pairs else super().show(token)


@dataclass(frozen=True)
class FuzzyRecall(OfPairs):
    """In-context recall where keys and values are words of one to `width` tokens.

        tokens   a2 a0 b5 | a1 b1 b3 | a2 a0 b5 | a1 b1 b3       (the bars are for people)
        targets  -  -  -    -  -  -    -  b5 -    b1 b3 -        asked before each token of a known value

    The two alphabets are apart, so that a word's end shows; no key is the beginning of another.
    """

    words: int = 8
    width: int = 3
    keys: int = 16
    values: int = 16

    def sample(self, rng: np.random.Generator, batch: int, length: int) -> Examples:
        """Every key of a row begins with another symbol; words follow each other uniformly."""
        need(self.keys >= self.words, self, length, f"{self.words} words need as many key symbols")
        tokens, targets = np.zeros((2, batch, length), np.int64)
        mask = np.zeros((batch, length), bool)
        for b in range(batch):
            first = rng.permutation(self.keys)[: self.words]
            widths = rng.integers(1, self.width + 1, size=(self.words, 2))
            keys = [
                [int(f), *rng.integers(self.keys, size=w - 1).tolist()]
                for f, (w, _) in zip(first, widths, strict=True)
            ]
            values = [(self.keys + rng.integers(self.values, size=w)).tolist() for _, w in widths]
            seen: set[int] = set()
            t = 0
            while t < length:
                word = int(rng.integers(self.words))
                row = keys[word] + values[word]
                begin = len(keys[word]) - 1
                for n, token in enumerate(row[: length - t]):
                    tokens[b, t + n] = token
                    if word in seen and begin <= n < len(row) - 1:
                        targets[b, t + n], mask[b, t + n] = row[n + 1], True
                seen.add(word)
                t += len(row)
        return Examples(tokens, targets, mask)

    def show(self, token: int) -> str:
        """a (of keys) or b (of values) with its number."""
        return f"a{token}" if token < self.keys else f"b{token - self.keys}"


@dataclass(frozen=True)
class Needle(OfSymbols):
    """A few digits behind a mark, anywhere in a haystack of digits; the mark at the end asks for them.

    tokens   4 1 7 # 3 9 0 2 8 5 6 # 3
    targets  -  -  ...          -  3 9      (digits 2)
    """

    digits: int = 2
    symbols: int = 16

    def sample(self, rng: np.random.Generator, batch: int, length: int) -> Examples:
        """The needle's depth is uniform."""
        n, room = self.digits, length - 2 * self.digits
        need(room > 1, self, length, f"{n} digits need at least {2 * n + 2}")
        tokens = rng.integers(self.symbols, size=(batch, length))
        at = rng.integers(room - 1, size=(batch, 1))
        np.put_along_axis(tokens, at, self.symbols, 1)
        value = take(tokens, at + 1 + np.arange(n))
        tokens[:, length - n] = self.symbols
        tokens[:, length - n + 1 :] = value[:, :-1]
        return asked_last(tokens, value)

    def show(self, token: int) -> str:
        """A digit or the mark."""
        return "#" if token == self.symbols else str(token)
