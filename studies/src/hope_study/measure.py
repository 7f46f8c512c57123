"""How a training of a study is measured: the command of hope-eval, and what of its result is kept."""

from __future__ import annotations

from pathlib import Path

from hope_eval import results
from hope_eval.results import Metric, TaskResult
from hope_study.records import Value
from hope_study.study import Training


def command(training: Training, folder: Path, out: Path) -> list[str]:
    """Return the arguments of `hope-eval` that measure the checkpoint in `folder`."""
    study, data = training.arm.definition, training.config.data
    given = ["--checkpoint", str(folder / "checkpoint"), "--json", str(out)]
    if data.task:
        return ["task", *given, "--lengths", *study.lengths]
    given += ["--shards", data.shards, "--tokenizer", data.tokenizer]
    if study.stream.domains:
        sizes = ["--tokens", str(study.stream.tokens), "--held-out", str(study.stream.held_out)]
        lr = f"{study.stream.lr * training.config.optim.lr:g}"
        domains = ",".join(study.stream.domains)
        return ["continual", *given, "--corpora", domains, "--learn", "each", "--lr", lr, *sizes]
    writes = training.arm.settings.writes
    chosen = ["--memorize-paths", ",".join(writes)] if writes else []
    return ["run", *given, "--tasks", "perplexity", *chosen]


def read(training: Training, out: Path) -> list[Value]:
    """Read what is kept of a result; of a stream the values of each way of learning, named in `group`."""
    tasks, length = results.load(out).tasks, training.config.length
    if training.arm.definition.stream.domains:
        return streamed(tasks, length)
    metrics = with_writes(tasks).metrics
    if not training.config.data.task:  # over all domains
        metrics = [m for m in metrics if (m.name, m.group) == ("bits_per_byte", "all")]
    return [_value(m, int(m.group.replace("all", f"length={length}").partition("=")[2])) for m in metrics]


def with_writes(tasks: list[TaskResult]) -> TaskResult:
    """Return the task that was asked for: where only some memories are written, the file also has one without."""
    return next(task for task in tasks if not task.task.endswith("+off"))


def streamed(tasks: list[TaskResult], length: int) -> list[Value]:
    """Return R[i][j] as `WAY i>DOMAIN` in bits per byte, and what follows from it as `WAY`."""
    values = []
    for task in tasks:
        way = task.task.removeprefix("continual_stream_")
        for m in task.metrics:
            cell = m.group.startswith("cell=")
            if cell or (m.group == "all" and m.name != "bits_per_byte"):
                group = f"{way} {m.group.removeprefix('cell=')}" if cell else way
                values.append(_value(m, length, group))
    return values


def _value(metric: Metric, length: int, group: str = "") -> Value:
    return Value(metric.name, length, metric.n, metric.value, metric.stderr, metric.chance, group)
