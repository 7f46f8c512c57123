"""Items and scores of every task, against counting by hand."""

import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from hope_data.errors import InputError
from hope_data.shards import Split
from hope_eval.results import Items, TaskResult
from hope_eval.tasks import choice, passkey, perplexity
from hope_eval.tasks.base import Context
from hope_model import LanguageModel

Build = Callable[..., Context]


def scores_close(a: Items, b: Items) -> None:
    for name, values in a.scores.items():
        np.testing.assert_allclose(values, b.scores[name], rtol=2e-6)


def value(result: TaskResult, name: str, group: str = "all") -> float:
    found = result.find(name, group)
    assert found is not None
    return found.value


def test_bits_per_byte_by_hand(context: Build, model: LanguageModel) -> None:
    """Every test document of a domain, cut into windows after end-of-text, scored window by window."""
    import torch

    whole = context()
    result = perplexity.run(whole, perplexity.Settings(tokens=10**6, windows=10**6, length=48))
    nats, n_bytes = 0.0, 0
    split = whole.split("right")
    for i in range(split.n_documents):
        tokens = split.document(i).astype(np.int64)
        for start in range(0, len(tokens), 48):
            row = torch.tensor([[whole.tokenizer.eos_id, *tokens[start : start + 48].tolist()]])
            with torch.no_grad():
                logits, _ = model(row[:, :-1])
            nats += float(torch.nn.functional.cross_entropy(logits[0], row[0, 1:], reduction="sum"))
        n_bytes += split.document_bytes(i)
    assert value(result, "bits_per_byte", "domain=right") == pytest.approx(
        nats / math.log(2) / n_bytes, rel=1e-6
    )
    assert sum(result.items.weight) == whole.split("left").n_bytes + n_bytes
    # Of every window all tokens but the last are fed, the leading end-of-text included: so many as are scored.
    documents = whole.split("left").n_documents + split.n_documents
    assert result.tokens == whole.split("left").n_tokens + split.n_tokens - documents


def test_unigram_by_hand(context: Build) -> None:
    whole = context()
    train, test = whole.split("left", "train"), whole.split("left")
    counts = Counter(train.tokens.tolist())
    del counts[whole.tokenizer.eos_id]
    total = sum(counts.values()) + whole.tokenizer.vocab_size
    bits = -sum(
        math.log2((counts[token] + 1) / total)
        for i in range(test.n_documents)
        for token in test.document(i).tolist()
    )
    result = perplexity.run(whole, perplexity.Settings(tokens=10**6, windows=10**6))
    expected = bits / test.n_bytes
    assert value(result, "unigram_bits_per_byte", "domain=left") == pytest.approx(expected, rel=1e-6)
    margin = expected - value(result, "bits_per_byte", "domain=left")
    assert value(result, "unigram_margin", "domain=left") == pytest.approx(margin, rel=1e-6)
    assert np.exp(-perplexity.unigram_nats(train)).sum() == pytest.approx(1.0)


def test_budget_and_limit_bound_the_work(context: Build) -> None:
    settings = perplexity.Settings(tokens=400, windows=2, length=32)
    result = perplexity.run(context(), settings)
    assert result.tokens == 400
    assert set(result.items.labels["domain"]) == {"left", "right"}
    few = perplexity.run(context(limit=2), settings)
    assert few.items.labels["domain"] == ["left", "left", "right", "right"]


@pytest.mark.parametrize("seed", [0, 1])
def test_choices_are_held_out_text_and_never_repeat_the_truth(context: Build, seed: int) -> None:
    whole, settings = context(seed=seed), choice.Settings(items=40, prefix=48, continuation=16)
    questions, notes = choice.build(whole, settings)
    assert (len(questions), notes) == (40, [])
    texts = {domain: everything(whole.split(domain)) for domain in whole.domains}
    for question in questions:
        document = whole.split(question.domain).document(question.document).astype(np.int64)
        truth = question.choices_KL[question.answer]
        assert question.prefix_P[0] == whole.tokenizer.eos_id
        assert contains(document, np.concatenate((question.prefix_P[1:], truth)))
        assert len({tuple(tokens) for tokens in question.choices_KL.tolist()}) == 4
        for k, tokens in enumerate(question.choices_KL):
            if k != question.answer:
                assert not contains(document, tokens)
                assert contains(texts[question.domain], tokens)


def test_choices_are_the_same_for_the_same_seed_only(context: Build) -> None:
    settings = choice.Settings(items=20, prefix=48, continuation=16)

    def made(seed: int) -> list[object]:
        return [(q.domain, q.prefix_P.tolist(), q.choices_KL.tolist(), q.answer) for q in build(seed)]

    def build(seed: int) -> list[choice.Item]:
        return choice.build(context(seed=seed), settings)[0]

    assert made(0) == made(0)
    assert made(0) != made(1)
    # The truth stands in every place.
    assert {q.answer for q in build(0)} == {0, 1, 2, 3}


def test_one_domain_makes_up_for_another(context: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = choice.Settings(items=60, prefix=48, continuation=16)
    original = choice._places

    def scarce(context: Context, domain: str, settings: choice.Settings, count: int) -> object:
        return original(context, domain, settings, 5 if domain == smallest else count)

    whole = context()
    smallest = min(whole.domains, key=lambda name: whole.split(name).n_tokens)
    monkeypatch.setattr(choice, "_places", scarce)
    questions, notes = choice.build(whole, settings)
    counts = Counter(q.domain for q in questions)
    assert counts[smallest] == 5
    assert counts.total() == 60
    assert notes == [f"{smallest}: 5 of 30 items; its test split gives no more"]


def test_one_question_still_has_distractors(context: Build) -> None:
    questions, notes = choice.build(context(limit=1), choice.Settings(prefix=48, continuation=16))
    assert [len(q.choices_KL) for q in questions] == [4]
    assert notes == []


def test_choice_without_documents_says_so(context: Build) -> None:
    with pytest.raises(InputError, match="no domain has 4 test documents of 5015 tokens"):
        choice.build(context(), choice.Settings(prefix=5000))


def test_choice_counts_what_gains_most_and_what_is_most_likely(context: Build) -> None:
    whole, settings = context(), choice.Settings(items=24, prefix=32, continuation=8)
    result = choice.run(whole, settings)
    questions, _ = choice.build(whole, settings)
    eos = whole.tokenizer.eos_id
    after = np.array([choice.score(whole.scorer, [q], 1)[0] for q in questions])
    alone = np.array(
        [[whole.scorer.token_logp([np.append(eos, c)])[0].sum() for c in q.choices_KL] for q in questions]
    )
    answers = [q.answer for q in questions]
    for name, logp in (("choice_likelihood", after), ("choice_accuracy", after - alone)):
        right = logp.argmax(1) == answers
        assert result.items.scores[name] == right.astype(float).tolist()
        assert value(result, name) == pytest.approx(np.mean(right))
    assert result.metrics[0].chance == 0.25
    texts = {c.tobytes() for q in questions for c in q.choices_KL}
    assert result.tokens == 24 * (32 + 4 * 7) + 8 * len(texts)


def test_passkey_prompts_hold_the_number_where_they_say(context: Build) -> None:
    whole = context()
    settings = passkey.Settings(lengths=[128, 200], repeats=2)
    prompts = passkey.build(whole, settings)
    assert Counter(p.length for p in prompts) == {128: 10, 200: 10}
    empty = whole.tokenizer.encode(passkey.BEFORE)
    for prompt in prompts:
        key = prompt.candidates_KL[prompt.answer]
        assert len(prompt.prompt_T) + 5 == prompt.length
        assert len({tuple(tokens) for tokens in prompt.candidates_KL.tolist()}) == 10
        text = whole.tokenizer.decode(prompt.prompt_T.tolist())
        number = whole.tokenizer.decode(key.tolist())
        assert f"The pass key is {number}. Remember it.\n" in text
        assert text.endswith("\nWhat is the pass key? The pass key is ")
        place = find(prompt.prompt_T, np.array([*empty, *key]))
        filler = prompt.length - passkey._overhead(whole, settings)
        assert place == 1 + round(prompt.depth * filler)
    assert [p.prompt_T.tolist() for p in prompts] == [
        p.prompt_T.tolist() for p in passkey.build(whole, settings)
    ]


def test_passkey_lengths_reach_beyond_training(context: Build) -> None:
    assert passkey.default_lengths(context(length=512), passkey.Settings()) == [256, 512, 1024]
    least = 2 * passkey._overhead(context(), passkey.Settings())
    assert passkey.default_lengths(context(length=64), passkey.Settings()) == [least]
    with pytest.raises(InputError, match="length 40 is too short"):
        passkey.build(context(), passkey.Settings(lengths=[40]))


def test_passkey_scores_both_ways(context: Build) -> None:
    whole, settings = context(), passkey.Settings(lengths=[160], repeats=1)
    result = passkey.run(whole, settings)
    prompts = passkey.build(whole, settings)
    rows = [np.concatenate((p.prompt_T, key)) for p in prompts for key in p.candidates_KL]
    logp = np.array([tokens[-5:].sum() for tokens in whole.scorer.token_logp(rows)]).reshape(5, 10)
    right = [float(row.argmax() == p.answer) for row, p in zip(logp, prompts, strict=True)]
    assert result.items.scores["passkey_choice"] == right
    assert result.find("passkey_exact", "length=160") is not None
    assert [m.chance for m in result.metrics if m.group == "all"] == [0.1, 1e-5]
    assert result.tokens == 5 * (155 + 10 * 4 + 4)


@pytest.mark.parametrize("task", ["perplexity", "choice", "passkey"])
def test_batch_of_one_equals_batch_of_many(context: Build, task: str) -> None:
    runs: dict[str, Callable[[Context], TaskResult]] = {
        "perplexity": lambda c: perplexity.run(c, perplexity.Settings(tokens=1500, length=40)),
        "choice": lambda c: choice.run(c, choice.Settings(items=16, prefix=32, continuation=8)),
        "passkey": lambda c: passkey.run(c, passkey.Settings(lengths=[128], repeats=1)),
    }
    one, many = runs[task](context(batch_tokens=1)), runs[task](context(batch_tokens=4096))
    scores_close(one.items, many.items)
    assert one.items_sha256 == many.items_sha256
    assert (one.items.labels, one.tokens) == (many.items.labels, many.tokens)


def everything(split: Split) -> np.ndarray:
    return np.asarray(split.tokens).astype(np.int64)


def find(text: np.ndarray, part: np.ndarray) -> int:
    """First place of a part, or -1."""
    windows = np.lib.stride_tricks.sliding_window_view(text, len(part))
    places = np.flatnonzero((windows == part).all(1))
    return int(places[0]) if len(places) else -1


def contains(text: np.ndarray, part: np.ndarray) -> bool:
    return len(text) >= len(part) and find(text, part) >= 0
