"""Console script `hope-study`: studies of conf/study, the pipeline's trainings of several seeds, its experiments."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hope_data.console import Parser
from hope_data.errors import InputError as DataInputError
from hope_data.errors import harmless
from hope_model.errors import InputError
from hope_train.compose import load_params

if TYPE_CHECKING:
    from hope_study.ledger import Ledger

RESULTS = Path("reports/studies")
TOP = """\
examples:
  hope-study run --plan                       how much there is, how long it takes
  hope-study run --jobs 2                     all but follow-ups, or what is missing of it
  hope-study report                           reports/ablations.md and a page for every study
  hope-study replication FIRST SECOND         which numbers and verdicts replicate
  hope-study open worth_1m                    measure on the locked documents, once
  hope-study data                             the pipeline's corpora, tokenizer and shards, where inputs have changed
  hope-study train --run hope                 the pipeline's trainings of a run; `evaluate` likewise
  hope-study results                          the pipeline's report, reports/latest
  hope-study show                             DVC's experiments: what differs, results with intervals
  hope-study sweep teach_scale=0.05,0.1,0.15  an experiment for every value, then the table

`hope-study COMMAND --help` teaches each command. `hope-train ablations` is `hope-study run`, `hope-eval ablations` is
`hope-study report`, `hope-eval replication` is `hope-study replication`.
"""
RUN = """\
examples:
  hope-study run --plan                       how much there is, how long it takes
  hope-study run --jobs 2                     all but follow-ups, or what is missing of it
  hope-study run --only parity mqar/hope      two studies; of the second, one arm
  hope-study run --scale pilot --results reports/studies-pilot    the same questions at another size

A study is a file of conf/study: arms that differ in one thing. For each arm: one training per learning rate, the best
on validation, then one per seed. Each leaves a line in DIR/STUDY.jsonl; what is there is not done again, unless its
definition has changed. Ctrl-C, SIGTERM and kills at any point are fine: the same command resumes, also on another
machine that has the files. At the end the studies' pages, metrics and curves are written beside their records.

exit status: 0 all done, 75 stopped and ready to resume, 2 wrong input.
"""
REPORT = """\
examples:
  hope-study report                           every study with records, and the overview
  hope-study report parity mqar               two pages

Reads DIR/STUDY.jsonl and writes DIR/STUDY.md, STUDY.metrics.json (arm: mean, standard error, n), STUDY.csv (validation
by steps) and plots/STUDY.png; for all studies also the overview.
"""
REPLICATION = """\
example:
  git worktree add /tmp/former REVISION
  hope-study replication /tmp/former/reports/studies reports/studies
"""
OPEN = """\
example:
  hope-study open worth_1m worth_3m

Half of the test documents that no evaluation scores are listed in reports/locked.json. This measures the trainings
of the named studies on them, with the dials found on validation text, and writes reports/locked/opened.json with the
date. Another time, for other trainings, it refuses. The checkpoints must be in runs/ablations. `hope-study report` then
prints what these documents say beside the rest. Interrupted, the same command goes on.
"""
SEEDS = """\
example:
  hope-study {verb} --run hope

Seeds are those of params.yaml. Each is a process with one thread. What was interrupted resumes with the same command.

exit status: 0 all done, 75 stopped and ready to resume, 2 wrong input.
"""
DATA = """\
The pipeline calls it without arguments. What is done already is not repeated.

exit status: 0 all done, 2 wrong input.
"""
SHOW = """\
examples:
  hope-study show                             every experiment: parameters that differ, results with intervals
  hope-study sweep teach_scale=0.05,0.1,0.15  three experiments; only HOPE is trained, and what is there is kept
  hope-study sweep teach_scale=0.05,0.1 'seeds=[0],[1]'

A sweep ends with the workspace as it was. Interrupted, the same command resumes. docs/experiments.md has its output.
"""
FINISHED, RESUMABLE = 0, 75


def run_command(argv: Sequence[str]) -> int:
    """Train what is missing."""
    parser = _parser("hope-study run", "Run the studies of conf/study.", RUN)
    parser.add_argument("--only", nargs="+", default=[], metavar="STUDY", help="these, or STUDY/ARM")
    parser.add_argument(
        "--follow-ups", action="store_true", help="also those that ask on after others' results"
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="trainings at a time; default: 1")
    parser.add_argument("--scale", default="", metavar="NAME", help="of text studies, instead of theirs")
    parser.add_argument("--plan", action="store_true", help="only count and estimate")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/ablations"), metavar="DIR", help="default: %(default)s"
    )
    _common(parser)
    arguments = parser.parse_args(argv)
    if arguments.jobs < 1:
        raise InputError(f"--jobs {arguments.jobs}: at least 1")
    from hope_study import study  # noqa: PLC0415 (torch takes seconds to import)
    from hope_study.ledger import Ledger  # noqa: PLC0415
    from hope_study.progress import estimate  # noqa: PLC0415
    from hope_study.report import data, outputs  # noqa: PLC0415
    from hope_study.runner import Runner  # noqa: PLC0415
    from hope_study.store import Store  # noqa: PLC0415

    corpora = load_params(arguments.params).corpora
    studies = study.load(arguments.conf, arguments.only)
    if not (arguments.only or arguments.follow_ups):
        studies = {name: one for name, one in studies.items() if not one.follow_up}
    arms = []
    for name, one in studies.items():
        scale = "" if any(text.startswith("task=") for text in one.overrides) else arguments.scale
        arms += study.arms(name, one, arguments.conf, corpora, scale)
    named = {f"{arm.study}/{arm.name}" for arm in arms}
    if unknown := set(arguments.only) - set(studies) - named:
        known = ", ".join(studies[min(unknown).split("/")[0]].arms)
        raise InputError(f"--only {min(unknown)}: no such arm; choose among {known}")
    store = Store(arguments.results)
    timed = [] if arguments.results == RESULTS else list(Store(RESULTS).all())
    ledger = Ledger(arms, store, timed=timed)
    wanted = set(arguments.only) or set(studies)
    chosen = [arm for arm in arms if arm.study in wanted or f"{arm.study}/{arm.name}" in wanted]
    if arguments.plan:
        print(estimate(Ledger(chosen, store, arms, timed), arguments.jobs))
        return FINISHED
    complete = Runner(ledger, arguments.work, arguments.jobs, chosen).run()
    outputs.write([one for one in data.collect(ledger) if one.done], arguments.results)
    return FINISHED if complete else RESUMABLE


def _ledger(arguments: argparse.Namespace) -> Ledger:
    """Of the studies that the arguments name, or of all."""
    from hope_study import study  # noqa: PLC0415
    from hope_study.ledger import Ledger  # noqa: PLC0415
    from hope_study.store import Store  # noqa: PLC0415

    corpora, arms = load_params(arguments.params).corpora, []
    for name, one in study.load(arguments.conf, arguments.names).items():
        arms += study.arms(name, one, arguments.conf, corpora)
    return Ledger(arms, Store(arguments.results))


def report_command(argv: Sequence[str]) -> int:
    """Write the pages."""
    parser = _parser(
        "hope-study report", "Write pages, metrics, curves and pictures from the records of studies.", REPORT
    )
    parser.add_argument("names", nargs="*", metavar="STUDY", help="default: every study")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("reports/ablations.md"),
        metavar="FILE",
        help="the overview; default: %(default)s",
    )
    _common(parser)
    arguments = parser.parse_args(argv)
    from hope_study.report import data, outputs  # noqa: PLC0415

    ledger = _ledger(arguments)
    if not ledger.store.studies():
        raise InputError(f"{arguments.results}: no records (*.jsonl) here; run `hope-study run` first")
    studies = data.collect(ledger)
    outputs.write([one for one in studies if one.done], arguments.results)
    if not arguments.names:
        outputs.write_overview(studies, arguments.results, arguments.out, arguments.out.parent / "locked")
        print(arguments.out)
    return FINISHED


def open_command(argv: Sequence[str]) -> int:
    """Measure on the locked documents, once."""
    parser = _parser(
        "hope-study open", "Measure studies' trainings on the locked test documents, once.", OPEN
    )
    parser.add_argument("names", nargs="+", metavar="STUDY", help="studies that measure adaptations")
    kept = "the list; records go into the folder `locked` beside it; default: %(default)s"
    listed = Path("reports/locked.json")
    parser.add_argument("--documents", type=Path, default=listed, metavar="FILE", help=kept)
    parser.add_argument(
        "--work", type=Path, default=Path("runs/ablations"), metavar="DIR", help="default: %(default)s"
    )
    _common(parser)
    arguments = parser.parse_args(argv)
    from hope_eval import cli as hope_eval  # noqa: PLC0415
    from hope_study import opening  # noqa: PLC0415

    opening.open_locked(
        _ledger(arguments),
        arguments.names,
        arguments.documents,
        arguments.documents.parent / "locked",
        arguments.work,
        hope_eval.main,
    )
    return FINISHED


def replication_command(argv: Sequence[str]) -> int:
    """Compare two folders of records."""
    about = "Compare the records of two machines, or of two revisions that trained the same definitions."
    parser = _parser("hope-study replication", about, REPLICATION)
    parser.add_argument("a", type=Path, metavar="FIRST", help="folder of *.jsonl")
    parser.add_argument("b", type=Path, metavar="SECOND", help="another")
    parser.add_argument(
        "--all", action="store_true", help="a row per arm and length, not only changed verdicts"
    )
    parser.add_argument("--conf", type=Path, default=Path("conf"), metavar="DIR", help="default: %(default)s")
    arguments = parser.parse_args(argv)
    from hope_study.report.replication import page  # noqa: PLC0415

    print(page(arguments.a, arguments.b, arguments.conf, whole=arguments.all))
    return FINISHED


def train_command(argv: Sequence[str]) -> int:
    """Train a run of the pipeline with every seed."""
    return _seeds_command("train", argv)


def evaluate_command(argv: Sequence[str]) -> int:
    """Evaluate a run of the pipeline, every seed."""
    return _seeds_command("evaluate", argv)


def _seeds_command(verb: str, argv: Sequence[str]) -> int:
    about = f"{verb.capitalize()} one run with every seed, side by side, as the pipeline's stage `run` does."
    parser = _parser(f"hope-study {verb}", about, SEEDS.format(verb=verb))
    parser.add_argument("--run", required=True, metavar="NAME", help="runs/NAME/config.yaml is there")
    parser.add_argument(
        "--data", type=Path, default=Path("data"), metavar="DIR", help="with shards/ and tokenizer/"
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), metavar="DIR", help="gets NAME/seeds; default: %(default)s"
    )
    parser.add_argument(
        "--reports", type=Path, default=Path("reports"), metavar="DIR", help="gets metrics/ and results/"
    )
    _pipeline(parser)
    arguments = parser.parse_args(argv)
    from hope_study import seeds  # noqa: PLC0415

    run, params = arguments.run, load_params(arguments.params)
    numbers = [str(seed) for seed in params.seeds]
    out, how = arguments.reports / "results" / run, seeds.evaluation(arguments.conf / "evaluate.yaml")
    if verb == "train":
        metrics = arguments.reports / "metrics" / f"train_{run}.json"
        return seeds.train(run, numbers, arguments.runs, metrics, params.runs, how)
    shown = params.corpora if run == params.runs[0] else ()
    return seeds.evaluate(run, numbers, arguments.runs, out, arguments.data, how, shown, params.runs)


def data_command(argv: Sequence[str]) -> int:
    """Make the pipeline's data."""
    from hope_study import prepare  # noqa: PLC0415

    about = "Acquire, filter and shard every corpus of params.yaml, as the pipeline's stage `data` does."
    parser = _parser("hope-study data", about, DATA)
    parser.add_argument("--data", type=Path, default=Path("data"), metavar="DIR", help="default: %(default)s")
    _pipeline(parser)
    arguments = parser.parse_args(argv)
    return prepare.prepare(arguments.params, arguments.conf, arguments.data)


def results_command(argv: Sequence[str]) -> int:
    """Write the pipeline's report."""
    about = "Write reports/latest from reports/results and the logs of runs, as the pipeline's stage `report` does."
    parser = _parser("hope-study results", about, DATA)
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="default: %(default)s")
    parser.add_argument(
        "--reports", type=Path, default=Path("reports"), metavar="DIR", help="default: %(default)s"
    )
    _pipeline(parser)
    arguments = parser.parse_args(argv)
    from hope_eval import report  # noqa: PLC0415
    from hope_train import facts  # noqa: PLC0415

    params, latest = load_params(arguments.params), arguments.reports / "latest"
    report.write(
        [arguments.reports / "results"],
        [arguments.runs],
        latest / "results.md",
        latest / "plots",
        params.runs,
        web_page=latest / "results.html",
        changes=facts.changes(params, arguments.conf),
        losses=latest / "loss.csv",
        metrics=arguments.reports / "differences.json",
        studies=arguments.reports / "studies",
    )
    print(latest / "results.html")
    return FINISHED


def show_command(argv: Sequence[str]) -> int:
    """Print the experiments of DVC beside each other."""
    from hope_study import experiments  # noqa: PLC0415

    about = "DVC's experiments of the present commit: what differs, and each run's result with its interval."
    parser = _parser("hope-study show", about, SHOW)
    parser.add_argument("--all", action="store_true", help="also arms of studies that no experiment changed")
    experiments.show(everything=parser.parse_args(argv).all)
    return FINISHED


def sweep_command(argv: Sequence[str]) -> int:
    """Run an experiment for every combination of values."""
    from hope_study import experiments  # noqa: PLC0415

    about = "Run a DVC experiment for every combination of values, one after the other, and show their table."
    parser = _parser("hope-study sweep", about, SHOW)
    parser.add_argument("settings", nargs="+", metavar="KEY=A,B", help="values of a key of params.yaml")
    return experiments.sweep(parser.parse_args(argv).settings)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; wrong input is one line on stderr and status 2."""
    commands: dict[str, Callable[[Sequence[str]], int]] = {
        "run": run_command,
        "report": report_command,
        "replication": replication_command,
        "open": open_command,
        "data": data_command,
        "train": train_command,
        "evaluate": evaluate_command,
        "results": results_command,
        "show": show_command,
        "sweep": sweep_command,
    }
    about = "Ablation studies: arms that differ in one thing, with seeds, intervals and pages."
    parser = _parser("hope-study", about, TOP)
    parser.add_argument("command", choices=commands, metavar="COMMAND", help=", ".join(commands))
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    try:
        return commands[arguments.command](arguments.arguments)
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else error, 2)
    except (InputError, DataInputError) as error:
        return _fail(error, 2)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)


def _fail(reason: object, status: int) -> int:
    print("error:", harmless(reason), file=sys.stderr)
    return status


def ablations(argv: Sequence[str]) -> int:
    """Serve `hope-train ablations`."""
    return main(["run", *argv])


def pages(argv: Sequence[str]) -> int:
    """Serve `hope-eval ablations`."""
    return main(["report", *argv])


def replication(argv: Sequence[str]) -> int:
    """Serve `hope-eval replication`."""
    return main(["replication", *argv])


def _parser(prog: str, about: str, epilog: str) -> argparse.ArgumentParser:
    kind = argparse.RawDescriptionHelpFormatter
    return Parser(prog, description=about, epilog=epilog, formatter_class=kind)


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="default: %(default)s")
    _pipeline(parser)


def _pipeline(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--conf", type=Path, default=Path("conf"), metavar="DIR", help="default: %(default)s")
    parser.add_argument(
        "--params",
        type=Path,
        default=Path("params.yaml"),
        metavar="FILE",
        help="default: %(default)s",
    )
