"""Sections of the page for the suites: zero-shot, needles, books, continual learning, memorisation."""

from collections.abc import Mapping, Sequence

from hope_eval.report.select import Named
from hope_eval.report.tables import short, table
from hope_eval.results import METRICS, Metric, TaskResult, value
from hope_eval.results.names import NEEDLES

MODES = ("on", "oracle")  # of memorisation; other differences are of adaptations
OURS = ("perplexity", "choice", "passkey")
ROWS = (
    "acc",
    "acc_norm",
    "exact_match",
    "perplexity",
    "word_perplexity",
    "bits_per_byte",
)  # of zero-shot tasks
ZERO_SHOT = """\
Prompts and metrics are lm-eval's; no examples in the prompt; mean ± one standard error over rows."""
MEMORIZED = """\
The same items with memories written at test time and frozen; 95 % bootstrap intervals, paired (none below ten
documents). `oracle` read the correct answers and bounds what memorising could give; it is no result."""
CONTINUAL = """\
Rows of R come after learning a domain (row 0: before any); positive forgetting is bad, positive transfer good."""
WANTED = "Share of the wanted values that greedy generation writes, by tokens of the prompt."


def sections(named: Named, pictures: Mapping[str, str]) -> list[str]:
    """Markdown of every suite that any run has results of; `pictures` is Markdown by file name."""

    def drawn(begin: str) -> list[str]:
        return [shown for name, shown in pictures.items() if name.startswith(begin)]

    parts = []
    zero = [task for task in _tasks(named) if not _is_ours(task)]
    if zero:
        parts += ["## Zero-shot", ZERO_SHOT, _by_metric(named, zero, ROWS)]
    needles = [task for task in _tasks(named) if base(task).startswith(NEEDLES)]
    if needles:
        parts += ["## Needles in a haystack", WANTED, _needles(named, needles), *drawn("needles")]
    stories = [task for task in _tasks(named) if task.startswith("babi_")]
    if stories:
        parts += [
            "## bAbI",
            "Answer picked among all answers of the file, and written greedily.",
            _by_metric(named, stories, ("label_accuracy", "exact_match")),
        ]
    if any(r.task("books_position") for _, r in named):
        parts += [
            "## Loss by position",
            "Whole texts read once; nats per token.",
            _positions(named),
            *drawn("books"),
        ]
    streams = [task for task in _tasks(named) if task.startswith("continual_")]
    if streams:
        parts += ["## Continual learning", CONTINUAL, _continual(named, streams), *drawn("continual_")]
    if any(row.mode in MODES for _, r in named for row in r.memorized):
        parts += ["## Memorisation at test time", MEMORIZED, _memorized(named)]
    return parts


def base(task: str) -> str:
    """A task's name without the mode of memorisation."""
    return task.split("+", 1)[0]


def _tasks(named: Named) -> list[str]:
    return list(dict.fromkeys(task.task for _, result in named for task in result.tasks))


def _is_ours(task: str) -> bool:
    return base(task) in (*OURS, "books", "books_position") or task.startswith(
        ("continual_", "babi_", "perplexity_", NEEDLES)
    )


def _cell(task: TaskResult | None, metric: str, group: str = "all") -> str:
    number = task.find(metric, group) if task else None
    return value(number.value, number.stderr) if number else ""


def _first(named: Named, task: str, metric: str) -> Metric | None:
    tasks = (result.task(task) for _, result in named)
    return next((number for one in tasks if one and (number := one.find(metric))), None)


def _by_metric(named: Named, tasks: Sequence[str], metrics: Sequence[str]) -> str:
    rows = []
    for task in tasks:
        for metric in metrics:
            if common := _first(named, task, metric):
                cells = [_cell(result.task(task), metric) for _, result in named]
                guess = "" if common.chance is None else f"{common.chance:.3g}"
                rows.append([f"{task}: {metric}", *cells, guess, f"{common.n:,}"])
    return table(["task", *(name for name, _ in named), "chance", "n"], rows)


def _needles(named: Named, tasks: Sequence[str]) -> str:
    rows = []
    for task in tasks:
        lengths = dict.fromkeys(
            x for _, r in named if (done := r.task(task)) for x in done.items.labels["length"]
        )
        for length in lengths:
            cells = [_cell(r.task(task), "needle_match", f"length={length}") for _, r in named]
            asked = (r.task(task) for _, r in named)
            count = next(m.n for t in asked if t and (m := t.find("needle_match", f"length={length}")))
            rows.append([f"{task} at {int(length):,}", *cells, f"{count:,}"])
    return table(["task", *(name for name, _ in named), "n"], rows)


def _positions(named: Named) -> str:
    first = next(done for _, r in named if (done := r.task("books_position")))
    rows = [
        [place, *(_cell(r.task("books_position"), "token_nats", f"position={place}") for _, r in named)]
        for place in dict.fromkeys(first.items.labels["position"])
    ]
    return table(["position", *(name for name, _ in named)], rows)


def _continual(named: Named, tasks: Sequence[str]) -> str:
    rows = [
        [f"{task}: {METRICS[metric].title.lower()}", *(_cell(r.task(task), metric) for _, r in named)]
        for task in tasks
        for metric in ("forgetting", "backward_transfer", "forward_transfer")
        if _first(named, task, metric)
    ]
    return table(["task", *(name for name, _ in named)], rows)


def _memorized(named: Named) -> str:
    rows = [
        [
            name,
            row.task,
            row.mode,
            row.metric,
            f"{row.frozen:.3f}",
            f"{row.written:.3f}",
            value(row.difference, row.stderr),
            "-" if row.low is None or row.high is None else f"{row.low:+.3f} to {row.high:+.3f}",
            f"{row.n:,}",
        ]
        for name, result in named
        for row in result.memorized
        if row.group == "all" and row.mode in MODES
    ]
    header = ["run", "task", "mode", "metric", "frozen", "written", "difference", "95 % interval", "n"]
    return table(header, rows)


def everything(named: Named) -> str:
    """Every metric of every run in one long table, for the page that sorts."""
    rows = [
        [
            name,
            task.task,
            metric.name,
            metric.group,
            f"{metric.value:.4f}",
            "" if metric.stderr is None else f"{metric.stderr:.4f}",
            str(metric.n),
            "" if metric.chance is None else f"{metric.chance:.3g}",
            f"{task.seconds:.1f}",
            str(task.version),
            short(result.evaluator.revision),
        ]
        for name, result in named
        for task in result.tasks
        for metric in task.metrics
        if not metric.group.startswith(("cell=", "depth="))
    ]
    header = [
        "run",
        "task",
        "metric",
        "group",
        "value",
        "stderr",
        "n",
        "chance",
        "seconds",
        "version",
        "revision",
    ]
    return table(header, rows)
