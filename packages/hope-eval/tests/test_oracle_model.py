"""A model that looks things up reaches 1.0 on what is asked of contexts: evaluators can see success.

The model is a table: after any tokens it gives nearly all probability to what a rule says comes next.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hope_data.tokenizer import Tokenizer
from hope_eval.scoring.load import Places
from hope_eval.scoring.scorer import Scorer
from hope_eval.scoring.tokenizers import HopeTokenizer
from hope_eval.tasks import babi, choice, continual, learning, needle, passkey
from hope_eval.tasks.base import Context

Rule = Callable[[tuple[int, ...]], int]


class Table:
    """State: the tokens so far of every sequence; logits: 20 for the token of a rule, 0 for all others."""

    device, max_length, tokens, copies_state = "cpu", None, None, False
    shares_state, defers = True, False

    def __init__(self, vocab_size: int, rule: Rule) -> None:
        self.vocab_size, self.rule = vocab_size, rule

    def __call__(
        self, tokens_BT: Tensor, state: Any, at: Places | None = None, *, final: bool = False
    ) -> tuple[Tensor, Any]:
        del final
        past = state or [()] * len(tokens_BT)
        rows = [before + tuple(row) for before, row in zip(past, tokens_BT.tolist(), strict=True)]
        logits_BTV = torch.zeros(*tokens_BT.shape, self.vocab_size)
        asked = [(b, t) for b in range(len(rows)) for t in range(tokens_BT.shape[1])]
        if at is not None:
            asked = list(zip(at[0].tolist(), at[1].tolist(), strict=True))
        for b, t in asked:
            logits_BTV[b, t, self.rule(rows[b][: len(past[b]) + t + 1])] = 20.0
        return (logits_BTV if at is None else logits_BTV[at]), rows

    def fork(self, state: Any, rows: Tensor) -> Any:
        return [state[n] for n in rows.tolist()]


@pytest.fixture(scope="module")
def tokenizer(corpora: Path) -> HopeTokenizer:
    return HopeTokenizer(Tokenizer.load(corpora / "tokenizer"))


def completion(ids: Sequence[int], text: str, tokenizer: HopeTokenizer, wanted: str) -> int:
    """Next token of `wanted` after a context whose decoded text ends with `text` and a part of it."""
    full = tokenizer.encode(wanted, special=False)
    for done in range(min(len(full), len(ids)), -1, -1):
        if list(ids[len(ids) - done :]) == full[:done] and tokenizer.decode(ids[: len(ids) - done]).endswith(
            text
        ):
            return full[done] if done < len(full) else tokenizer.eos_id
    return tokenizer.eos_id


def test_babi_is_solved_by_who_reads_the_last_place(tokenizer: HopeTokenizer, tmp_path: Path) -> None:
    places = ("hall", "garden", "kitchen")
    lines = []
    for n in range(9):
        lines += [f"1 John went to the {places[n % 3]}.", f"2 John went to the {places[(n + n // 3) % 3]}."]
        lines += [f"3 Where is John? \t{places[(n + n // 3) % 3]}\t2"]
    path = tmp_path / "qa1_one_test.txt"
    path.write_text("\n".join(lines) + "\n")

    def rule(ids: tuple[int, ...]) -> int:
        said = tokenizer.decode(list(ids))
        last = said.rsplit("the ", 1)[-1].split(".")[0]
        return completion(ids, "\nAnswer:", tokenizer, f" {last}")

    hay = np.array(tokenizer.encode("lumen tira oru. " * 20, special=False), np.int64)
    found = babi.run(Scorer(Table(tokenizer.vocab_size, rule)), tokenizer, path, [0, 200], hay, 9)
    for name in ("label_accuracy", "exact_match"):
        metric = found.find(name)
        assert metric is not None
        assert (metric.value, metric.n) == (1.0, 18)


@pytest.mark.parametrize("name", ["niah_single_1", "niah_multikey_1", "niah_multivalue", "niah_multiquery"])
def test_needles_are_found_by_who_looks_them_up(name: str, tokenizer: HopeTokenizer) -> None:
    def rule(ids: tuple[int, ...]) -> int:
        said = tokenizer.decode(list(ids))
        body, _, asked = said.rpartition("\nWhat ")
        found = re.findall(r"magic numbers for ([\w-]+) is: (\d+)\.", body)
        values = [value for key, value in found if key in asked.partition("mentioned")[0]]
        end = "provided text is" if len(values) == 1 else "provided text are"
        return completion(ids, end, tokenizer, " " + ", ".join(values))

    hay = np.array(tokenizer.encode("lumen tira oru. " * 40, special=False), np.int64)
    settings = needle.Settings(lengths=[1000], depths=[0.0, 1.0], repeats=1)
    found = needle.run(Scorer(Table(tokenizer.vocab_size, rule)), tokenizer, name, settings, hay)
    metric = found.find("needle_exact")
    assert metric is not None
    assert (metric.value, metric.n) == (1.0, 2)


def test_choice_and_passkey_are_solved_by_who_has_the_answers(context: Callable[..., Context]) -> None:
    """The table is what the documents say after each end of a prefix, and the number after its announcement."""
    made = context()
    settings = choice.Settings(items=12, prefix=48, continuation=8)
    questions, _ = choice.build(made, settings)
    after = {tuple(q.prefix_P[-12:].tolist()): q.choices_KL[q.answer].tolist() for q in questions}

    def rule(ids: tuple[int, ...]) -> int:
        for done in range(8):
            known = after.get(ids[len(ids) - done - 12 : len(ids) - done])
            if known and list(ids[len(ids) - done :]) == known[:done] and len(ids) > 40:
                return int(known[done])
        return 0

    solved = choice.run(context(scorer=Scorer(Table(320, rule))), settings)
    metric = solved.find("choice_accuracy")
    assert metric is not None
    assert (metric.value, metric.n) == (1.0, 12)

    def number(ids: tuple[int, ...]) -> int:
        said = made.tokenizer.decode(list(ids))
        first = said.split(passkey.BEFORE, 1)[-1][:5]
        written = said.rsplit("The pass key is ", 1)[-1]
        return int(made.tokenizer.encode(first)[len(written)]) if len(written) < 5 else 0

    asked = passkey.Settings(lengths=[200], repeats=1)
    solved = passkey.run(context(scorer=Scorer(Table(320, number))), asked)
    assert [m.value for m in solved.metrics if m.group == "all"] == [1.0, 1.0]


def test_classes_are_learned_by_who_remembers_examples(tokenizer: HopeTokenizer) -> None:
    """Labels told in the stream are found again, and those not yet met are not."""

    def rule(ids: tuple[int, ...]) -> int:
        said = tokenizer.decode(list(ids))
        *_, text = said.split("text: ")
        question = text.split("\n")[0]
        known = [part for part in said.split("text: ")[1:-1] if part.startswith(question + "\n")]
        label = known[-1].split("label: ", 1)[-1].split("\n")[0] if known else "zzz"
        return completion(ids, "label:", tokenizer, f" {label}")

    groups = [
        continual.Labelled(name, labels, pairs, pairs)
        for name, labels in (("one", ["alpha", "beta"]), ("two", ["gamma", "delta"]))
        for pairs in [[(f"say {label[::-1]}", label) for label in labels]]
    ]
    table = Scorer(Table(tokenizer.vocab_size, rule))
    found = continual.classes(table, tokenizer, groups, learning.Learning())
    R = continual.matrix(found.metrics, "label_accuracy", ["one", "two"])
    assert R[1, 0] == R[2, 0] == R[2, 1] == 1.0
    assert R[1, 1] < 1.0
