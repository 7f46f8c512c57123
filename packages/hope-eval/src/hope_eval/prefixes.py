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
        while left:
            size = max(1, rows_of(max(1, len(left[0][1].tokens) - self.shared)))
            yield left[:size]
            left = left[size:]


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
    """The first groups whose prefixes fit one pass, and, where rows run one per group, those too."""
    batch: list[Group] = []
    longest, shared = 1, len(groups[0].prefix) if shares else 0
    for group in groups:
        longest = max(longest, *(len(row.tokens) for row in group.rows))
        shared = min(shared, len(group.prefix))
        # What a prefix has beyond the batch's shortest runs once per row, so they must not differ much.
        far = shares and 4 * shared < 3 * len(groups[0].prefix)
        one_each = 1 if together else max(1, longest - shared)
        if batch and (far or len(batch) >= min(rows_of(max(1, shared)), rows_of(one_each))):
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
