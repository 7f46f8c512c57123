"""Continual learning: what is learned of one domain after another, and what is forgotten of those before.

    stream   domains one after another; after each, bits per byte of all: R[i][j] after domain i on domain j
    classes  new classes domain by domain (CLINC150, Banking77, DBpedia); accuracy by label scoring

Row 0 of R is before anything was learned; `learning` has the ways to learn. With losses, lower is better:

    forgetting_j        R[n][j] - min_{i >= j} R[i][j]        (accuracies: max - last), mean over j < n
    backward transfer   R[j][j] - R[n][j]                     positive: later domains helped
    forward transfer    R[0][j] - R[j-1][j]                   positive: earlier domains helped
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hope_data.errors import InputError
from hope_eval.results import Items, Metric, TaskResult, fingerprint, rounded
from hope_eval.scoring.load import Loaded
from hope_eval.scoring.memorize import Memorize, refuse_oracle
from hope_eval.scoring.scorer import Scorer
from hope_eval.scoring.tokenizers import TextTokenizer
from hope_eval.tasks import class_data, streams
from hope_eval.tasks.base import Stopwatch, Task
from hope_eval.tasks.class_data import Labelled
from hope_eval.tasks.held_out import corpora, own_tokenizer
from hope_eval.tasks.learning import WEIGHTS, Learner, Learning, each
from hope_eval.tasks.streams import Domain
from hope_eval.tasks.texts import load_texts

VERSION = 1
DRAWS = 500
EACH = "--learn each: it freezes and writes by itself; leave out --memorize"
Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Transfer:
    """The three numbers of a matrix; positive transfer is good, positive forgetting is bad."""

    forgetting: float
    backward: float
    forward: float


def transfer(R: Matrix, *, lower_is_better: bool) -> Transfer:
    """Average forgetting, backward and forward transfer of R [n + 1, n], row 0 being before any domain."""
    n = R.shape[1]
    if R.shape != (n + 1, n):
        raise ValueError(f"R must be [n + 1, n], not {R.shape}")
    loss = R if lower_is_better else -R
    if n < 2:
        return Transfer(0.0, 0.0, 0.0)
    last, after = loss[n], loss[1:]
    forgetting = [last[j] - after[j:, j].min() for j in range(n - 1)]
    backward = [after[j, j] - last[j] for j in range(n - 1)]
    forward = [loss[0, j] - after[j - 1, j] for j in range(1, n)]
    return Transfer(float(np.mean(forgetting)), float(np.mean(backward)), float(np.mean(forward)))


def transfer_errors(
    items: Items, score: str, domains: Sequence[str], *, lower_is_better: bool
) -> Transfer | None:
    """Standard errors of the three: `DRAWS` bootstraps over the held-out documents of each domain.

    None where a domain has fewer than two documents.
    """
    places = np.array([domains.index(name) for name in items.labels["domain"]])
    docs = len(places) // (len(domains) + 1)  # every stage asks the same ones, in the same order
    sizes = np.bincount(places[:docs], minlength=len(domains))
    if sizes.min() < 2:
        return None
    score_SN = np.array(items.scores[score]).reshape(-1, docs)
    weight_N, member_NJ = np.array(items.weight[:docs]), np.eye(len(domains))[places[:docs]]
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(DRAWS):
        times_N = np.zeros(docs)
        for place, size in enumerate(sizes):
            times_N[places[:docs] == place] = rng.multinomial(size, np.full(size, 1 / size))
        R = (score_SN * times_N) @ member_NJ / ((weight_N * times_N) @ member_NJ)
        draw = transfer(R, lower_is_better=lower_is_better)
        drawn.append([draw.forgetting, draw.backward, draw.forward])
    return Transfer(*np.std(drawn, axis=0, ddof=1).tolist())


@dataclass(frozen=True)
class Continual(Task):
    """A stream of domains, or of groups of new classes.

    Attributes:
        text: files with a domain each; or
        shards: a folder with a domain per corpus; or
        classes: kind of labelled texts, see `class_data`.
        data: their folder.
        corpora: of `shards`, in this order; none given means all.
        learn: a way of `learning`, or `each` for all that the model can.
        lr: of training.
        penalty: of `ewc`.
        tokens: learned of each domain.
        held_out: tokens measured of each domain.
        shots: examples learned of each class.
        questions: asked of each class.
        limit: the first domains or groups.
        seed: of what is drawn.
    """

    text: Sequence[Path] | None = None
    shards: Path | None = None
    classes: str | None = None
    data: Path | None = None
    corpora: Sequence[str] = ()
    learn: str = "memorize"
    lr: float = 1e-4
    penalty: float = 1e6
    tokens: int = 20_000
    held_out: int = 5_000
    shots: int = 5
    questions: int = 1
    limit: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse options that do not go together, and unreadable texts."""
        if self.classes and not self.data:
            raise InputError("--classes: name the folder of the labelled texts with --data")
        if self.corpora and not self.shards:
            raise InputError("--corpora: are of --shards")
        _ = self.texts

    @cached_property
    def texts(self) -> dict[str, str]:
        """Texts by name."""
        return load_texts(self.text or ())

    def refuse(self, memorize: Memorize) -> None:
        """Refuse an oracle, and memorising beside another way to learn."""
        if self.learn == "each":
            raise InputError(EACH)
        refuse_oracle(memorize, "continual: what is learned and what is asked differ")
        if self.learn != "memorize":
            raise InputError(f"continual --learn {self.learn}: it says what learns; leave out --memorize")

    def run(self, loaded: Loaded, scorer: Scorer) -> list[TaskResult]:
        """Learn the stream, and measure everything after each of its parts."""
        if self.classes and self.data:
            groups = class_data.load(self.classes, self.data, self.shots, self.questions, self.seed)

            def learned(asked: Scorer, learning: Learning) -> TaskResult:
                return classes(asked, loaded.tokenizer, groups[: self.limit], learning, self.seed)
        else:
            domains = self._domains(loaded)[: self.limit]

            def learned(asked: Scorer, learning: Learning) -> TaskResult:
                return stream(asked, domains, learning, self.seed)

        if self.learn == "each":
            return each(scorer, Learning(lr=self.lr, penalty=self.penalty), learned)
        return [learned(scorer, Learning(self.learn, self.lr, penalty=self.penalty))]

    def _domains(self, loaded: Loaded) -> list[Domain]:
        if not self.shards:
            return streams.of_texts(loaded.tokenizer, self.texts, self.tokens, self.held_out)
        tokenizer = own_tokenizer(loaded)
        folders = corpora(self.shards, list(self.corpora))
        return streams.of_shards(tokenizer, folders, self.tokens, self.held_out)


def stream(scorer: Scorer, domains: Sequence[Domain], learning: Learning, seed: int = 0) -> TaskResult:
    """Learn domains in the order given; after each, bits per byte of every domain's held-out documents."""
    if len(domains) < 2:
        raise InputError("continual: a stream needs two domains at least")
    learner = Learner(scorer, learning, seed)
    held_out = sum(len(tokens_T) for domain in domains for tokens_T, _ in domain.held_out)
    learned = learner.steps * sum(len(domain.stream_T) for domain in domains)
    watch = Stopwatch(scorer, "continual", learned + (len(domains) + 1) * held_out)
    stages, names, cluster, weight, bits = [], [], [], [], []
    for stage in range(len(domains) + 1):
        if stage:
            learner.learn(domains[stage - 1].stream_T)
        number = 0
        for domain in domains:
            for tokens_T, n_bytes in domain.held_out:
                stages.append(str(stage))
                names.append(domain.name)
                cluster.append(number)
                weight.append(float(n_bytes))
                bits.append(learner.nats(tokens_T) / np.log(2))
                number += 1
    cells = [f"{i}>{name}" for i, name in zip(stages, names, strict=True)]
    items = Items(
        {"cell": cells, "stage": stages, "domain": names}, cluster, weight, {"bits_per_byte": rounded(bits)}
    )
    identity = [
        [d.name, fingerprint(d.stream_T.tolist()), [t.tolist() for t, _ in d.held_out]] for d in domains
    ]
    scorer.tokens += learner.scorer.tokens
    return _result("continual_stream", items, items.metrics(), learner, watch, identity, seed, lower=True)


def classes(
    scorer: Scorer, tokenizer: TextTokenizer, groups: Sequence[Labelled], learning: Learning, seed: int = 0
) -> TaskResult:
    r"""Learn groups of classes in turn; after each, pick the label of every group's questions.

    A question is `text: ...\nlabel:`; the answer is the likeliest label per token among those met so far. Questions
    of groups not met yet are asked among the labels of all, so that forward transfer has a meaning.
    """
    if len(groups) < 2:
        raise InputError("continual: class-incremental learning needs two groups of classes at least")
    learner = Learner(scorer, learning, seed)
    watch = Stopwatch(scorer, "continual", _planned(tokenizer, groups))
    stages, names, cluster, hits, guess = [], [], [], [], []
    for stage in range(len(groups) + 1):
        if stage:
            lines = "".join(_example(text, label) + "\n" for text, label in groups[stage - 1].learn)
            learner.learn(np.array(tokenizer.encode(lines, special=stage == 1), np.int64))
        met = [label for group in groups[:stage] for label in group.labels]
        every = [label for group in groups for label in group.labels]
        number = 0
        for place, group in enumerate(groups):
            among = met if place < stage else every
            for text, label in group.ask:
                hits.append(float(_pick(learner, tokenizer, text, among) == label))
                guess.append(1 / len(among))
                stages.append(str(stage))
                names.append(group.name)
                cluster.append(number)
                number += 1
    cells = [f"{i}>{name}" for i, name in zip(stages, names, strict=True)]
    labels = {"cell": cells, "stage": stages, "domain": names}
    items = Items(labels, cluster, [1.0] * len(hits), {"label_accuracy": hits})
    metrics = [_with_chance(metric, items, guess) for metric in items.metrics()]
    identity = [[g.name, g.labels, g.learn, g.ask] for g in groups]
    scorer.tokens += learner.scorer.tokens
    return _result("continual_classes", items, metrics, learner, watch, identity, seed, lower=False)


def _planned(tokenizer: TextTokenizer, groups: Sequence[Labelled]) -> int:
    """About the tokens that classes feed: every question, with each of its labels, at every stage."""

    def count(texts: Sequence[str]) -> int:
        return sum(len(tokenizer.encode(text, special=False)) for text in texts)

    every = [label for group in groups for label in group.labels]
    learned = count([_example(*pair) for group in groups for pair in group.learn])
    questions = [_example(text, "") for group in groups for text, _ in group.ask]
    answers = len(questions) * max(0, count(every) - len(every))
    return learned + (len(groups) + 1) * (count(questions) + answers)


def matrix(metrics: Sequence[Metric], name: str, domains: Sequence[str]) -> Matrix:
    """R [n + 1, n] of a task's metrics."""
    values = {metric.group: metric.value for metric in metrics if metric.name == name}
    return np.array([[values[f"cell={i}>{j}"] for j in domains] for i in range(len(domains) + 1)])


def _pick(learner: Learner, tokenizer: TextTokenizer, text: str, labels: Sequence[str]) -> str:
    scorer = learner.scorer
    question = tokenizer.encode(_example(text, ""), special=learner.state is None)
    fork = scorer.prefill_from(np.array([question], np.int64), learner.state)
    scored = scorer.labels(fork, [tokenizer.encode(" " + label, special=False) for label in labels])
    return labels[int(np.argmax(scored))]


def _example(text: str, label: str) -> str:
    return f"text: {text}\nlabel:{' ' + label if label else ''}"


def _with_chance(metric: Metric, items: Items, guess: Sequence[float]) -> Metric:
    chosen = items.groups()[metric.group]
    return Metric(**{**vars(metric), "chance": float(np.mean([guess[n] for n in chosen]))})


def _result(
    task: str,
    items: Items,
    metrics: list[Metric],
    learner: Learner,
    watch: Stopwatch,
    identity: Any,
    seed: int,
    *,
    lower: bool,
) -> TaskResult:
    learning, memory_bytes = learner.learning, learner.memory_bytes
    [score], domains = items.scores, list(dict.fromkeys(items.labels["domain"]))
    value = transfer(matrix(metrics, score, domains), lower_is_better=lower)
    error = transfer_errors(items, score, domains, lower_is_better=lower)
    n = len(domains)
    derived = [
        Metric(name, "all", getattr(value, part), getattr(error, part) if error else None, n - 1, n - 1)
        for name, part in (
            ("forgetting", "forgetting"),
            ("backward_transfer", "backward"),
            ("forward_transfer", "forward"),
        )
    ]
    settings: dict[str, Any] = {"learn": learning.how, "domains": n, "memory_bytes": memory_bytes}
    if learning.how in WEIGHTS:
        settings |= {"lr": learning.lr, "window": learning.window}
    if learning.how == "ewc":
        settings["penalty"] = learning.penalty
    return watch.finish(
        task=f"{task}_{learning.how}",
        version=VERSION,
        settings=settings,
        seed=seed,
        items=items,
        identity=[task, VERSION, identity],
        metrics=metrics + derived,
    )
