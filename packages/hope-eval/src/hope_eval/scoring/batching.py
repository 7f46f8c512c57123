r"""Which parts of many contexts are the same and need to run only once.

    Question: How do I ready a cage?\nAnswer: | Fill it with bedding of paper.
    Question: How do I ready a cage?\nAnswer: | Fill it with bedding of jeans.
    `---------------- prefix: runs once ------------'`------ one row each ------'

Groups of similar prefix length make a batch; the batch runs what all of its groups have in length, forks the
state, and runs the rest of each row. What is left of a longer prefix runs with its rows: nothing is padded
before a token that counts, so a recurrent state never sees padding. Where batches end is the cheapest choice by
tokens, padding included, and `PASS` for every pass.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

PASS = 48  # tokens that cost as much as a pass by itself: measured with a Llama of width 256 on one core


class Request(NamedTuple):
    """Tokens of a context, of one or more, and of the continuation to be scored."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]

    def fed(self) -> tuple[int, ...]:
        """What the model has to read: all but the last token."""
        return self.context + self.continuation[:-1]


class Scored(NamedTuple):
    """Natural log-likelihood of a continuation, and whether greedy decoding would write it."""

    logp: float
    greedy: bool


@dataclass
class Row:
    """Tokens to feed, and the requests that they answer: several where only the last token differs."""

    tokens: tuple[int, ...]
    requests: list[int] = field(default_factory=list)


@dataclass
class Group:
    """Neighbouring requests whose contexts begin alike; `prefix` ends before the last token of any context."""

    prefix: tuple[int, ...]
    rows: list[Row]


@dataclass(frozen=True)
class Batch:
    """Groups that run together; their first `shared` tokens run once per group."""

    groups: list[Group]
    shared: int

    def turns(self, rows_of: Callable[[int], int], *, together: bool) -> Iterator[list[tuple[int, Row]]]:
        """(group, row) pairs of each pass.

        Args:
            rows_of: most rows of so many tokens in one pass.
            together: rows of all groups, longest first, so that little is padded; else one row of every group at a
                time, so that no state has to be copied.
        """
        if not together:
            ordered = [sorted(group.rows, key=lambda row: -len(row.tokens)) for group in self.groups]
            for turn in range(max(map(len, ordered))):
                yield [(place, rows[turn]) for place, rows in enumerate(ordered) if turn < len(rows)]
            return
        left = [(place, row) for place, group in enumerate(self.groups) for row in group.rows]
        left.sort(key=lambda pair: -len(pair[1].tokens))
        sizes = [max(1, len(row.tokens) - self.shared) for _, row in left]
        for start, end in _cut(sizes, rows_of):
            yield left[start:end]


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences begin with in common."""
    for place, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return place
    return min(len(a), len(b))


def plan(
    requests: Sequence[Request],
    rows_of: Callable[[int], int],
    *,
    share: bool = True,
    together: bool = True,
    stream: bool = False,
) -> Iterator[Batch]:
    """Batches that answer all requests.

    Args:
        requests: in the order of their documents; only neighbours share.
        rows_of: most rows of so many tokens in one pass.
        share: False makes every row a group of its own.
        together: whether all rows of a batch's groups run in one pass, see `Batch.turns`.
        stream: one group after another in the order given, for a state that is carried along.
    """
    groups = _groups(requests, share=share)
    if stream:
        yield from (Batch([group], len(group.prefix)) for group in groups)
        return
    # Single rows have nothing to share and run whole, longest first; the others by the length of their prefix.
    several = sorted((g for g in groups if len(g.rows) > 1), key=lambda g: -len(g.prefix))
    single = sorted((g for g in groups if len(g.rows) == 1), key=lambda g: -len(g.rows[0].tokens))
    for start, end in _cut_shared(several, rows_of, together=together):
        yield Batch(several[start:end], len(several[end - 1].prefix))
    for start, end in _cut([len(g.rows[0].tokens) for g in single], rows_of):
        yield Batch(single[start:end], 0)


def _cut(sizes: Sequence[int], rows_of: Callable[[int], int]) -> list[tuple[int, int]]:
    """Passes over rows of falling size; every row is padded to the first of its pass."""

    def cost(start: int, end: int) -> float:
        return PASS + (end - start) * sizes[start]

    return _cheapest(len(sizes), lambda start: rows_of(max(1, sizes[start])), cost)


def _cut_shared(
    groups: Sequence[Group], rows_of: Callable[[int], int], *, together: bool
) -> list[tuple[int, int]]:
    """Batches of groups of falling prefix; what a prefix has beyond the batch's shortest runs once per row."""
    count, tokens = [0], [0]
    for group in groups:
        count.append(count[-1] + len(group.rows))
        tokens.append(tokens[-1] + sum(len(row.tokens) for row in group.rows))

    def cost(start: int, end: int) -> float:
        shared, rows = len(groups[end - 1].prefix), count[end] - count[start]
        own = tokens[end] - tokens[start] - rows * shared
        passes = rows / rows_of(max(1, own // rows)) if together else rows / (end - start)
        return PASS * (1 + passes) + (end - start) * shared + own

    def most(start: int) -> int:
        group = groups[start]
        longest = max(len(group.prefix), 0 if together else max(len(row.tokens) for row in group.rows))
        return rows_of(max(1, longest))

    return _cheapest(len(groups), most, cost)


def _cheapest(
    count: int, most: Callable[[int], int], cost: Callable[[int, int], float]
) -> list[tuple[int, int]]:
    """The cheapest cut of `count` things in order into parts (start, end) of at most `most(start)` things."""
    best: list[tuple[float, int]] = [(0.0, count)] * (count + 1)
    for start in range(count - 1, -1, -1):
        ends = range(start + 1, min(count, start + max(1, most(start))) + 1)
        best[start] = min((cost(start, end) + best[end][0], end) for end in ends)
    parts, at = [], 0
    while at < count:
        parts.append((at, best[at][1]))
        at = best[at][1]
    return parts


def _groups(requests: Sequence[Request], *, share: bool) -> list[Group]:
    groups: list[Group] = []
    for number, request in enumerate(requests):
        tokens, usable = request.fed(), request.context[:-1]
        group = groups[-1] if groups and share else None
        shared = common(group.prefix, usable) if group else 0
        # More than half of both prefixes, or a group's gain would be lost by a stranger.
        if group is None or 2 * shared <= max(len(group.prefix), len(usable)):
            group = Group(usable, [])
            groups.append(group)
        else:
            group.prefix = group.prefix[:shared]
        row = next((row for row in group.rows if row.tokens == tokens), None)
        if row is None:
            row = Row(tokens)
            group.rows.append(row)
        row.requests.append(number)
    return groups
