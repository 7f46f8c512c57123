"""Continuation choice: which of four continues this held-out text?

    prefix   ... returns the mean of the array elements along
    choices  [0] a figure, or None if there is no      [1] the given axis, ignoring NaNs. Parameters
             [2] >>> s.str.lower() 0 captain dtype:    [3] fitted to the training data. Attributes

All four are 16 tokens of held-out documents of one domain, each the end of a window, so that only the fit to
the prefix tells them apart. Two rules pick the answer (sums over tokens; lengths are equal):

- `choice_accuracy`: what gains most from the prefix, log p(choice | prefix) - log p(choice), which is lm-eval's
  mutual-information accuracy. Text that is likely anywhere gains nothing by it.
- `choice_likelihood`: the most likely one, which mostly finds the easiest text.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from hope_data.errors import InputError
from hope_eval.results import Items, TaskResult
from hope_eval.results import questions as needed
from hope_eval.scoring.scorer import Scorer, Tokens
from hope_eval.tasks.base import Context, Stopwatch

NAME, VERSION = "choice", 2


@dataclass(frozen=True)
class Settings:
    """Which items are made.

    Attributes:
        items: over all domains, shared equally as far as documents reach.
        prefix: tokens before the choice, the leading end-of-text token included.
        continuation: tokens of each choice.
        choices: the true one and distractors from other documents.
    """

    items: int = 420
    prefix: int = needed.PREFIX
    continuation: int = needed.CONTINUATION
    choices: int = needed.DOCUMENTS


@dataclass(frozen=True)
class Item:
    """One question; `choices_KL[answer]` is what the document says."""

    domain: str
    document: int
    prefix_P: Tokens
    choices_KL: Tokens
    answer: int


def run(context: Context, settings: Settings) -> TaskResult:
    """Ask every question; an item scores 1 where a rule picks the true continuation, else 0."""
    questions, notes = build(context, settings)
    each = settings.prefix + settings.choices * (settings.continuation - 1)
    alone = len(_texts(questions)) * settings.continuation
    watch = Stopwatch(context.scorer, NAME, each * len(questions) + alone)
    logp_NK = score(context.scorer, questions, each)
    gain_NK = logp_NK - score_alone(context, questions)
    picked = {"choice_accuracy": gain_NK.argmax(1), "choice_likelihood": logp_NK.argmax(1)}
    documents = {key: n for n, key in enumerate(dict.fromkeys((q.domain, q.document) for q in questions))}
    items = Items(
        labels={"domain": [q.domain for q in questions]},
        cluster=[documents[q.domain, q.document] for q in questions],
        weight=[1.0] * len(questions),
        scores={
            name: [float(choice == q.answer) for choice, q in zip(answers, questions, strict=True)]
            for name, answers in picked.items()
        },
    )
    asked = [[q.domain, q.prefix_P.tolist(), q.choices_KL.tolist(), q.answer] for q in questions]
    return watch.finish(
        task=NAME,
        version=VERSION,
        settings=asdict(settings),
        seed=context.seed,
        items=items,
        identity=[NAME, VERSION, asked],
        chance=dict.fromkeys(picked, 1 / settings.choices),
        notes=notes,
    )


def score(scorer: Scorer, questions: list[Item], tokens_each: int) -> NDArray[np.float64]:
    """Log-likelihoods [N, K]: each prefix runs once, its choices from copies of the state it left."""
    rows = []
    for batch in scorer.batches(len(questions), tokens_each):
        fork = scorer.prefill(np.stack([_read(scorer, q) for q in questions[batch]]))
        rows.append(scorer.candidates(fork, np.stack([q.choices_KL for q in questions[batch]])))
    return np.concatenate(rows)


def _read(scorer: Scorer, question: Item) -> Tokens:
    """What stands before the choice; an oracle has read the whole answer once before."""
    if not (scorer.memorize and scorer.memorize.oracle):
        return question.prefix_P
    return np.concatenate([question.prefix_P, question.choices_KL[question.answer], question.prefix_P])


def score_alone(context: Context, questions: list[Item]) -> NDArray[np.float64]:
    """Log-likelihoods [N, K] of the choices with nothing before them; each distinct text is scored once."""
    texts = _texts(questions)
    begin = [context.tokenizer.begin_id]
    logp = context.scorer.token_logp(
        [np.concatenate((begin, choice_L)) for choice_L in texts.values()], fresh=True
    )
    total = {key: float(logp_L.sum()) for key, logp_L in zip(texts, logp, strict=True)}
    return np.array([[total[choice_L.tobytes()] for choice_L in q.choices_KL] for q in questions])


def _texts(questions: list[Item]) -> dict[bytes, Tokens]:
    return {choice_L.tobytes(): choice_L for q in questions for choice_L in q.choices_KL}


def build(context: Context, settings: Settings) -> tuple[list[Item], list[str]]:
    """Make the questions: the same for the same shards, settings and seed.

    Returns:
        The questions, and a note for each domain with fewer than wanted.

    Raises:
        InputError: no domain has enough documents.
    """
    by_domain: dict[str, list[Item]] = {}
    notes = []
    room = context.limited(settings.items)
    # Smallest first: what one domain cannot give, the larger ones make up for.
    order = sorted(context.domains, key=lambda domain: (context.split(domain).n_tokens, domain))
    for place, domain in enumerate(order):
        wanted = max(1, room // (len(order) - place)) if room else 0
        by_domain[domain] = list(_questions(context, domain, settings, wanted))
        room -= len(by_domain[domain])
        if len(by_domain[domain]) < wanted:
            notes.append(
                f"{domain}: {len(by_domain[domain])} of {wanted} items; its test split gives no more"
            )
    questions = [question for domain in context.domains for question in by_domain[domain]]
    if not questions:
        needed = settings.prefix - 1 + settings.continuation
        raise InputError(
            f"choice: no domain has {settings.choices} test documents of {needed} tokens; "
            "use larger shards or leave `choice` out: --tasks perplexity,passkey"
        )
    return questions, notes


def _places(context: Context, domain: str, settings: Settings, count: int) -> list[tuple[int, Tokens]]:
    """Up to `count` windows (document, tokens): the first of every document, then the second, and so on."""
    split = context.split(domain)
    size = settings.prefix - 1 + settings.continuation
    rounds: dict[int, list[tuple[int, Tokens]]] = {}
    for document in context.rng(NAME, domain).permutation(split.n_documents).tolist():
        tokens = split.document(document)
        for turn in range(len(tokens) // size):
            window = tokens[turn * size : (turn + 1) * size].astype(np.int64)
            rounds.setdefault(turn, []).append((document, window))
        if len(rounds.get(0, ())) >= count:
            break
    return [place for turn in sorted(rounds) for place in rounds[turn]][:count]


def _questions(context: Context, domain: str, settings: Settings, wanted: int) -> Iterator[Item]:
    """Up to `wanted` windows as questions; the ends of windows of other documents are their distractors."""
    rng = context.rng(NAME, domain, "distractors")
    cut = settings.prefix - 1
    # A few questions still need other documents to choose from.
    places = _places(context, domain, settings, max(wanted, 4 * settings.choices))
    for document, window in places[:wanted]:
        choices = [window[cut:]]
        for other in rng.permutation(len(places)).tolist():
            candidate = places[other][1][cut:]
            if places[other][0] != document and not any(np.array_equal(candidate, c) for c in choices):
                choices.append(candidate)
            if len(choices) == settings.choices:
                break
        order = rng.permutation(settings.choices)
        if len(choices) == settings.choices:
            prefix = np.concatenate(([context.tokenizer.begin_id], window[:cut]))
            yield Item(domain, document, prefix, np.stack(choices)[order], int(np.flatnonzero(order == 0)[0]))
