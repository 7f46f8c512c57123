r"""Which parts of many contexts are the same and need to run only once.

    Question: How do I ready a cage?\nAnswer: | Fill it with bedding of paper.
    Question: How do I ready a cage?\nAnswer: | Fill it with bedding of jeans.
    `---------------- prefix: runs once ------------'`------ one row each ------'

Groups of similar prefix length make a batch; the batch runs what all of its groups have in length, forks the
state, and runs the rest of each row. What is left of a longer prefix runs with its rows: nothing is padded
before a token that counts, so a recurrent state never sees padding.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


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

    def turns(self, *, together: bool) -> Iterator[list[tuple[int, Row]]]:
        """(group, row) pairs of each pass: all at once, or one row of every group at a time."""
        if together:
            yield [(place, row) for place, group in enumerate(self.groups) for row in group.rows]
            return
        for turn in range(max(len(group.rows) for group in self.groups)):
            yield [(n, group.rows[turn]) for n, group in enumerate(self.groups) if turn < len(group.rows)]


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
    single = sorted((g for g in groups if len(g.rows) == 1), key=lambda g: -len(g.rows[0].tokens))
    several = sorted((g for g in groups if len(g.rows) > 1), key=lambda g: -len(g.prefix))
    for chosen, shares in ((several, True), (single, False)):
        while chosen:
            batch = _fill(chosen, rows_of, shares=shares, together=together)
            chosen = chosen[len(batch) :]
            yield Batch(batch, min(len(group.prefix) for group in batch) if shares else 0)


def _fill(
    groups: Sequence[Group], rows_of: Callable[[int], int], *, shares: bool, together: bool
) -> list[Group]:
    """The first groups that fit a batch: neither their prefixes nor their rows may be too many for one pass."""
    batch: list[Group] = []
    rows, longest, shared = 0, 1, len(groups[0].prefix) if shares else 0
    for group in groups:
        rows += len(group.rows) if together else 1
        longest = max(longest, *(len(row.tokens) for row in group.rows))
        shared = min(shared, len(group.prefix))
        # What a prefix has beyond the batch's shortest runs once per row, so they must not differ much.
        far = shares and 2 * shared < len(groups[0].prefix)
        full = rows > rows_of(max(1, longest - shared)) or len(batch) >= rows_of(max(1, shared))
        if batch and (far or full):
            break
        batch.append(group)
    return batch


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
