"""Needles in a haystack, of the kinds of RULER (arXiv 2404.06654), to exact token lengths and depths.

    <eos> Some special magic numbers are hidden within the following text. ... haystack ...
    One of the special magic numbers for quiet-harbor is: 7350284. ... haystack ...
    What is the special magic number for quiet-harbor mentioned in the provided text?
    The special magic number for quiet-harbor mentioned in the provided text is 7350284

Prompt and answer together have exactly the stated number of tokens, in the model's own tokenizer. Scored is what
greedy generation writes: the share of the wanted values in it (RULER's string match), and whether all are there.
"""

import resource
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from hope_data.errors import InputError
from hope_eval.results import Items, TaskResult, fingerprint
from hope_eval.scoring.load import Loaded
from hope_eval.scoring.memorize import Memorize, refuse_oracle
from hope_eval.scoring.scorer import Scorer, Tokens
from hope_eval.scoring.tokenizers import TextTokenizer
from hope_eval.tasks.base import Stopwatch
from hope_eval.tasks.texts import TextTask, haystack

VERSION = 1
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n"
ADJECTIVES = (
    "amber brave calm dusty eager faint gentle hollow idle jolly keen lonely mellow narrow proud quiet"
)
NOUNS = "anchor basket candle dragon engine feather garden harbor island jacket kettle ladder mirror orchard"


@dataclass(frozen=True)
class Kind:
    """One of RULER's tasks.

    Attributes:
        haystack: `noise` (five short sentences), `text` (books or held-out documents) or `needles`.
        keys: how many keys have values.
        values: how many values each key has.
        queries: how many keys are asked for.
        value: `numbers` of seven digits or `uuids`.
    """

    haystack: str
    keys: int = 1
    values: int = 1
    queries: int = 1
    value: str = "numbers"


KINDS = {
    "niah_single_1": Kind("noise"),
    "niah_single_2": Kind("text"),
    "niah_single_3": Kind("text", value="uuids"),
    "niah_multikey_1": Kind("text", keys=4),
    "niah_multikey_2": Kind("needles"),
    "niah_multivalue": Kind("text", values=4),
    "niah_multiquery": Kind("text", keys=4, queries=4),
}


@dataclass(frozen=True)
class Settings:
    """Which prompts are made.

    Attributes:
        lengths: tokens of prompt and answer.
        depths: where the (first wanted) needle stands, as shares of the haystack; 0 is the beginning.
        repeats: prompts per length and depth.
    """

    lengths: list[int] = field(default_factory=lambda: [1024, 2048, 4096])
    depths: list[float] = field(default_factory=lambda: [0.0, 0.25, 0.5, 0.75, 1.0])
    repeats: int = 4


@dataclass(frozen=True)
class Item:
    """One prompt and the values it asks for; `room` tokens are left for the answer."""

    length: int
    depth: float
    prompt_T: Tokens
    answers: list[str]
    room: int


@dataclass(frozen=True)
class Needle(TextTask):
    """Prompts of several of RULER's tasks; see `Settings`, and `text` for files of haystacks."""

    tasks: Sequence[str]
    lengths: list[int]
    depths: list[float]
    repeats: int = 4
    text: Sequence[Path] = ()
    seed: int = 0

    def refuse(self, memorize: Memorize) -> None:
        refuse_oracle(memorize, "needle: an oracle would be told the values")

    def run(self, loaded: Loaded, scorer: Scorer) -> list[TaskResult]:
        """Ask every prompt; all tasks are checked before the first begins."""
        text = haystack(loaded.tokenizer, self.texts)
        settings = Settings(self.lengths, self.depths, self.repeats)
        for name in self.tasks:
            check(scorer, name, settings, text)
        return [run(scorer, loaded.tokenizer, name, settings, text, self.seed) for name in self.tasks]


def run(
    scorer: Scorer, tokenizer: TextTokenizer, name: str, settings: Settings, text: Tokens, seed: int = 0
) -> TaskResult:
    """Ask every prompt of a task; lengths in rising order, with the process's peak memory after each.

    Raises:
        InputError: an unknown task, no text where it needs some, a length that has no room for its needles or that
            the model does not allow.
    """
    check(scorer, name, settings, text)
    planned = sum(settings.lengths) * len(settings.depths) * settings.repeats
    watch = Stopwatch(scorer, name, planned)
    prompts: list[Item] = []
    shares: list[float] = []
    peaks = []
    for length in sorted(settings.lengths):
        built = sorted(build(tokenizer, name, settings, length, text, seed), key=lambda p: len(p.prompt_T))
        for size in sorted({len(p.prompt_T) for p in built}):
            alike = [p for p in built if len(p.prompt_T) == size]
            for batch in scorer.batches(len(alike), length):
                shares += ask(scorer, tokenizer, alike[batch])
        prompts += built
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        peaks.append(f"peak memory of the process after {length} tokens: {peak:.0f} MiB")
    items = Items(
        labels={
            "length": [str(p.length) for p in prompts],
            "depth": [f"{p.depth:g}" for p in prompts],
            "cell": [f"{p.length}@{p.depth:g}" for p in prompts],
        },
        cluster=list(range(len(prompts))),
        weight=[1.0] * len(prompts),
        scores={"needle_match": shares, "needle_exact": [float(share == 1.0) for share in shares]},
    )
    values = KINDS[name].values * KINDS[name].queries
    numbers = KINDS[name].value == "numbers"
    return watch.finish(
        task=name,
        version=VERSION,
        settings=asdict(settings),
        seed=seed,
        items=items,
        identity=[name, VERSION, [[fingerprint(p.prompt_T.tolist()), p.answers] for p in prompts]],
        chance={"needle_match": 1e-7, "needle_exact": 10.0 ** (-7 * values)} if numbers else None,
        notes=peaks,
    )


def check(scorer: Scorer, name: str, settings: Settings, text: Tokens) -> None:
    if name not in KINDS:
        raise InputError(f"unknown task '{name}'; choose among {', '.join(KINDS)}")
    if KINDS[name].haystack == "text" and not len(text):
        raise InputError(f"{name}: its haystack is text; name files with --text, or run niah_single_1")
    limit = scorer.model.max_length
    if limit is not None and max(settings.lengths) > limit:
        raise InputError(
            f"{name}: {max(settings.lengths)} tokens, but attention of this model allows {limit}; "
            "give shorter --lengths, or a model with a bounded state"
        )


def build(
    tokenizer: TextTokenizer, name: str, settings: Settings, length: int, text: Tokens, seed: int
) -> Iterator[Item]:
    """Prompts of one length; the same for the same tokenizer, text, settings and seed."""
    kind, words = KINDS[name], [f"{a}-{n}" for a in ADJECTIVES.split() for n in NOUNS.split()]
    rng = np.random.default_rng([seed, length, list(KINDS).index(name)])
    for number in range(len(settings.depths) * settings.repeats):
        depth = settings.depths[number % len(settings.depths)]
        keys = [words[n] for n in rng.choice(len(words), kind.keys, replace=False)]
        values = [[_value(rng, kind.value) for _ in range(kind.values)] for _ in keys]
        wanted = list(range(kind.queries))
        answers = [value for n in wanted for value in values[n]]
        head, tail = _frame(kind, [keys[n] for n in wanted])
        needles = [_needle(kind, keys[n], value) for n in range(kind.keys) for value in values[n]]
        parts = [np.array(tokenizer.encode(needle, special=False), np.int64) for needle in needles]
        begin = np.array(tokenizer.encode(head), np.int64)
        end = np.array(tokenizer.encode(tail, special=False), np.int64)
        # Values stand at the end of the answer, joined as in the question; a few tokens more for other wording.
        room = len(tokenizer.encode(" " + ", ".join(answers), special=False)) + 2
        size = length - room - len(begin) - len(end) - sum(map(len, parts))
        if size < 0:
            raise InputError(
                f"{name}: length {length} is too short; this prompt alone takes {length - size} tokens"
            )
        hay = _haystack(tokenizer, kind, rng, text, size)
        shares = [depth, *rng.random(len(parts) - 1)]
        prompt = np.concatenate([begin, *_place(hay, parts, shares), end])
        yield Item(length, depth, prompt, answers, room)


def ask(scorer: Scorer, tokenizer: TextTokenizer, prompts: Sequence[Item]) -> list[float]:
    """Share of the wanted values in what greedy generation writes; prompts are of equal length."""
    steps = max(p.room for p in prompts)
    fork = scorer.prefill(np.stack([p.prompt_T for p in prompts]))
    generated = scorer.greedy(fork, steps)
    texts = [tokenizer.decode(ids[: p.room].tolist()) for ids, p in zip(generated, prompts, strict=True)]
    return [
        sum(answer in text for answer in p.answers) / len(p.answers)
        for text, p in zip(texts, prompts, strict=True)
    ]


def _value(rng: np.random.Generator, kind: str) -> str:
    if kind == "uuids":
        return str(uuid.UUID(bytes=rng.bytes(16), version=4))
    return str(rng.integers(10**6, 10**7))


def _needle(kind: Kind, key: str, value: str) -> str:
    return f"\nOne of the special magic {kind.value} for {key} is: {value}.\n"


def _frame(kind: Kind, keys: list[str]) -> tuple[str, str]:
    """RULER's words before and after the haystack."""
    asked = ", ".join(keys[:-1]) + ", and " + keys[-1] if len(keys) > 1 else keys[0]
    one = kind.queries * kind.values == 1
    thing = kind.value[:-1] if one else kind.value
    head = (
        f"{'A' if one else 'Some'} special magic {thing} {'is' if one else 'are'} hidden within the following text. "
        f"Make sure to memorize it. I will quiz you about the {thing} afterwards.\n"
    )
    tail = (
        f"\nWhat {'is' if one else 'are all'} the special magic {thing} for {asked} mentioned in the provided text? "
        f"The special magic {thing} for {asked} mentioned in the provided text {'is' if one else 'are'}"
    )
    return head, tail


def _haystack(
    tokenizer: TextTokenizer, kind: Kind, rng: np.random.Generator, text: Tokens, size: int
) -> Tokens:
    if kind.haystack == "text":
        start = int(rng.integers(len(text)))
        return np.resize(np.roll(text, -start) if size < len(text) else text, size)
    if kind.haystack == "noise":
        return np.resize(np.array(tokenizer.encode(NOISE, special=False), np.int64), size)
    words = [f"{a}-{n}s" for a in ADJECTIVES.split() for n in NOUNS.split()]
    other = "".join(
        _needle(kind, words[int(rng.integers(len(words)))], _value(rng, kind.value)) for _ in range(200)
    )
    return np.resize(np.array(tokenizer.encode(other, special=False), np.int64), size)


def _place(hay: Tokens, parts: Sequence[Tokens], shares: Sequence[float]) -> list[Tokens]:
    """The haystack with each needle at its share of it."""
    order = sorted(range(len(parts)), key=lambda n: shares[n])
    cuts = [round(shares[n] * len(hay)) for n in order]
    pieces, at = [], 0
    for n, cut in zip(order, cuts, strict=True):
        pieces += [hay[at:cut], parts[n]]
        at = cut
    return [*pieces, hay[at:]]
