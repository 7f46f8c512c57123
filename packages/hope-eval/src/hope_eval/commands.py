"""Command lines of the evaluators that take a checkpoint alone: zeroshot, needle, books, continual, bench."""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from hope_data.errors import InputError
from hope_data.publishing import exclusive, write_atomic
from hope_eval import results as schema
from hope_eval.arguments import device, fraction, names, positive
from hope_eval.escape import terminal

if TYPE_CHECKING:
    from hope_eval.scoring.load import Loaded
    from hope_eval.scoring.memorize import Memorize
    from hope_eval.scoring.scorer import Scorer

Parsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_model(parser: argparse.ArgumentParser) -> None:
    """Which model, and where results go."""
    parser.add_argument(
        "--checkpoint", type=Path, required=True, metavar="DIR", help="ours, or a folder of transformers"
    )
    parser.add_argument(
        "--tokenizer", type=Path, metavar="DIR", help="default: found by the hash that the checkpoint names"
    )
    parser.add_argument(
        "--json", type=Path, required=True, metavar="FILE", help="the whole result, item by item"
    )
    parser.add_argument(
        "--add", action="store_true", help="keep other tasks of FILE, which must be of the same weights"
    )
    parser.add_argument("--device", type=device, default="cpu", help="default: %(default)s")
    parser.add_argument(
        "--batch-tokens",
        type=positive,
        default=1024,
        metavar="N",
        help="per forward pass; default: %(default)s",
    )


def add_memorize(parser: argparse.ArgumentParser) -> None:
    """Memorisation at test time."""
    group = parser.add_argument_group(
        "memorisation at test time",
        "each task twice, memories frozen and written, with the paired difference in the same file",
    )
    group.add_argument("--memorize", action="store_true", help="run both; the other options imply it")
    group.add_argument("--memorize-steps", type=positive, metavar="N", help="read each context N times")
    group.add_argument("--memorize-paths", metavar="A,B", help="of titans, cms.0, cms.1 ...; default: all")
    group.add_argument(
        "--memorize-threshold", type=fraction, metavar="X", help="smaller teach signals write nothing"
    )
    group.add_argument("--memorize-scale", type=fraction, metavar="X", help="strength of the CMS writes")
    group.add_argument("--memorize-carry", action="store_true", help="carry the state from item to item")
    group.add_argument(
        "--memorize-oracle", action="store_true", help="read correct answers too: an upper bound, no result"
    )


def memorize_of(arguments: argparse.Namespace) -> "Memorize | None":
    """What the options ask for; None without any."""
    from hope_eval.scoring.memorize import Memorize  # noqa: PLC0415

    given = vars(arguments)
    wanted = {
        key: given[f"memorize_{key}"] for key in ("steps", "paths", "threshold", "scale", "carry", "oracle")
    }
    paths = None if wanted["paths"] is None else tuple(names(wanted["paths"]))
    if paths == ():
        raise InputError("--memorize-paths: names none; leave it out for all of the model's")
    if not arguments.memorize and not any(value not in (None, False) for value in wanted.values()):
        return None
    return Memorize(
        steps=wanted["steps"] or 1,
        paths=paths,
        threshold=wanted["threshold"],
        teach_scale=wanted["scale"],
        carry=wanted["carry"],
        oracle=wanted["oracle"],
    )


def run_tasks(
    scorer: "Scorer", memorize: "Memorize | None", run: "Callable[[Scorer], list[schema.TaskResult]]"
) -> tuple[list[schema.TaskResult], list[schema.PairedDifference]]:
    """Once as trained, or twice with memories frozen and written."""
    from hope_eval.scoring.memorize import both  # noqa: PLC0415

    return both(scorer, memorize, run) if memorize else (run(scorer), [])


def evaluate(
    arguments: argparse.Namespace, run: "Callable[[Loaded, Scorer], list[schema.TaskResult]]"
) -> schema.Results:
    """Load the model, run, write the result file, print its headlines."""
    from hope_eval.progress import Display  # noqa: PLC0415
    from hope_eval.scoring.load import load  # noqa: PLC0415
    from hope_eval.scoring.scorer import Scorer  # noqa: PLC0415

    start = time.monotonic()
    former, memorize = former_of(arguments.json, add=arguments.add), memorize_of(arguments)
    loaded = load(arguments.checkpoint, arguments.tokenizer, arguments.device)
    check_same(arguments.json, former, loaded.about.sha256)
    with Display() as display:
        scorer = Scorer(loaded.model, arguments.device, arguments.batch_tokens, display.advance)
        scorer.begin = display.begin
        tasks, differences = run_tasks(scorer, memorize, lambda asked: run(loaded, asked))
    seconds = round(time.monotonic() - start, 3)
    result = schema.Results(
        schema.SCHEMA, loaded.about, evaluator(arguments.device), tasks, seconds, differences
    )
    write(arguments.json, result, add=arguments.add)
    say(result)
    return result


def former_of(path: Path, *, add: bool) -> schema.Results | None:
    """What the result file holds already, where it is to be kept."""
    return schema.load(path) if add and path.is_file() else None


def write(path: Path, result: schema.Results, *, add: bool = False) -> None:
    """Write a result, or add it to the file; of several that add at once, each waits for the one before."""
    with exclusive(path, wait=True):
        former = former_of(path, add=add)
        check_same(path, former, result.checkpoint.sha256)
        write_atomic(path, schema.sealed(merge(former, result) if former else result))


def check_same(path: Path, former: schema.Results | None, sha256: str) -> None:
    """Refuse to add to results of other weights."""
    if former and former.checkpoint.sha256 != sha256:
        raise InputError(f"{path}: holds results of other weights; leave out --add or name another file")


def say(result: schema.Results) -> None:
    """The overall numbers, one a line."""
    for task in result.tasks:
        for metric in task.metrics:
            if metric.group == "all":
                print(terminal(f"{task.task}: {schema.line(metric)}"))
    say_differences(row for row in result.memorized if row.group == "all")


def say_differences(rows: Iterable[schema.PairedDifference]) -> None:
    """Memories written against frozen, or adapted against plain, one a line."""
    for row in rows:
        size, group = schema.value(row.difference, row.stderr), "" if row.group == "all" else f" {row.group}"
        what = f"memories written ({row.mode}) minus frozen"
        if row.mode not in ("on", "oracle"):
            what = f"adapted ({row.mode}) minus plain"
        print(terminal(f"{row.task}, {what}: {row.metric}{group} {size} (n {row.n})"))


def merge(former: schema.Results, new: schema.Results) -> schema.Results:
    """The pack of a checkpoint: what was measured before, replaced where it was measured again."""
    done = {task.task for task in new.tasks}
    kept = [task for task in former.tasks if task.task not in done]
    again = {(row.task, row.mode) for row in new.memorized}
    memorized = [row for row in former.memorized if (row.task, row.mode) not in again]
    return replace(
        new,
        tasks=kept + new.tasks,
        memorized=memorized + new.memorized,
        seconds=round(former.seconds + new.seconds, 3),
    )


def evaluator(device: str) -> schema.Evaluator:
    """What results say of the evaluating code."""
    import torch  # noqa: PLC0415

    from hope_eval.evaluate import revision  # noqa: PLC0415

    threads = torch.get_num_threads()
    return schema.Evaluator(revision(), version("hope-eval"), torch.__version__, device, threads)


def add_zeroshot(commands: Parsers) -> None:
    """`hope-eval zeroshot`."""
    parser = commands.add_parser(
        "zeroshot",
        help="PIQA, HellaSwag, ... with lm-eval's own task definitions",
        description="Score a checkpoint, ours or of transformers, on tasks of lm-eval: prompts and metrics are "
        "lm-eval's, rows come from the hub or from a local mirror. Needs hope-eval[lm-eval].",
    )
    add_model(parser)
    parser.add_argument("--tasks", default="", metavar="A,B", help="default: the whole suite")
    parser.add_argument(
        "--mirror", type=Path, metavar="DIR", help="folder with the rows; nothing is downloaded"
    )
    parser.add_argument("--limit", type=positive, metavar="N", help="the first N rows of each task")
    parser.add_argument("--max-length", type=positive, default=0, metavar="T", help="default: as in training")
    add_memorize(parser)
    parser.set_defaults(function=_zeroshot)


def _zeroshot(arguments: argparse.Namespace) -> None:
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # lm-eval draws bars wherever it is
    try:
        from hope_eval.lm_eval_bridge.model import HopeLM  # noqa: PLC0415
    except ImportError as error:
        raise InputError(f"zeroshot needs lm-eval ({error.name}); pip install 'hope-eval[lm-eval]'") from None
    from hope_eval.lm_eval_bridge import run as suite  # noqa: PLC0415

    def run(loaded: "Loaded", scorer: "Scorer") -> list[schema.TaskResult]:
        lm = HopeLM(loaded, max_length=arguments.max_length, batch_tokens=arguments.batch_tokens)
        lm.scorer = scorer
        return suite.evaluate(lm, names(arguments.tasks) or suite.SUITE, arguments.mirror, arguments.limit)

    evaluate(arguments, run)
