"""Console script of hope-eval."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import entry_points
from pathlib import Path

from hope_data.errors import InputError
from hope_data.publishing import write_atomic
from hope_eval import adapt_commands, long_commands, task_commands
from hope_eval import commands as others
from hope_eval import results as schema
from hope_eval.arguments import Parser, device, names, positive, seed
from hope_eval.escape import printable, terminal
from hope_eval.report import surprise
from hope_model.errors import InputError as ModelInputError

EPILOG = """examples:
  hope-eval run --checkpoint runs/hope/checkpoint --shards data/shards --tokenizer data/tokenizer \\
      --json reports/results/hope.json --metrics reports/metrics/eval_hope.json
  hope-eval zeroshot --checkpoint runs/hope/checkpoint --tasks piqa,boolq --mirror DIR --json zeroshot.json
  hope-eval compare reports/results/hope.json reports/results/transformer.json
  hope-eval report --results reports/results --logs runs --out reports/results.md --plots reports/plots
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 on success, 2 where the input is at fault, 130 after Ctrl-C."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        # Packages above this one add commands: `ablations` and `replication` come with hope-study.
        for entry in entry_points(group="hope_eval.commands", name=argv[0]) if argv else ():
            status: int = entry.load()(argv[1:])
            return status
        arguments = _parser().parse_args(argv)
        arguments.function(arguments)
    except (InputError, ModelInputError) as error:
        return _fail(str(error), 2)
    except OSError as error:
        return _fail(f"{error.filename or 'output'}: {error.strerror or error}", 2)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    return 0


def _fail(reason: str, status: int) -> int:
    print(f"error: {printable(reason)}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = Parser(
        prog="hope-eval",
        description="Evaluate checkpoints, with error bars, and report what follows.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_run(commands)
    others.add_zeroshot(commands)
    long_commands.add(commands)
    task_commands.add(commands)
    adapt_commands.add(commands)
    surprise.add(commands)
    _add_suite(commands)
    _add_compare(commands)
    _add_report(commands)
    _add_package(commands)
    _add_stage2(commands)
    return parser


def _add_run(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    run = commands.add_parser(
        "run",
        help="evaluate one checkpoint",
        description="Evaluate one checkpoint on the test split of its corpora. The same seed, limit and "
        "length give every checkpoint the same items, so that results can be compared in pairs.",
    )
    run.add_argument(
        "--checkpoint", type=Path, required=True, metavar="DIR", help="folder with model.safetensors"
    )
    run.add_argument(
        "--shards", type=Path, required=True, metavar="DIR", help="folder with a folder per corpus"
    )
    run.add_argument(
        "--tokenizer", type=Path, required=True, metavar="DIR", help="the one it was trained with"
    )
    run.add_argument(
        "--json", type=Path, required=True, metavar="FILE", help="the whole result, item by item"
    )
    run.add_argument(
        "--add", action="store_true", help="keep other tasks of FILE, which must be of the same weights"
    )
    run.add_argument("--metrics", type=Path, metavar="FILE", help="a few numbers, flat, for `dvc metrics`")
    run.add_argument(
        "--tasks", default="perplexity,choice,passkey", metavar="A,B", help="default: %(default)s"
    )
    run.add_argument("--domains", default="", metavar="A,B", help="corpora; default: those it was trained on")
    run.add_argument("--limit", type=positive, metavar="N", help="fewer items, for a quick look")
    run.add_argument(
        "--length", type=positive, default=0, metavar="T", help="window; default: as in training"
    )
    run.add_argument("--seed", type=seed, default=0, metavar="S", help="of the items; default: %(default)s")
    run.add_argument("--device", type=device, default="cpu", help="default: %(default)s")
    run.add_argument(
        "--batch-tokens",
        type=positive,
        default=4096,
        metavar="N",
        help="per forward pass; default: %(default)s",
    )
    others.add_memorize(run)
    adapt_commands.add_adapt(run)
    run.set_defaults(function=_run)


def _add_suite(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "suite",
        help="all evaluators in one go, small: the pack of a checkpoint",
        description="Run every evaluator whose data is given, at sizes that a smoke model answers within minutes, "
        "into one file. Each command is printed before it runs, to be repeated at other sizes. After an interruption "
        "the same command resumes: what was measured waits in a hidden folder beside the file.",
    )
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="DIR", help="one of ours")
    parser.add_argument("--tokenizer", type=Path, required=True, metavar="DIR", help="its tokenizer")
    parser.add_argument("--shards", type=Path, required=True, metavar="DIR", help="a folder per corpus")
    parser.add_argument("--mirror", type=Path, metavar="DIR", help="rows of the zero-shot tasks")
    parser.add_argument(
        "--text", type=Path, nargs="+", default=[], metavar="PATH", help="books: haystacks too"
    )
    parser.add_argument("--babi", type=Path, nargs="+", default=[], metavar="FILE", help="qa*.txt of bAbI")
    parser.add_argument("--clinc150", type=Path, metavar="DIR", help="data_full.json and domains.json")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="the pack")
    parser.set_defaults(function=_suite)


def _suite(arguments: argparse.Namespace) -> None:
    from hope_eval.suite import run  # noqa: PLC0415 (torch is slow to import, --help is not)

    def call(command: list[str]) -> None:
        told = _parser().parse_args(command)
        told.function(told)

    for line in run(arguments, call):
        print(terminal(line), flush=True)


def _add_compare(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    compare = commands.add_parser(
        "compare",
        help="paired differences between two results",
        description="A minus B over the same items; 95 % intervals from a paired bootstrap over documents, none below "
        "ten. They hold for these weights: which method is better takes several training seeds.",
    )
    compare.add_argument("a", type=Path, metavar="A.json")
    compare.add_argument("b", type=Path, metavar="B.json")
    compare.add_argument("--json", type=Path, metavar="FILE", help="the same as JSON")
    compare.set_defaults(function=_compare)


def _add_report(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    report = commands.add_parser(
        "report",
        help="a page and pictures from results and training logs",
        description="Write a Markdown page and PNG plots. Every figure comes from the files given.",
    )
    _add_paths(report, "--results", True, "JSON files of `run`, or folders of them")
    _add_paths(report, "--logs", False, "log.jsonl files, or folders with RUN/log.jsonl")
    report.add_argument(
        "--runs",
        nargs="+",
        default=[],
        metavar="RUN",
        help="which, the first against the others; default: all by name",
    )
    report.add_argument("--out", type=Path, required=True, metavar="FILE", help="Markdown page")
    report.add_argument("--plots", type=Path, required=True, metavar="DIR", help="folder for the pictures")
    report.add_argument(
        "--html", type=Path, metavar="FILE", help="the same as one self-contained page that sorts"
    )
    report.set_defaults(function=_report)


def _add_package(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "package",
        help="a release of a checkpoint: weights, tokenizer, results, report, model card, sums",
        description="Write one folder that loads and scores wherever it is copied, or check one.",
        epilog="examples:\n  hope-eval package --checkpoint runs/hope/checkpoint --results reports/results/hope.json "
        "--out releases/hope\n  hope-eval package --verify releases/hope",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--checkpoint", type=Path, metavar="DIR", help="one of ours")
    what.add_argument(
        "--verify", type=Path, metavar="DIR", help="a bundle: check sums, load it, score its sample"
    )
    _add_paths(parser, "--results", False, "packs of these weights, files of `run` or `suite`")
    _add_paths(parser, "--logs", False, "log.jsonl, for the report's curves")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="default: found by its hash")
    parser.add_argument(
        "--provenance",
        type=Path,
        default=Path("data/raw"),
        metavar="DIR",
        help="with CORPUS/provenance.json, for licences; default: %(default)s",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="the bundle")
    parser.set_defaults(function=_package)


def _add_stage2(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "stage2",
        help="packs against each other and against the paper's rows, as a page",
        description="Write a Markdown page: tasks of the paper's table, chance, cost, and what the numbers say.",
    )
    _add_paths(parser, "--packs", True, "results of `suite`; the first is compared with the others")
    parser.add_argument(
        "--training",
        type=Path,
        default=Path("reports/metrics"),
        metavar="DIR",
        help="train_RUN.json; default: %(default)s",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="Markdown page")
    parser.set_defaults(function=_stage2)


def _stage2(arguments: argparse.Namespace) -> None:
    from hope_eval.report import stage2  # noqa: PLC0415

    stage2.write(arguments.packs, arguments.training, arguments.out)
    print(terminal(str(arguments.out)))


def _package(arguments: argparse.Namespace) -> None:
    from hope_eval.release import bundle  # noqa: PLC0415

    if arguments.verify:
        here, written = bundle.verify(arguments.verify)
        scores = f"{here:.4f} nats here, {written:.4f} where it was packed"
        print(terminal(f"{arguments.verify}: whole; its sample scores {scores}"))
        return
    if not arguments.out:
        raise InputError("package: --out is missing; name the folder to write")
    given = [arguments.results, arguments.logs, arguments.provenance, arguments.tokenizer]
    bundle.package(bundle.Sources(arguments.checkpoint, *given), arguments.out)
    print(terminal(str(arguments.out)))


def _add_paths(parser: argparse.ArgumentParser, flag: str, required: bool, text: str) -> None:
    parser.add_argument(flag, type=Path, nargs="+", default=[], required=required, metavar="PATH", help=text)


def _report(arguments: argparse.Namespace) -> None:
    from hope_eval import report  # noqa: PLC0415

    report.write(
        arguments.results, arguments.logs, arguments.out, arguments.plots, arguments.runs, arguments.html
    )
    print(terminal(str(arguments.out)))


def _run(arguments: argparse.Namespace) -> None:
    from hope_eval.evaluate import Request, evaluate  # noqa: PLC0415 (torch is slow to import, --help is not)

    others.former_of(arguments.json, add=arguments.add)  # a file that cannot be added to is refused at once
    result = evaluate(
        Request(
            checkpoint=arguments.checkpoint,
            shards=arguments.shards,
            tokenizer=arguments.tokenizer,
            tasks=names(arguments.tasks),
            domains=names(arguments.domains),
            length=arguments.length,
            limit=arguments.limit,
            seed=arguments.seed,
            device=arguments.device,
            batch_tokens=arguments.batch_tokens,
            memorize=others.memorize_of(arguments),
            adapt=adapt_commands.adapt_of(arguments),
        )
    )
    others.write(arguments.json, result, add=arguments.add)
    if arguments.metrics:
        write_atomic(arguments.metrics, schema.dumps(schema.headline(result)).encode())
    others.say(result)


def _compare(arguments: argparse.Namespace) -> None:
    from hope_eval.compare import compare  # noqa: PLC0415
    from hope_eval.report.tables import comparison_table  # noqa: PLC0415

    rows = compare(schema.load(arguments.a), schema.load(arguments.b))
    if arguments.json:
        write_atomic(arguments.json, schema.dumps([asdict(row) for row in rows]).encode())
    print(comparison_table(arguments.a.stem, arguments.b.stem, rows))
