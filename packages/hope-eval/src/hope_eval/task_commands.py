"""Command lines of the synthetic tasks."""

import argparse
import time
from pathlib import Path

from hope_eval import results as schema
from hope_eval.arguments import device, positive, relative_length, seed
from hope_eval.commands import (
    Parsers,
    add_memorize,
    evaluator,
    memorize_of,
    run_tasks,
    say_differences,
    write,
)
from hope_eval.escape import terminal


def add(commands: Parsers) -> None:
    """All of them."""
    task = commands.add_parser(
        "task",
        help="accuracy by length on the synthetic task a checkpoint was trained on",
        description="Fresh sequences of each length, the same for every checkpoint of a task; standard errors are "
        "over sequences. Task and training length come from the checkpoint.",
        epilog="example:\n  hope-eval task --checkpoint runs/parity/checkpoint --lengths 1x 2x 8x --json parity.json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    task.add_argument("--checkpoint", type=Path, required=True, metavar="DIR")
    task.add_argument(
        "--lengths",
        nargs="+",
        type=relative_length,
        default=["1x", "2x", "4x", "8x"],
        metavar="T",
        help="tokens, or 2x for twice the training length; default: 1x 2x 4x 8x",
    )
    task.add_argument(
        "--count", type=positive, default=256, metavar="N", help="sequences per length; default: %(default)s"
    )
    task.add_argument(
        "--seed", type=seed, default=0, metavar="S", help="of the sequences; default: %(default)s"
    )
    task.add_argument(
        "--json", type=Path, required=True, metavar="FILE", help="the whole result, item by item"
    )
    task.add_argument("--device", type=device, default="cpu", help="default: %(default)s")
    task.add_argument("--batch-tokens", type=positive, default=4096, metavar="N", help="default: %(default)s")
    add_memorize(task)
    task.set_defaults(function=_task)


def _task(arguments: argparse.Namespace) -> None:
    from hope_eval.progress import Display  # noqa: PLC0415
    from hope_eval.scoring.scorer import Scorer  # noqa: PLC0415
    from hope_eval.tasks import synthetic  # noqa: PLC0415

    start = time.monotonic()
    model, task, trained, about = synthetic.load(arguments.checkpoint, arguments.device)
    lengths = [int(t.removesuffix("x")) * (trained if t.endswith("x") else 1) for t in arguments.lengths]

    def run(scorer: Scorer) -> list[schema.TaskResult]:
        return [synthetic.measure(scorer, task, lengths, count=arguments.count, seed=arguments.seed)]

    with Display() as display:
        scorer = Scorer(model, arguments.device, arguments.batch_tokens, display.advance)
        scorer.begin = display.begin
        done, differences = run_tasks(scorer, memorize_of(arguments), run)
    seconds = round(time.monotonic() - start, 3)
    result = schema.Results(schema.SCHEMA, about, evaluator(arguments.device), done, seconds, differences)
    write(arguments.json, result)
    for measured in done:
        for metric in measured.metrics:
            if metric.name == "task_accuracy":
                print(terminal(f"{measured.task}, {metric.group}: {schema.line(metric)}"))
    rows = (row for row in differences if row.group != "all" and row.metric == "task_accuracy")
    say_differences(rows)
