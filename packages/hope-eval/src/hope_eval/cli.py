"""Console script of hope-eval: what each command of the table does."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hope_data.commands import parser_of
from hope_data.errors import InputError
from hope_eval.commands import COMMANDS, EXAMPLES
from hope_eval.escape import printable, terminal
from hope_model.errors import InputError as ModelInputError
from hope_model.files import no_checkpoint

if TYPE_CHECKING:
    from hope_eval.results import PairedDifference
    from hope_eval.scoring.memorize import Memorize

# Commands import what they need when they run: torch is slow to import, --help is not.
# ruff: noqa: PLC0415


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 on success, 2 where the input is at fault, 130 after Ctrl-C."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        # Packages above this one add commands: `ablations` and `replication` come with hope-study.
        for entry in entry_points(group="hope_eval.commands", name=argv[0]) if argv else ():
            status: int = entry.load()(argv[1:])
            return status
        _run(argv)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (InputError, ModelInputError) as error:
        return _fail(str(error), 2)
    except OSError as error:
        return _fail(f"{error.filename or 'output'}: {error.strerror or error}", 2)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except SystemExit as done:  # of argparse, which has said why
        return int(done.code or 0)
    return 0


def _run(argv: Sequence[str]) -> None:
    description = "Evaluate checkpoints, with error bars, and report what follows."
    arguments = parser_of("hope-eval", description, EXAMPLES, COMMANDS).parse_args(argv)
    folder = getattr(arguments, "checkpoint", None)
    if folder and not (folder / "config.json").is_file():  # said before torch is imported
        raise InputError(no_checkpoint(folder / "config.json"))
    FUNCTIONS.get(arguments.command, _evaluate)(arguments)


def _fail(reason: str, status: int) -> int:
    print(f"error: {printable(reason)}", file=sys.stderr)
    return status


def _evaluate(arguments: argparse.Namespace) -> None:
    """Run an evaluator: the options that are fields of its `Task` make the task."""
    from hope_data.publishing import write_atomic
    from hope_eval import results as schema
    from hope_eval.evaluate import EVALUATORS, Request, evaluate
    from hope_eval.scoring.adaptation import parse

    given = vars(arguments)
    kind: Any = EVALUATORS[arguments.command]
    task = kind(**{field.name: given[field.name] for field in fields(kind) if field.name in given})
    request = Request(
        checkpoint=arguments.checkpoint,
        json=arguments.json,
        tokenizer=given.get("tokenizer"),
        add=arguments.add,
        device=arguments.device,
        batch_tokens=arguments.batch_tokens,
        memorize=_memorize(given),
        adapt=[parse(text) for text in given.get("adapt") or ()],
    )
    result = evaluate(request, task)
    if given.get("metrics"):
        write_atomic(arguments.metrics, schema.dumps(schema.headline(result)).encode())
    for measured in result.tasks:
        for metric in measured.metrics:
            if task.is_headline(metric.name, metric.group):
                group = "" if metric.group == "all" else f", {metric.group}"
                print(terminal(f"{measured.task}{group}: {schema.line(metric)}"))
    for row in result.memorized:
        if task.is_headline(row.metric, row.group):
            print(terminal(_difference(row, schema.value(row.difference, row.stderr))))


def _memorize(given: dict[str, Any]) -> "Memorize | None":
    """Return what the options of memorisation ask for; None without any."""
    from hope_eval.scoring.memorize import Memorize

    keys = ("steps", "paths", "threshold", "scale", "carry", "oracle")
    wanted = {key: given[f"memorize_{key}"] for key in keys}
    if wanted["paths"] == []:
        raise InputError("--memorize-paths: names none; leave it out for all of the model's")
    if not given["memorize"] and not any(value not in (None, False) for value in wanted.values()):
        return None
    return Memorize(
        steps=wanted["steps"] or 1,
        paths=tuple(wanted["paths"]) if wanted["paths"] else None,
        threshold=wanted["threshold"],
        teach_scale=wanted["scale"],
        carry=wanted["carry"],
        oracle=wanted["oracle"],
    )


def _difference(row: "PairedDifference", size: str) -> str:
    """Describe memories written against frozen, or adapted against plain."""
    group = "" if row.group == "all" else f" {row.group}"
    pair = f"memories written ({row.mode}) minus frozen"
    if row.mode not in ("on", "oracle"):
        pair = f"adapted ({row.mode}) minus plain"
    return f"{row.task}, {pair}: {row.metric}{group} {size} (n {row.n})"


def _tune(arguments: argparse.Namespace) -> None:
    from hope_data.publishing import write_atomic
    from hope_eval.progress import Display
    from hope_eval.results import dumps
    from hope_eval.scoring.adaptation import parse
    from hope_eval.scoring.scorer import Scorer
    from hope_eval.tasks.held_out import HeldOut
    from hope_eval.tasks.tune import tune

    start = parse(arguments.adapt)
    text = HeldOut(
        shards=arguments.shards,
        domains=arguments.domains,
        length=arguments.length,
        seed=arguments.seed,
        splits=("train", "val"),
    )
    with Display() as display:
        display.begin("loading", None)
        loaded = text.load(arguments.checkpoint, arguments.tokenizer, arguments.device)
        scorer = Scorer(loaded.model, arguments.device, arguments.batch_tokens, display.advance)
        scorer.begin = display.begin
        tuned = tune(text.context(loaded, scorer), start, arguments.tokens, arguments.dials, _print_trial)
    record = {**asdict(tuned), "checkpoint": asdict(loaded.about)}
    write_atomic(arguments.json, dumps(record).encode())
    edge = f"; at the edge of what was tried: {', '.join(tuned.at_edge)}" if tuned.at_edge else ""
    print(
        f"plain {tuned.plain_bits_per_byte:.4f}, {tuned.adapt} {tuned.bits_per_byte:.4f} bits per byte{edge}"
    )


def _lock(arguments: argparse.Namespace) -> None:
    from hope_data.publishing import write_atomic
    from hope_eval.scoring.scorer import Scorer
    from hope_eval.tasks.held_out import HeldOut
    from hope_eval.tasks.locked import unused

    if arguments.json.exists():
        raise InputError(
            f"{arguments.json}: is there already; a list is chosen once, remove it to choose anew"
        )
    text = HeldOut(shards=arguments.shards)
    loaded = text.load(arguments.checkpoint, arguments.tokenizer, "cpu")
    listed = unused(text.context(loaded, Scorer(loaded.model)))
    write_atomic(arguments.json, listed.dumps())
    print(f"{len(listed.documents)} test documents locked, list {listed.sha256[:12]}")


def _print_trial(trial: dict[str, Any]) -> None:
    dials = " ".join(f"{key}={trial[key]}" for key in trial if key not in ("bits_per_byte", "seconds"))
    print(f"{dials}  {trial['bits_per_byte']:.4f}  {trial['seconds']:.1f} s", flush=True)


def _bench(arguments: argparse.Namespace) -> None:
    try:
        from hope_eval.lm_eval_bridge import bench
    except ImportError as error:
        raise InputError(f"bench needs lm-eval ({error.name}); pip install 'hope-eval[lm-eval]'") from None
    from hope_data.publishing import write_atomic
    from hope_eval.progress import Display
    from hope_eval.report.tables import table

    settings = bench.BenchSettings(
        tasks=tuple(arguments.tasks), limit=arguments.limit, threads=arguments.threads
    )
    with Display("timings") as display:
        display.begin("bench", settings.timings)
        rows = bench.bench(arguments.mirror, settings, arguments.checkpoint, display.advance)
    if arguments.json:
        write_atomic(arguments.json, (json.dumps(rows, indent=1) + "\n").encode())
    print(table(list(rows[0]), [[str(value) for value in row.values()] for row in rows], printable))


def _surprise(arguments: argparse.Namespace) -> None:
    from hope_eval.report.surprise import run

    run(arguments)
    print(terminal(str(arguments.html)))


def _suite(arguments: argparse.Namespace) -> None:
    from hope_eval.suite import run

    for line in run(arguments, _run):
        print(terminal(line), flush=True)


def _compare(arguments: argparse.Namespace) -> None:
    from hope_data.publishing import write_atomic
    from hope_eval import results as schema
    from hope_eval.report.tables import comparison_table
    from hope_eval.results.compare import compare

    rows = compare(schema.load(arguments.a), schema.load(arguments.b))
    if arguments.json:
        write_atomic(arguments.json, schema.dumps([asdict(row) for row in rows]).encode())
    print(comparison_table(*_told_apart(arguments.a, arguments.b), rows))


def _told_apart(a: Path, b: Path) -> tuple[str, str]:
    """Return the shortest ends of two paths that differ; a number alone, as of a seed, comes with its folder."""
    parts = [path.absolute().with_suffix("").parts for path in (a, b)]
    least = 2 if any(one[-1].isdecimal() for one in parts) else 1
    lengths = range(least, max(map(len, parts)))
    length = next((n for n in lengths if parts[0][-n:] != parts[1][-n:]), least)
    return "/".join(parts[0][-length:]), "/".join(parts[1][-length:])


def _report(arguments: argparse.Namespace) -> None:
    from hope_eval import report

    report.write(
        arguments.results,
        arguments.logs,
        arguments.out,
        arguments.plots,
        arguments.runs,
        arguments.html,
        changes=arguments.changes.read_text().splitlines() if arguments.changes else None,
        losses=arguments.curves,
        metrics=arguments.metrics,
        studies=arguments.studies,
    )
    print(terminal(str(arguments.out)))


def _package(arguments: argparse.Namespace) -> None:
    from hope_eval.release import bundle

    if arguments.verify:
        here, written = bundle.verify(arguments.verify)
        scores = f"{here:.4f} nats here, {written:.4f} where it was packed"
        print(terminal(f"{arguments.verify}: whole; its sample scores {scores}"))
        return
    if not arguments.out:
        raise InputError("package: --out is missing; name the folder to write")
    sources = [arguments.results, arguments.logs, arguments.provenance, arguments.tokenizer]
    bundle.package(bundle.Sources(arguments.checkpoint, *sources), arguments.out)
    print(terminal(str(arguments.out)))


def _stage2(arguments: argparse.Namespace) -> None:
    from hope_eval.report import stage2

    stage2.write(arguments.packs, arguments.training, arguments.out)
    print(terminal(str(arguments.out)))


FUNCTIONS: dict[str, Callable[[argparse.Namespace], None]] = {
    "bench": _bench,
    "tune": _tune,
    "lock": _lock,
    "surprise": _surprise,
    "suite": _suite,
    "compare": _compare,
    "report": _report,
    "package": _package,
    "stage2": _stage2,
}
