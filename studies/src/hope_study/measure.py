"""How a training of a study is measured: the commands of hope-eval, and what of their results is kept."""

from __future__ import annotations

from pathlib import Path

from hope_eval import results
from hope_eval.results import Metric, TaskResult
from hope_eval.scoring.adaptation import parse
from hope_study.records import Measured, Value
from hope_study.study import Training

PLAIN = "plain"
TUNED_ON = "8192"  # tokens of validation text in each trial of an adaptation's dials
COSTS = ("flops_per_token", "state_bytes", "ms_per_token")


def commands(training: Training, folder: Path) -> list[list[str]]:
    """Return the arguments of `hope-eval`, in order, that measure the checkpoint in `folder`."""
    study, data = training.arm.definition, training.config.data
    given = ["--checkpoint", str(folder / "checkpoint"), "--json", str(folder / "measured.json")]
    if data.task:
        return [["task", *given, "--lengths", *study.lengths]]
    texts = ["--shards", data.shards, "--tokenizer", data.tokenizer]
    stream = study.stream
    if stream.domains:
        lr = f"{stream.lr * training.config.optim.lr:g}"
        learn = ["continual", *given, "--tokenizer", data.tokenizer, "--learn", "each", "--lr", lr]
        if stream.classes:
            few = ["--limit", str(len(stream.domains))]
            return [[*learn, "--classes", stream.classes, "--data", stream.data, *few]]
        sizes = ["--tokens", str(stream.tokens), "--held-out", str(stream.held_out)]
        shards = stream.shards or data.shards
        return [[*learn, "--shards", shards, "--corpora", ",".join(stream.domains), *sizes]]
    given += texts
    writes = training.arm.settings.writes
    chosen = ["--memorize-paths", ",".join(writes)] if writes else []
    if not training.arm.adapt:
        return [["run", *given, "--tasks", "perplexity", *chosen]]
    listed = [command for adapt in training.arm.adapt for command in _adapted(adapt, folder, texts)]
    return [["run", *given, "--tasks", "perplexity,perplexity_shuffled", *chosen], *listed]


def _adapted(adapt: str, folder: Path, texts: list[str]) -> list[list[str]]:
    """Tune an adaptation's dials on validation text, then measure with them; `START DIALS` as in `Study.adapt`."""
    start, _, dials = adapt.partition(" ")
    name = parse(start).name
    given = ["--checkpoint", str(folder / "checkpoint"), *texts]
    measured = ["run", *given, "--json", str(folder / f"measured-{name}.json")]
    # A gradient step for every few tokens: the control takes as long again as the text itself.
    measured += [
        "--tasks",
        "perplexity" if name == "dynamic" else "perplexity,perplexity_shuffled",
        "--adapt",
    ]
    if not parse(start).grids:
        return [[*measured, start]]
    tuned = str(folder / f"tuned-{name}.json")
    only = ["--dials", dials] if dials else []
    tune = ["tune", "--adapt", start, *given, "--json", tuned, "--tokens", TUNED_ON, *only]
    return [tune, [*measured, tuned]]


def read(training: Training, folder: Path) -> Measured:
    """Read what is kept of the results in `folder`.

    Of a stream the values of each way of learning, named in `group`. Of text that is adapted, every condition's: its
    name, `NAME/domain=…` and the like, and `NAME/shuffled`, in `group`.
    """
    tasks, length = results.load(folder / "measured.json").tasks, training.config.length
    if training.arm.definition.stream.domains:
        return Measured(streamed(tasks, length))
    if training.arm.adapt:
        return _conditions(training, folder, tasks, length)
    metrics = with_writes(tasks).metrics
    if not training.config.data.task:  # over all domains
        metrics = [m for m in metrics if (m.name, m.group) == ("bits_per_byte", "all")]
    return Measured(
        [_value(m, int(m.group.replace("all", f"length={length}").partition("=")[2])) for m in metrics]
    )


def _conditions(training: Training, folder: Path, plain: list[TaskResult], length: int) -> Measured:
    first = plain[0]
    values = [_value(m, length) for m in first.metrics if (m.name, m.group) == ("bits_per_byte", "all")]
    documents = {"bytes": first.items.weight}
    dials = {}
    conditions = {PLAIN: plain}
    for adapt in training.arm.adapt:
        start = parse(adapt.partition(" ")[0])
        tasks = results.load(folder / f"measured-{start.name}.json").tasks
        conditions[start.name] = [task for task in tasks if task.task.endswith(f"+{start.name}")]
        tuned = folder / f"tuned-{start.name}.json"
        dials[start.name] = (parse(str(tuned)) if start.grids else start).text()
        settings = conditions[start.name][0].settings
        values += _costs(start.name, length, settings, "adapt_")
        if "plain_flops_per_token" in settings and not any(v.group == PLAIN for v in values):
            ms = next(task for task in tasks if task.task == "perplexity").settings
            values += _costs(
                PLAIN, length, {**settings, **{k: v for k, v in ms.items() if k in COSTS}}, "plain_"
            )
    for name, tasks in conditions.items():
        for task in tasks:
            values += [_value(m, length, group) for m, group in _kept(name, task)]
            if task.task.split("+")[0] == "perplexity":
                documents[name] = task.items.scores["bits_per_byte"]
    return Measured(values, documents, dials)


def _kept(name: str, task: TaskResult) -> list[tuple[Metric, str]]:
    """The metrics of one condition that are kept, with their groups."""
    if "_shuffled" in task.task:
        chosen = [m for m in task.metrics if m.name == "bits_per_byte" and m.group == "all"]
        return (
            [(m, f"{name}/shuffled") for m in chosen]
            if task.task.split("+")[0] == "perplexity_shuffled"
            else []
        )
    return [
        (m, name if m.group == "all" else f"{name}/{m.group}")
        for m in task.metrics
        if m.name in ("bits_per_byte", "token_nats")
    ]


def _costs(
    name: str, length: int, settings: dict[str, int | float | str | list[int] | list[float]], prefix: str
) -> list[Value]:
    """What reading costs with this adaptation: FLOPs and milliseconds a token, bytes of state."""
    found = {key: settings.get(prefix + key, settings.get(key)) for key in COSTS}
    return [
        Value(key, length, 1, float(value), None, None, name)
        for key, value in found.items()
        if isinstance(value, int | float)
    ]


def with_writes(tasks: list[TaskResult]) -> TaskResult:
    """Return the task that was asked for: where only some memories are written, the file also has one without."""
    return next(task for task in tasks if not task.task.endswith("+off"))


def streamed(tasks: list[TaskResult], length: int) -> list[Value]:
    """Return R[i][j] as `WAY i>DOMAIN`, in bits per byte or accuracy, and what follows from it as `WAY`."""
    values = []
    for task in tasks:
        way = task.task.removeprefix("continual_stream_").removeprefix("continual_classes_")
        for m in task.metrics:
            cell = m.group.startswith("cell=")
            if cell or (m.group == "all" and m.name not in ("bits_per_byte", "label_accuracy")):
                group = f"{way} {m.group.removeprefix('cell=')}" if cell else way
                values.append(_value(m, length, group))
    return values


def _value(metric: Metric, length: int, group: str = "") -> Value:
    return Value(metric.name, length, metric.n, metric.value, metric.stderr, metric.chance, group)
