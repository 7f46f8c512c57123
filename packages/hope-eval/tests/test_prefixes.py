"""Which requests share what, counted by hand."""

import random

import pytest

from hope_eval.scoring.batching import Request, common, plan


def ones(_: int) -> int:
    return 1


def many(_: int) -> int:
    return 10**6


def test_answers_of_one_question_share_its_context() -> None:
    context = tuple(range(10, 20))
    requests = [Request(context, (k, k + 1, k + 2)) for k in (1, 4, 7)] + [Request((5, 6, 7), (8,))]
    first, second = plan(requests, many)
    # The last token of the context runs with each answer: it gives the first answer token's logits.
    assert first.shared == 9
    assert [row.tokens for row in first.groups[0].rows] == [(*context, k, k + 1) for k in (1, 4, 7)]
    assert [row.requests for row in first.groups[0].rows] == [[0], [1], [2]]
    assert (second.shared, second.groups[0].rows[0].requests) == (0, [3])


def test_answers_of_one_token_are_one_row() -> None:
    requests = [Request((1, 2, 3), (4,)), Request((1, 2, 3), (5,))]
    [batch] = plan(requests, many)
    assert [row.requests for row in batch.groups[0].rows] == [[0, 1]]


def test_contexts_that_differ_late_share_their_beginning() -> None:
    """WinoGrande: the option stands in the context, the continuation is the same."""
    begin = tuple(range(20))
    requests = [Request((*begin, 50, 51), (60, 61)), Request((*begin, 52, 53), (60, 61))]
    [batch] = plan(requests, many)
    assert batch.shared == 20
    unlike = [Request((*begin, *range(70, 110)), (60,)), Request((*begin, *range(200, 240)), (60,))]
    assert [found.shared for found in plan(unlike, many)] == [0]


def test_rows_run_one_per_group_where_states_are_not_copied() -> None:
    requests = [Request((d, d + 1, d + 2), (k, 1)) for d in (10, 20) for k in (1, 2, 3)][:5]
    [batch] = plan(requests, many, together=False)
    turns = [[(place, row.requests) for place, row in turn] for turn in batch.turns(many, together=False)]
    assert turns == [[(0, [0]), (1, [3])], [(0, [1]), (1, [4])], [(0, [2])]]


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("rows_of", [ones, many, lambda tokens: max(1, 64 // tokens)])
def test_every_request_is_answered_once_and_passes_stay_in_bounds(rows_of, share: bool) -> None:  # type: ignore[no-untyped-def]
    draw = random.Random(0)
    requests = []
    for _ in range(60):
        context = tuple(draw.randrange(9) for _ in range(draw.randrange(1, 30)))
        for _ in range(draw.randrange(1, 5)):
            requests.append(Request(context, tuple(draw.randrange(9) for _ in range(draw.randrange(1, 6)))))
    answered = []
    for batch in plan(requests, rows_of, share=share):
        rows = [row for group in batch.groups for row in group.rows]
        answered += [n for row in rows for n in row.requests]
        for group in batch.groups:
            for row in group.rows:
                assert row.tokens[: batch.shared] == group.prefix[: batch.shared]
                for n in row.requests:
                    assert row.tokens == requests[n].fed()
                    # What is scored lies after the shared part.
                    assert len(requests[n].context) > batch.shared
        assert len(batch.groups) <= max(1, rows_of(max(1, batch.shared)))
        run = [pair for turn in batch.turns(rows_of, together=True) for pair in turn]
        assert sorted(map(id, (row for _, row in run))) == sorted(map(id, rows))
        assert all(row in batch.groups[place].rows for place, row in run)
        for turn in batch.turns(rows_of, together=True):
            longest = max(len(row.tokens) for _, row in turn) - batch.shared
            assert len(turn) <= max(1, rows_of(max(1, longest)))
    assert sorted(answered) == list(range(len(requests)))


def test_common() -> None:
    assert [common((1, 2, 3), other) for other in ((1, 2, 4), (1, 2), (), (1, 2, 3, 4))] == [2, 2, 0, 3]
