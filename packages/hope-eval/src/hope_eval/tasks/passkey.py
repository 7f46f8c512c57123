"""Passkey retrieval: a number hidden in held-out text, asked for at its end.

    <eos> ...held-out text... The pass key is 48213. Remember it. ...more held-out text...
    What is the pass key? The pass key is 48213

Two measures of the same prompts: the number written out by greedy generation, and the most likely among
candidates. Prompt and answer together have exactly the stated length; the number stands at a stated share of
the filler.
"""

from dataclasses import asdict, dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from hope_data.errors import InputError
from hope_eval.results import Items, TaskResult
from hope_eval.scoring.memorize import Memorize, refuse_oracle
from hope_eval.scoring.scorer import Tokens
from hope_eval.tasks.base import Context, Stopwatch

NAME, VERSION = "passkey", 1
BEFORE, AFTER, QUESTION = "\nThe pass key is ", ". Remember it.\n", "\nWhat is the pass key? The pass key is "


@dataclass(frozen=True)
class Settings:
    """Which prompts are made.

    Attributes:
        lengths: tokens of prompt and answer; none given means half, once and twice the training length.
        depths: where the number stands, as shares of the filler; 0 is the beginning.
        repeats: prompts per length and depth, each with its own number and text.
        digits: of the number.
        candidates: numbers to choose from, the true one included.
    """

    lengths: list[int] = field(default_factory=list)
    depths: list[float] = field(default_factory=lambda: [0.0, 0.25, 0.5, 0.75, 1.0])
    repeats: int = 2
    digits: int = 5
    candidates: int = 10


@dataclass(frozen=True)
class Item:
    """One prompt; `candidates_KL[answer]` are the tokens of the number it holds."""

    length: int
    depth: float
    prompt_T: Tokens
    candidates_KL: Tokens
    answer: int


def refuse(memorize: Memorize | None) -> None:
    refuse_oracle(memorize, "passkey: an oracle would be told the number")


def check(context: Context) -> None:
    """Raise InputError where the tokenizer merges digits."""
    _overhead(context, Settings())


def run(context: Context, settings: Settings) -> TaskResult:
    """Ask every prompt twice: by generation and by choice, from one pass over its text."""
    refuse(context.scorer.memorize)
    settings = replace(settings, lengths=settings.lengths or default_lengths(context, settings))
    prompts = build(context, settings)
    spare = (settings.candidates + 1) * (settings.digits - 1)
    watch = Stopwatch(context.scorer, NAME, sum(len(p.prompt_T) + spare for p in prompts))
    chosen: list[float] = []
    exact: list[float] = []
    for length in settings.lengths:
        group = [p for p in prompts if p.length == length]
        for batch in context.scorer.batches(len(group), length + spare):
            right, written = _ask(context, group[batch], settings.digits)
            chosen += right.astype(float).tolist()
            exact += written.astype(float).tolist()
    items = Items(
        labels={"length": [str(p.length) for p in prompts], "depth": [f"{p.depth:g}" for p in prompts]},
        cluster=list(range(len(prompts))),
        weight=[1.0] * len(prompts),
        scores={"passkey_choice": chosen, "passkey_exact": exact},
    )
    asked = [[p.prompt_T.tolist(), p.candidates_KL.tolist(), p.answer] for p in prompts]
    return watch.finish(
        task=NAME,
        version=VERSION,
        settings=asdict(settings),
        seed=context.seed,
        items=items,
        identity=[NAME, VERSION, asked],
        chance={"passkey_choice": 1 / settings.candidates, "passkey_exact": 10.0**-settings.digits},
    )


def default_lengths(context: Context, settings: Settings) -> list[int]:
    """Half, once and twice the training length, none too short for the question and as much filler."""
    least = 2 * _overhead(context, settings)
    return sorted(
        {max(least, length) for length in (context.length // 2, context.length, 2 * context.length)}
    )


def build(context: Context, settings: Settings) -> list[Item]:
    """Make the prompts: the same for the same shards, settings and seed.

    Raises:
        InputError: a length has no room for the question, or the tokenizer merges digits.
    """
    least = _overhead(context, settings)
    short = [length for length in settings.lengths if length < least]
    if short:
        raise InputError(f"passkey: length {short[0]} is too short; the question alone takes {least} tokens")
    encode = context.tokenizer.encode
    prompts = []
    for length in settings.lengths:
        rng = context.rng(NAME, str(length))
        total = context.limited(len(settings.depths) * settings.repeats)
        for number in range(total):
            depth = settings.depths[number % len(settings.depths)]
            keys = rng.choice(10**settings.digits, settings.candidates, replace=False)
            candidates = np.array([encode(f"{key:0{settings.digits}d}") for key in keys], np.int64)
            answer = int(rng.integers(settings.candidates))
            filler = _filler(context, rng, length - least)
            place = round(depth * len(filler))
            parts = (
                [context.tokenizer.begin_id],
                filler[:place],
                [*encode(BEFORE), *candidates[answer], *encode(AFTER)],
                filler[place:],
                encode(QUESTION),
            )
            prompt = np.concatenate([np.asarray(part, np.int64) for part in parts])
            prompts.append(Item(length, depth, prompt, candidates, answer))
    return prompts


def _ask(context: Context, prompts: list[Item], digits: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    scorer = context.scorer
    fork = scorer.prefill(np.stack([p.prompt_T for p in prompts]))
    candidates_BKL = np.stack([p.candidates_KL for p in prompts])
    answers = np.array([p.answer for p in prompts])
    right = scorer.candidates(fork, candidates_BKL).argmax(1) == answers
    truth_BL = candidates_BKL[np.arange(len(prompts)), answers]
    return right, (scorer.greedy(fork, digits) == truth_BL).all(1)


def _overhead(context: Context, settings: Settings) -> int:
    """Tokens of everything but the filler, the answer included."""
    encode = context.tokenizer.encode
    key = "".join(str(n % 10) for n in range(settings.digits))
    if len(encode(key)) != settings.digits:
        raise InputError(
            "passkey: the tokenizer joins digits into one token; leave `passkey` out: --tasks perplexity,choice"
        )
    return 1 + len(encode(BEFORE)) + len(encode(AFTER)) + len(encode(QUESTION)) + 2 * settings.digits


def _filler(context: Context, rng: np.random.Generator, size: int) -> Tokens:
    """Held-out documents of one domain after another, joined by newlines, cut to `size` tokens."""
    newline = context.tokenizer.encode("\n")
    domains = sorted(context.domains)
    parts: list[Tokens] = [np.zeros(0, np.int64)]
    while (have := sum(len(part) for part in parts)) < size:
        split = context.split(domains[rng.integers(len(domains))])
        document = split.document(int(rng.integers(split.n_documents)))
        parts.append(np.concatenate((document[: size - have], newline)).astype(np.int64))
    return np.concatenate(parts)[:size]
