"""Console script of hope-train."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path

from hope_data.errors import InputError as DataInputError
from hope_model.errors import InputError as ModelInputError

TOP = """\
examples:
  hope-train compose --run hope --out runs/hope/config.yaml    what shall be trained
  hope-train run runs/hope/config.yaml                         train it, or go on with it

`hope-train COMMAND --help` teaches each command.
"""
COMPOSE = """\
examples:
  hope-train compose --run hope --out runs/hope/config.yaml
  hope-train compose --run titans scale=tiny                   look at it, write nothing
  hope-train compose --run hope optim=adamw optim.lr=1e-3 model.layers=6 --out my.yaml
  hope-train compose --print model.vocab_size                  one value, for scripts; of a list one item a line

A run is one file each of conf/run, conf/scale and conf/optim over the defaults of the code, with the facts
of params.yaml; KEY=VALUE comes last and wins. The output is complete: training reads nothing else.
"""
RUN = """\
examples:
  hope-train run runs/hope/config.yaml                         into runs/hope
  hope-train run my.yaml --out /tmp/mine --json mine.json

The folder gets log.jsonl (one row per log.every steps) and checkpoint/ (weights for evaluation, and all that
is needed to go on). The same command goes on where it was stopped; a finished run says so; the checkpoint of
another run is an error. SIGTERM and Ctrl-C save first.

exit status: 0 finished, 75 stopped and ready to go on, 2 wrong input, 1 anything else (a diverged loss, a
full disk).
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = _parser(argparse.ArgumentParser, "hope-train", "Train language models from one resolved file.", TOP)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    one = _parser(commands.add_parser, "compose", "Merge conf/ and params.yaml into one run file.", COMPOSE)
    one.add_argument("--run", metavar="NAME", help="a file of conf/run; without it, the first of params.yaml")
    one.add_argument("--out", type=Path, metavar="FILE", help="write here; without it, to stdout")
    one.add_argument("--print", dest="key", metavar="KEY", help="only this value, e.g. model.vocab_size")
    one.add_argument("--conf", type=Path, default=Path("conf"), metavar="DIR", help="default: %(default)s")
    one.add_argument(
        "--params", type=Path, default=Path("params.yaml"), metavar="FILE", help="default: %(default)s"
    )
    one.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="Hydra overrides")

    two = _parser(commands.add_parser, "run", "Train a run, or go on with it.", RUN)
    two.add_argument("config", type=Path, metavar="CONFIG", help="as `hope-train compose` writes it")
    two.add_argument("--out", type=Path, metavar="DIR", help="the run's folder; default: runs/NAME")
    two.add_argument("--json", type=Path, metavar="FILE", help="write the final numbers here")
    two.add_argument(
        "--fresh-on-mismatch",
        action="store_true",
        help="start anew where DIR holds another run (the pipeline does)",
    )
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; wrong input is one line on stderr and status 2."""
    arguments = parser().parse_args(argv)
    command = _compose if arguments.command == "compose" else _run
    try:
        return command(arguments)
    except (DataInputError, ModelInputError) as error:
        return _fail(error, 2)
    except OSError as error:
        return _fail(error, 1)


def _compose(arguments: argparse.Namespace) -> int:
    from hope_data.files import write_atomic  # noqa: PLC0415 (each command imports what it needs)
    from hope_train import config  # noqa: PLC0415
    from hope_train.compose import compose, load_params  # noqa: PLC0415

    params = load_params(arguments.params)
    run = arguments.run or next(iter(params.runs), "")
    resolved = compose(run, arguments.conf, params, arguments.overrides)
    text = config.dump(resolved)
    if arguments.key:
        try:
            value = attrgetter(arguments.key)(params if hasattr(params, arguments.key) else resolved)
        except AttributeError:
            raise ModelInputError(f"--print {arguments.key}: no such key") from None
        text = "".join(f"{item}\n" for item in (value if isinstance(value, list) else [value]))
    if arguments.out:
        write_atomic(arguments.out, text.encode())
    else:
        sys.stdout.write(text)
    return 0


def _run(arguments: argparse.Namespace) -> int:
    from hope_train import config  # noqa: PLC0415 (torch takes seconds to import)
    from hope_train.loop import DivergedError  # noqa: PLC0415
    from hope_train.run import train  # noqa: PLC0415

    loaded = config.load(arguments.config)
    out = arguments.out or Path("runs", loaded.run)
    try:
        return train(loaded, out, fresh_on_mismatch=arguments.fresh_on_mismatch, report=arguments.json)
    except DivergedError as error:
        return _fail(error, 1)


def _fail(error: Exception, status: int) -> int:
    print(f"error: {error}", file=sys.stderr)
    return status


def _parser(make, name: str, description: str, epilog: str) -> argparse.ArgumentParser:  # type: ignore[no-untyped-def]
    kind = argparse.RawDescriptionHelpFormatter
    first = {"prog": name} if make is argparse.ArgumentParser else {"name": name, "help": description}
    parser: argparse.ArgumentParser = make(
        **first, description=description, epilog=epilog, formatter_class=kind
    )
    return parser
