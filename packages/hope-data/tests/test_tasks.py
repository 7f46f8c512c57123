"""Every task against an independent, naive reading of its definition."""

import dataclasses
from itertools import permutations

import numpy as np
import pytest

from hope_data.cli import main
from hope_data.errors import InputError
from hope_data.tasks import TASKS, Examples, build, draw
from hope_data.tasks.loader import IGNORED, TaskLoader

SHORT = 64


def rows(examples: Examples) -> list[tuple[list[int], list[int | None]]]:
    """Tokens and answers as plain lists; None where nothing is asked."""
    return [
        (tokens, [t if m else None for t, m in zip(targets, mask, strict=True)])
        for tokens, targets, mask in zip(*(column.tolist() for column in examples), strict=True)
    ]


def drawn(name: str, length: int = SHORT, batch: int = 20, **dials: object) -> Examples:
    return draw(build({"name": name, **dials}), "train", 3, 1, batch, length)


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("length", [SHORT, 8 * SHORT])
def test_examples_are_deterministic_and_within_the_vocabulary(name: str, length: int) -> None:
    task = build({"name": name})
    first, again = (draw(task, "train", 0, 5, 8, length) for _ in range(2))
    for a, b in zip(first, again, strict=True):
        assert a.shape == (8, length)
        assert np.array_equal(a, b)
    assert first.tokens.dtype == first.targets.dtype == np.int64
    assert min(first.tokens.min(), first.targets.min()) >= 0
    assert max(first.tokens.max(), first.targets.max()) < task.vocab_size
    assert first.mask.any(1).all()
    assert not first.targets[~first.mask].any()
    for other in (draw(task, "val", 0, 5, 8, length), draw(task, "train", 1, 5, 8, length)):
        assert not np.array_equal(first.tokens, other.tokens)


@pytest.mark.parametrize("name", [n for n in TASKS if n != "permutation_s5"])
def test_chance_is_what_the_best_constant_gets(name: str) -> None:
    task = build({"name": name})
    examples = draw(task, "train", 0, 0, 400, SHORT)
    asked = examples.targets[examples.mask]
    best = np.bincount(asked).max() / len(asked)
    assert task.chance - 0.001 < best < task.chance + 4 * np.sqrt(task.chance / len(asked)) + 0.02


def test_parity_and_sums_by_counting() -> None:
    for tokens, answers in rows(drawn("parity")):
        assert answers == [sum(tokens[: t + 1]) % 2 for t in range(len(tokens))]
    for tokens, answers in rows(drawn("modular_addition", modulus=7)):
        assert answers == [sum(tokens[: t + 1]) % 7 for t in range(len(tokens))]


@pytest.mark.parametrize("swaps", [False, True])
def test_s5_by_moving_things(swaps: bool) -> None:
    table = list(permutations(range(5)))
    for tokens, answers in rows(drawn("permutation_s5", swaps=swaps)):
        things = [0, 1, 2, 3, 4]
        for token, answer in zip(tokens, answers, strict=True):
            things = [things[place] for place in table[token]]
            assert table[answer] == tuple(things)
            if swaps:
                assert sum(n != place for n, place in enumerate(table[token])) == 2


def test_s5_docstring_example() -> None:
    task = build({"name": "permutation_s5"})
    number = {task.show(n): n for n in range(120)}
    state, seen = 0, []
    for token in ("10234", "02134", "10234"):
        state = int(task.products[state, number[token]])
        seen.append(task.show(state))
    assert seen == ["10234", "12034", "21034"]


def test_dyck_is_balanced_and_asks_for_the_bracket_that_closes() -> None:
    deepest = 0
    for tokens, answers in rows(drawn("dyck", kinds=3, depth=5)):
        stack: list[int] = []
        for token, answer in zip(tokens, answers, strict=True):
            if token < 3:
                stack.append(token)
            else:
                assert stack.pop() == token - 3
            deepest = max(deepest, len(stack))
            assert answer == (3 + stack[-1] if stack else None)
        assert not stack
    assert deepest == 5


@pytest.mark.parametrize("times", [1, 3])
def test_mqar_keys_are_unique_and_asked_as_often_as_wanted(times: int) -> None:
    places = set()
    for tokens, answers in rows(drawn("mqar", pairs=6, asked=times)):
        pairs = dict(zip(tokens[0:12:2], tokens[1:12:2], strict=True))
        assert len(pairs) == 6
        assert set(pairs) <= set(range(64))
        assert set(pairs.values()) <= set(range(64, 128))
        asked = {t: answer for t, answer in enumerate(answers) if answer is not None}
        assert sorted(tokens[t] for t in asked) == sorted(times * list(pairs))
        assert all(pairs[tokens[t]] == answer for t, answer in asked.items())
        assert all(tokens[t] == 128 for t in range(12, SHORT) if t not in asked)
        places |= asked.keys()
    assert (min(places), max(places)) == (12, SHORT - 1)


@pytest.mark.parametrize("name", ["in_context_recall", "noisy_recall"])
def test_recall_by_a_dictionary(name: str) -> None:
    noise = 0
    for tokens, answers in rows(drawn(name, length=63 if name == "noisy_recall" else 64)):
        known: dict[int, int] = {}
        t = 0
        while t < len(tokens):
            key = tokens[t]
            if key >= 32:
                assert answers[t] is None
                noise, t = noise + 1, t + 1
                continue
            value = tokens[t + 1]
            assert 16 <= value < 32
            assert (answers[t], answers[t + 1]) == (known.get(key), None)
            assert known.setdefault(key, value) == value
            t += 2
    assert noise == (0 if name == "in_context_recall" else 20 * (63 - 2 * 25))


def test_fuzzy_recall_by_reading_words() -> None:
    seen_widths = set()
    for tokens, answers in rows(drawn("fuzzy_recall")):
        known: dict[tuple[int, ...], tuple[int, ...]] = {}
        t = 0
        while t < len(tokens):
            key_end = next((n for n in range(t, SHORT) if tokens[n] >= 16), SHORT)
            end = next((n for n in range(key_end, SHORT) if tokens[n] < 16), SHORT)
            key, value = tuple(tokens[t:key_end]), tuple(tokens[key_end:end])
            if end == SHORT:  # the last word may be cut
                break
            expected: list[int | None] = [None] * (end - t)
            if key in known:
                assert known[key] == value
                expected[key_end - t - 1 : end - t - 1] = value
            assert answers[t:end] == expected
            known[key] = value
            seen_widths |= {(len(key), 0), (0, len(value))}
            t = end
        assert len({key[0] for key in known}) == len(known)
    assert seen_widths == {(1, 0), (2, 0), (3, 0), (0, 1), (0, 2), (0, 3)}


def test_needle_is_behind_the_first_mark() -> None:
    depths = set()
    for tokens, answers in rows(drawn("needle", batch=300, length=12, digits=3)):
        at = tokens.index(16)
        depths.add(at)
        assert tokens.count(16) == 2
        assert tokens[9] == 16
        assert answers == [None] * 9 + tokens[at + 1 : at + 4]
        assert tokens[10:] == tokens[at + 1 : at + 3]
    assert depths == set(range(5))


def test_copying() -> None:
    for tokens, answers in rows(drawn("selective_copying", items=5)):
        content = [token for token in tokens if token < 16]
        assert len(content) == 5
        assert tokens[-5:] == [17] * 5
        assert answers == [None] * (SHORT - 5) + content
    for tokens, answers in rows(drawn("compression")):
        assert tokens[32:] == [16] * 32
        assert answers == [None] * 32 + tokens[:32]


def test_wrong_dials_and_lengths_are_named() -> None:
    for values, words in (
        ({"name": "mqra"}, "choose one of mqar"),
        ({"name": "mqar", "pair": 4}, "unknown key 'pair'; known: pairs, keys, values, asked"),
        ({"name": "mqar", "pairs": "4"}, "'pairs' is '4'; it must be a whole number from 1"),
        ({"name": "mqar", "pairs": 0}, "'pairs' is 0"),
    ):
        with pytest.raises(InputError, match=words):
            build(values)
    for name, length in (("mqar", 23), ("dyck", 7), ("compression", 7), ("needle", 5)):
        with pytest.raises(InputError, match=f"length {length}"):
            drawn(name, length=length)


def test_loader_resumes_and_ranks_share_one_batch() -> None:
    def loader(rank: int = 0, world: int = 1, seed: int = 0) -> TaskLoader:
        return TaskLoader("dyck", build({"name": "dyck"}), 16, 4, seed, rank, world)

    whole = loader()
    batches = [next(whole) for _ in range(3)]
    assert not np.array_equal(batches[0].inputs, batches[1].inputs)
    asked = batches[0].targets != IGNORED
    assert batches[0].share == asked.mean() < 1
    halves = [loader(rank, 2) for rank in (0, 1)]
    for batch in batches[:2]:
        parts = [next(half) for half in halves]
        assert np.array_equal(np.concatenate([p.inputs for p in parts]), batch.inputs)
        assert np.array_equal(np.concatenate([p.targets for p in parts]), batch.targets)
        assert {p.share for p in parts} == {batch.share}
    again = loader()
    again.load_state_dict(halves[1].state_dict())
    assert np.array_equal(next(again).targets, batches[2].targets)
    with pytest.raises(InputError, match="another task"):
        loader(seed=1).load_state_dict(whole.state_dict())


def test_command_lists_and_shows(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks"]) == 0
    listed = capsys.readouterr().out
    for name, kind in TASKS.items():
        assert f"{name} " in listed
        assert all(f"{field.name}={field.default}" in listed for field in dataclasses.fields(kind))
    assert main(["tasks", "parity", "--length", "6", "--count", "1"]) == 0
    shown = capsys.readouterr().out.strip().split("\n")[-2:]
    bits, parity = ([int(cell) for cell in line.split()[1:]] for line in shown)
    assert [sum(bits[: t + 1]) % 2 for t in range(6)] == parity
    assert main(["tasks", "nothing"]) == 2
    assert "choose one of" in capsys.readouterr().err


@pytest.mark.parametrize("name", TASKS)
def test_every_dial_takes_a_value_or_says_what_it_takes(name: str) -> None:
    """Sizes are checked before anything is made: a billion takes no time and no memory."""
    dials = {field.name: field.default for field in dataclasses.fields(TASKS[name])}
    for wrong in (-1, 0, 1, 10**9, 10**400, 0.5, 1.5, -0.5, float("nan"), float("inf"), "x", None, [], True):
        for dial in dials:
            try:
                draw(build({"name": name, dial: wrong}), "train", 0, 0, 2, SHORT)
            except InputError as error:
                message = str(error)
                assert "\n" not in message
                assert len(message) < 200


@pytest.mark.parametrize("name", TASKS)
def test_sizes_that_no_batch_has_are_refused(name: str) -> None:
    for batch, length, seed in (
        (0, SHORT, 0),
        (-1, SHORT, 0),
        (10**9, SHORT, 0),
        (2, 0, 0),
        (2, -SHORT, 0),
        (2, 10**400, 0),
        (10**5, 10**5, 0),
        (2, SHORT, -1),
    ):
        with pytest.raises(InputError):
            draw(build({"name": name}), "train", seed, 0, batch, length)


@pytest.mark.parametrize(("batch", "world", "rank"), [(0, 1, 0), (3, 2, 0), (2, 2, 2), (10**9, 1, 0)])
def test_a_batch_that_cannot_be_made_or_split_is_refused(batch: int, world: int, rank: int) -> None:
    with pytest.raises(InputError, match="batch"):
        TaskLoader("parity", build({"name": "parity"}), SHORT, batch, 0, rank, world)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--length", "1000000000"], "task MQAR: length 1000000000 must lie between 1 and 33554432"),
        (["--count", "1000000000"], "task MQAR: batch 1000000000 must lie between 1 and 33554432"),
        (["--count", "1000000", "--length", "1000"], "task MQAR: a batch of 1000000 times 1000 is too large"),
        (["--seed", "-1"], "task MQAR: seed -1 must be 0 or more"),
    ],
)
def test_sizes_that_fill_the_memory_are_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tasks", "mqar", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1
