"""Console script of hope-train."""

import argparse
import dataclasses
import errno
import re
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from hope_data.console import Parser
from hope_data.errors import InputError as DataInputError
from hope_data.errors import harmless
from hope_model.errors import InputError as ModelInputError

# A path that cannot be used is wrong input; a full or failing disk is not.
WRONG_PATH = (
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP,
    errno.ENAMETOOLONG, errno.EINVAL,
)  # fmt: skip
OUT_OF_MEMORY = re.compile("out of memory|n't allocate memory|not enough memory|nable to allocate")
NO_ATTENTION = re.compile("No (viable backend|available kernel)")
TOP = """\
examples:
  hope-train compose --run hope --out runs/hope/config.yaml    what shall be trained
  hope-train run runs/hope/config.yaml                         train it, or resume it
  torchrun --nproc-per-node 8 -m hope_train run runs/hope/config.yaml
  hope-train verify runs/hope/checkpoint                       is it whole?
  hope-train plan --run hope --device H100 --count 8 scale=mid what it will cost
  hope-train scales                                            how large the named scales are
  hope-train bench runs/hope/config.yaml                       what the loop costs

`hope-train COMMAND --help` teaches each command.
"""
FACTS = """\
example:
  hope-train facts --out data/facts                            refuses what cannot be; the rest as files
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

Under torchrun (or srun with RANK, WORLD_SIZE and LOCAL_RANK set) the same command trains on all processes; batch_size
is that of all together. OUT must be a folder that all of them see.

The folder gets log.jsonl (one row per log.every steps) and checkpoint/ (weights for evaluation, and all that
is needed to resume). The same command resumes where it was stopped; a finished run says so; the checkpoint of
another run is an error that names every key. docs/train.md lists what may change in between; a larger `steps`
trains on. SIGTERM, SIGHUP and Ctrl-C save first. A second command for the same folder is refused while the first
lives.

exit status: 0 finished, 75 stopped with everything saved, 2 wrong input, 1 anything else (a diverged loss, a
full disk).
"""
VERIFY = """\
examples:
  hope-train verify runs/hope
  hope-train verify runs/hope/milestones/step-00001000

Checks every file against the sidecar's SHA-256, every weight against the configuration, every row of the optimiser's
tensors, that all values are finite, and the log beside the checkpoint. Exit status 0: whole; 2: not, with one line
that says what.
"""
PLAN = """\
examples:
  hope-train plan --run hope --device H100 --count 8 scale=mid
  hope-train plan --run transformer scale=pilot accumulate=64 activation_checkpoint=true --json plan.json
  hope-train plan --run hope scale=smoke precision=fp32 --measure    foreseen and real peak memory, on this CPU

Memory is counted by running one step on tensors that hold nothing. Time assumes a share of the device's peak.
"""
SCALES = """\
examples:
  hope-train scales
  hope-train scales --conf my/conf --json scales.json

Builds every scale of conf/scale with every variant on the meta device and counts. pilot, mid and target are named by
their size: 160 M, 760 M and 1.3 B.
"""
BENCH = """\
examples:
  hope-train bench runs/hope/config.yaml --steps 5 --rounds 5 --json bench.json

Turns of whole training steps (loader, optimiser, a row of the log) beside turns of the bare model's forward and
backward, which has no optimiser; then a step of each optimiser, and a checkpoint.
"""


def parser() -> argparse.ArgumentParser:
    top = _parser(Parser, "hope-train", "Train language models from one resolved file.", TOP)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    one = _parser(commands.add_parser, "compose", "Merge conf/ and params.yaml into one run file.", COMPOSE)
    one.add_argument("--run", metavar="NAME", help="a file of conf/run; without it, the first of params.yaml")
    one.add_argument("--out", type=Path, metavar="FILE", help="write here; without it, to stdout")
    one.add_argument("--print", dest="key", metavar="KEY", help="only this value, e.g. model.vocab_size")
    _composing(one)

    eight = _parser(commands.add_parser, "facts", "Check params.yaml and write its values.", FACTS)
    eight.add_argument("--out", type=Path, required=True, metavar="DIR", help="gets a file for each value")
    eight.add_argument("--conf", type=Path, default=Path("conf"), metavar="DIR", help="default: %(default)s")
    eight.add_argument(
        "--params", type=Path, default=Path("params.yaml"), metavar="FILE", help="default: %(default)s"
    )

    two = _parser(commands.add_parser, "run", "Train a run, or resume it.", RUN)
    two.add_argument("config", type=Path, metavar="CONFIG", help="as `hope-train compose` writes it")
    two.add_argument("--out", type=Path, metavar="DIR", help="the run's folder; default: runs/NAME")
    two.add_argument("--json", type=Path, metavar="FILE", help="write the final numbers here")
    two.add_argument(
        "--fresh-on-mismatch",
        action="store_true",
        help="replace another run in DIR (the pipeline does)",
    )

    two.add_argument(
        "--until", type=int, metavar="STEP", help="stop after this step with everything saved (status 75)"
    )

    three = _parser(commands.add_parser, "verify", "Check a checkpoint strictly.", VERIFY)
    three.add_argument("folder", type=Path, metavar="DIR", help="a checkpoint, a milestone, or a run")

    four = _parser(commands.add_parser, "plan", "What a run will cost.", PLAN)
    four.add_argument(
        "--run", metavar="NAME", help="a file of conf/run; without it, the first of params.yaml"
    )
    four.add_argument("--device", default="H100", metavar="KIND", help="default: %(default)s")
    four.add_argument("--count", type=int, default=1, metavar="N", help="devices; default: %(default)s")
    four.add_argument("--measure", action="store_true", help="instead: two real steps on this CPU")
    four.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here")
    _composing(four)

    five = _parser(commands.add_parser, "bench", "What the loop and the optimisers cost.", BENCH)
    five.add_argument("config", type=Path, metavar="CONFIG", help="as `hope-train compose` writes it")
    five.add_argument("--steps", type=int, default=0, metavar="N", help="per turn; default: log.every")
    five.add_argument("--rounds", type=int, default=5, metavar="N", help="turns; default: %(default)s")
    five.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here")

    seven = _parser(commands.add_parser, "scales", "How large the named scales are.", SCALES)
    seven.add_argument("--conf", type=Path, default=Path("conf"), metavar="DIR", help="default: %(default)s")
    seven.add_argument("--json", type=Path, metavar="FILE", help="write the rows here")

    return top


def _composing(one: argparse.ArgumentParser) -> None:
    one.add_argument("--conf", type=Path, default=Path("conf"), metavar="DIR", help="default: %(default)s")
    one.add_argument(
        "--params", type=Path, default=Path("params.yaml"), metavar="FILE", help="default: %(default)s"
    )
    one.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="Hydra overrides")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; wrong input is one line on stderr and status 2."""
    argv = sys.argv[1:] if argv is None else argv
    # Packages above this one add commands: `ablations` comes with hope-study.
    for entry in entry_points(group="hope_train.commands", name=argv[0]) if argv else ():
        status: int = entry.load()(argv[1:])
        return status
    arguments = parser().parse_args(argv)
    commands = {"compose": _compose, "run": _run, "verify": _verify, "plan": _plan, "bench": _bench}
    commands |= {"scales": _scales, "facts": _facts}
    try:
        return commands[arguments.command](arguments)
    except (DataInputError, ModelInputError) as error:
        return _fail(error, 2)
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.filename else error
        return _fail(reason, 2 if error.errno in WRONG_PATH else 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)


def _compose(arguments: argparse.Namespace) -> int:
    from hope_data.publishing import write_atomic  # noqa: PLC0415 (each command imports what it needs)
    from hope_train import config  # noqa: PLC0415
    from hope_train.compose import compose, load_params  # noqa: PLC0415

    params = load_params(arguments.params)
    run = arguments.run or next(iter(params.runs), "")
    resolved = compose(run, arguments.conf, params, arguments.overrides)
    text = config.dump(resolved)
    if arguments.key:
        value: Any = {**dataclasses.asdict(resolved), **dataclasses.asdict(params)}
        for part in arguments.key.split("."):
            if not (isinstance(value, dict) and part in value):
                raise ModelInputError(f"--print {arguments.key}: no such key")
            value = value[part]
        text = "".join(f"{item}\n" for item in (value if isinstance(value, list) else [value]))
    if arguments.out:
        write_atomic(arguments.out, text.encode())
    else:
        sys.stdout.write(text)
    return 0


def _facts(arguments: argparse.Namespace) -> int:
    from hope_train.facts import write  # noqa: PLC0415

    write(arguments.params, arguments.conf, arguments.out)
    return 0


def _run(arguments: argparse.Namespace) -> int:
    from hope_train import config  # noqa: PLC0415

    loaded = config.load(arguments.config)
    from hope_train.loop import DivergedError  # noqa: PLC0415 (torch is slow to import; wrong input is said before)
    from hope_train.run import train  # noqa: PLC0415

    out = arguments.out or Path("runs", loaded.run)
    try:
        return train(
            loaded,
            out,
            fresh_on_mismatch=arguments.fresh_on_mismatch,
            report=arguments.json,
            until=arguments.until,
        )
    except DivergedError as error:
        return _fail(error, 1)
    except (MemoryError, RuntimeError) as error:
        reason = (str(error) or "no memory left").splitlines()[0]
        if isinstance(error, MemoryError) or OUT_OF_MEMORY.search(reason):
            return _fail(f"{reason}; lower batch_size or length, or raise accumulate", 1)
        if NO_ATTENTION.search(reason):
            return _fail(
                f"sdpa '{loaded.sdpa}' does not serve this device, precision or model; choose auto", 2
            )
        raise


def _verify(arguments: argparse.Namespace) -> int:
    from hope_train.checkpoint.verify import verify  # noqa: PLC0415

    print(verify(arguments.folder))
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    from hope_data.files import write_json  # noqa: PLC0415
    from hope_train.compose import compose, load_params  # noqa: PLC0415

    params = load_params(arguments.params)
    run = arguments.run or next(iter(params.runs), "")
    config = compose(run, arguments.conf, params, arguments.overrides)
    from hope_train.planning.plan import check, plan, table  # noqa: PLC0415

    if arguments.measure:
        numbers = check(config)
        print(
            "foreseen {foreseen_gib:.3f} GiB, measured in use {measured_gib:.3f} GiB: {ratio:.2f}; with freed "
            "blocks that a run on a CPU keeps {resident_gib:.3f} GiB: {resident_ratio:.2f}".format(**numbers)
        )
    else:
        numbers = plan(config, arguments.device, arguments.count)
        print(table(numbers))
    if arguments.json:
        write_json(arguments.json, numbers)
    return 0


def _scales(arguments: argparse.Namespace) -> int:
    from hope_data.files import write_json  # noqa: PLC0415
    from hope_train.planning.scales import scales, table  # noqa: PLC0415

    rows = scales(arguments.conf)
    if not rows:
        raise ModelInputError(f"{arguments.conf / 'scale'}: no scale there; --conf names the folder above it")
    print(table(rows))
    if arguments.json:
        write_json(arguments.json, {"scales": rows})
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    from hope_data.files import write_json  # noqa: PLC0415
    from hope_train import config  # noqa: PLC0415

    loaded = config.load(arguments.config)
    from hope_train.bench import bench  # noqa: PLC0415

    numbers = bench(loaded, arguments.steps, arguments.rounds)
    for name, value in numbers.items():
        print(f"{name:20} {value:.4g}")
    if arguments.json:
        write_json(arguments.json, numbers)
    return 0


def _fail(error: object, status: int) -> int:
    print("error:", harmless(" ".join(str(error).splitlines())), file=sys.stderr)
    return status


def _parser(make, name: str, description: str, epilog: str) -> argparse.ArgumentParser:  # type: ignore[no-untyped-def]
    kind = argparse.RawDescriptionHelpFormatter
    first = {"prog": name} if make is Parser else {"name": name, "help": description}
    parser: argparse.ArgumentParser = make(
        **first, description=description, epilog=epilog, formatter_class=kind
    )
    return parser
