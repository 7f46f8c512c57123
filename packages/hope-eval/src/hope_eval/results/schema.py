"""The result of an evaluation as one typed value: what was measured, on what, how surely.

A file holds every item's score, so that two files over the same items can be compared in pairs. Loading is
strict: an unknown or missing key, a wrong type or another schema version is an error that names file and key, and
a changed digit breaks the seal, a hash of all that the file holds.
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError

from hope_data.errors import InputError
from hope_data.files import read_bytes, sha256_bytes
from hope_eval.escape import printable
from hope_eval.results.names import check_count, check_labels, check_name
from hope_eval.results.statistics import ratio

SCHEMA = 2
STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class MetricInfo:
    """How a metric is to be read."""

    title: str
    unit: str
    lower_is_better: bool = False


METRICS = {
    "bits_per_byte": MetricInfo("Bits per byte", "bits/byte", lower_is_better=True),
    "unigram_bits_per_byte": MetricInfo(
        "Bits per byte of a unigram model", "bits/byte", lower_is_better=True
    ),
    "unigram_margin": MetricInfo("Below unigram", "bits/byte"),
    "choice_accuracy": MetricInfo("Continuation choice", "accuracy"),
    "choice_likelihood": MetricInfo("Choice by likelihood alone", "accuracy"),
    "passkey_choice": MetricInfo("Passkey among candidates", "accuracy"),
    "passkey_exact": MetricInfo("Passkey by greedy generation", "exact match"),
    "acc": MetricInfo("Accuracy", "accuracy"),
    "acc_norm": MetricInfo("Accuracy by likelihood per character", "accuracy"),
    "exact_match": MetricInfo("Exact match", "accuracy"),
    "target_nats": MetricInfo("Nats of the target", "nats", lower_is_better=True),
    "perplexity": MetricInfo("Perplexity of the target", "perplexity", lower_is_better=True),
    "needle_match": MetricInfo("Needle values found", "share"),
    "needle_exact": MetricInfo("All needle values found", "exact match"),
    "token_nats": MetricInfo("Loss", "nats/token", lower_is_better=True),
    "label_accuracy": MetricInfo("Label by likelihood", "accuracy"),
    "task_accuracy": MetricInfo("Answers right", "accuracy"),
    "task_exact": MetricInfo("Sequences all right", "exact match"),
    "forgetting": MetricInfo("Average forgetting", "as the task", lower_is_better=True),
    "backward_transfer": MetricInfo("Backward transfer", "as the task"),
    "forward_transfer": MetricInfo("Forward transfer", "as the task"),
    "word_perplexity": MetricInfo("Word perplexity", "perplexity", lower_is_better=True),
}


def check_metric(name: str) -> None:
    """Raise InputError unless a metric is known."""
    if name not in METRICS:
        raise InputError(f"no metric is called {name[:80]!r}; this hope-eval knows {', '.join(METRICS)}")


@dataclass(frozen=True)
class Metric:
    """One number.

    Attributes:
        name: key of `METRICS`.
        group: `all`, or a label and its value, as in `domain=code`.
        value: sum of scores over sum of weights.
        stderr: its standard error over clusters; None with fewer than two.
        n: items.
        clusters: independent documents (or prompts) among them.
        chance: what guessing would give, where that exists.
    """

    __pydantic_config__ = STRICT
    name: str
    group: str
    value: float
    stderr: float | None
    n: int
    clusters: int
    chance: float | None = None

    def __post_init__(self) -> None:
        check_metric(self.name)


@dataclass(frozen=True)
class Items:
    """Columns of equal length, one entry per item.

    Attributes:
        labels: what items are grouped by, as in `{"domain": [...]}`.
        cluster: items with the same number come from the same document.
        weight: denominator of every score: bytes, or 1 for a trial.
        scores: numerators by metric: bits, or 0 and 1.
    """

    __pydantic_config__ = STRICT
    labels: dict[str, list[str]]
    cluster: list[int]
    weight: list[float]
    scores: dict[str, list[float]]

    def __post_init__(self) -> None:
        """Refuse columns of different lengths, weights that cannot be, and labels that are not what they should be."""
        columns: dict[str, Sized] = {**self.labels, **self.scores, "weight": self.weight}
        for name, column in columns.items():
            if len(column) != len(self.cluster):
                raise InputError(f"{name} has {len(column)} entries, cluster {len(self.cluster)}")
        if not self.cluster:
            raise InputError("there are no items to score; take more text or a smaller --length")
        if min(self.weight) <= 0:
            raise InputError(f"weight {min(self.weight)} is not above 0")
        for name in self.scores:
            check_metric(name)
        check_labels(self.labels)

    def groups(self) -> dict[str, list[int]]:
        """Item numbers of every group; `all` first, then each label's values in order of appearance."""
        groups: dict[str, list[int]] = {"all": list(range(len(self.weight)))}
        for label, values in self.labels.items():
            for index, value in enumerate(values):
                groups.setdefault(f"{label}={value}", []).append(index)
        return groups

    def columns(self, name: str, chosen: Sequence[int]) -> tuple[Any, Any, Any]:
        """Score, weight and cluster of the chosen items, as `statistics.ratio` takes them."""
        columns = (self.scores[name], self.weight, self.cluster)
        return tuple(np.asarray(column)[list(chosen)] for column in columns)  # type: ignore[return-value]

    def metrics(self, chance: Mapping[str, float] | None = None) -> list[Metric]:
        """Every score in every group as a metric."""
        metrics = []
        for name in self.scores:
            for group, chosen in self.groups().items():
                estimate = ratio(*self.columns(name, chosen))
                guess = (chance or {}).get(name)
                metrics.append(Metric(name, group, **dataclasses.asdict(estimate), chance=guess))
        return metrics


@dataclass(frozen=True)
class TaskResult:
    """One task on one checkpoint.

    Attributes:
        task: its name.
        version: raised whenever its items or its scoring change.
        settings: everything that determines the items, beside data and seed.
        seed: of the items.
        items_sha256: over the items' tokens; files with the same value can be compared in pairs.
        tokens: fed to the model.
        seconds: wall clock.
        notes: what a reader has to know, such as domains left out.
        cpu_seconds: of all threads of the process, which other processes hardly change; 0 on other devices.
    """

    __pydantic_config__ = STRICT
    task: str
    version: int
    settings: dict[str, bool | int | float | str | list[int] | list[float]]
    seed: int
    items_sha256: str
    tokens: int
    seconds: float
    metrics: list[Metric]
    items: Items
    notes: list[str] = field(default_factory=list)
    cpu_seconds: float = 0.0

    def __post_init__(self) -> None:
        check_name("task", self.task)

    @property
    def ms_per_token(self) -> float:
        """Milliseconds of reading: the processor's where they are known, else the clock's."""
        return 1000 * (self.cpu_seconds or self.seconds) / max(1, self.tokens)

    def find(self, name: str, group: str = "all") -> Metric | None:
        """One of the metrics, if it was measured."""
        return next((m for m in self.metrics if (m.name, m.group) == (name, group)), None)


@dataclass(frozen=True)
class PairedDifference:
    """Memories written at test time minus memories frozen, or adapted minus plain, over the same items.

    Attributes:
        task: without the mode.
        mode: `on`, `oracle` where correct answers were read, or the adaptation's name.
        metric: key of `METRICS`.
        group: as in `Metric`.
        written: value with memories written, or adapted.
        frozen: value without.
        difference: the first minus the second.
        stderr: of the difference, over clusters.
        low: lower end of its 95 % bootstrap interval; None below ten clusters.
        high: upper end.
        n: items.
        clusters: independent documents (or prompts) among them.
    """

    __pydantic_config__ = STRICT
    task: str
    mode: str
    metric: str
    group: str
    written: float
    frozen: float
    difference: float
    stderr: float | None
    low: float | None
    high: float | None
    n: int
    clusters: int

    def __post_init__(self) -> None:
        check_metric(self.metric)
        if (self.low is None) != (self.high is None):
            raise InputError("an interval has two ends, or none")


@dataclass(frozen=True)
class Checkpoint:
    """What was evaluated; the fields come from the checkpoint's own files."""

    __pydantic_config__ = STRICT
    run: str
    variant: str
    parameters: int
    seed: int | None
    step: int | None
    tokens: int | None
    sha256: str
    config_sha256: str
    tokenizer_sha256: str
    revision: str

    def __post_init__(self) -> None:
        """Refuse a run or a variant whose name could lead out of a folder, and counts that are none."""
        check_name("run", self.run)
        check_name("variant", self.variant)
        for key in ("parameters", "seed", "step", "tokens"):
            if getattr(self, key) is not None:
                check_count(key, getattr(self, key))


@dataclass(frozen=True)
class Evaluator:
    """What evaluated it."""

    __pydantic_config__ = STRICT
    revision: str
    hope_eval: str
    torch: str
    device: str
    threads: int


@dataclass(frozen=True)
class Results:
    """Everything about one evaluation of one checkpoint."""

    __pydantic_config__ = STRICT
    schema: int
    checkpoint: Checkpoint
    evaluator: Evaluator
    tasks: list[TaskResult]
    seconds: float
    memorized: list[PairedDifference] = field(default_factory=list)

    def task(self, name: str) -> TaskResult | None:
        """The result of a task, if it was run."""
        return next((task for task in self.tasks if task.task == name), None)


def merge(existing: Results, new: Results) -> Results:
    """Return all that was measured of a checkpoint; what was measured again replaces what was."""
    done = {task.task for task in new.tasks}
    again = {(row.task, row.mode) for row in new.memorized}
    return dataclasses.replace(
        new,
        tasks=[task for task in existing.tasks if task.task not in done] + new.tasks,
        memorized=[row for row in existing.memorized if (row.task, row.mode) not in again] + new.memorized,
        seconds=round(existing.seconds + new.seconds, 3),
    )


def load(path: Path) -> Results:
    """Read a result file.

    Raises:
        InputError: no such file, no JSON, another schema version, unknown or missing keys, wrong types, a changed
            digit.
    """
    try:
        data = read_bytes(path)
        record = json.loads(data)
        version, seal = record["schema"], record.pop("seal", "")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or f"not a result of `hope-eval run` ({_short(error)})"
        raise InputError(f"{path}: {reason}") from None
    if version != SCHEMA:
        raise InputError(f"{path}: schema {version!r}, this hope-eval reads {SCHEMA}; evaluate again")
    try:
        result = TypeAdapter(Results).validate_json(json.dumps(record))
    except ValidationError as error:
        raise InputError(f"{path}: {first_fault(error)}; evaluate again") from None
    if sealed(record) != data:
        raise InputError(
            f"{path}: was changed after it was written (seal {str(seal)[:12]!r} does not fit); evaluate again"
        )
    return result


def first_fault(error: ValidationError) -> str:
    """What pydantic found first: the key, then what is wrong with it."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    return printable(f"{where}: {message[:1].lower()}{message[1:]}"[:400])


def _short(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)[:100]


def sealed(value: Any) -> bytes:
    """JSON with a `seal` at its end: the hash of everything before it."""
    plain = dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value  # type: ignore[arg-type]
    return dumps({**plain, "seal": sha256_bytes(dumps(plain).encode())}).encode()


def dumps(value: Any) -> str:
    """JSON for people and for diffs: nested, with lists of plain values on one line."""
    plain = dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value  # type: ignore[arg-type]
    text = json.dumps(plain, indent=1, allow_nan=False)
    flat = re.sub(
        r"\[[^\[\]{}]*\]", lambda match: re.sub(r"\n\s*", "", match[0].replace(",\n", ", \n")), text
    )
    return flat + "\n"


def rounded(values: Sequence[float]) -> list[float]:
    """Six digits after the point: enough to recompute every metric, little enough to keep in git."""
    return [round(float(value), 6) for value in values]


def fingerprint(items: object) -> str:
    """SHA-256 over items given as nested lists of numbers and strings."""
    return sha256_bytes(json.dumps(items).encode())


def headline(result: Results) -> dict[str, float]:
    """A few flat numbers for `dvc metrics`: every overall score, and the errors of the main two."""
    numbers: dict[str, float] = {}
    overall = [(task, m) for task in result.tasks for m in task.metrics if m.group == "all"]
    for task, metric in overall:
        if metric.name not in task.items.scores:
            continue
        name = metric.name if "+" not in task.task else f"{task.task}.{metric.name}"
        numbers[name] = round(metric.value, 6)
        if metric.name in ("bits_per_byte", "choice_accuracy") and metric.stderr is not None:
            numbers[f"{name}_stderr"] = round(metric.stderr, 6)
    return numbers


def line(metric: Metric) -> str:
    """A metric in words, with all that belongs to it."""
    chance = "" if metric.chance is None else f", chance {metric.chance:g}"
    title = METRICS[metric.name].title
    return f"{title}: {value(metric.value, metric.stderr)} (n {metric.n}{chance})"


def value(number: float, stderr: float | None) -> str:
    """A number with its standard error; perplexities of untrained models are long."""
    if abs(number) >= 1e5:
        return f"{number:.3g}" if stderr is None else f"{number:.3g} ± {stderr:.2g}"
    return f"{number:.3f}" if stderr is None else f"{number:.3f} ± {stderr:.3f}"
