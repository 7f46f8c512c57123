"""Console script of hope-train."""

import argparse
import dataclasses
import errno
import re
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from hope_data.commands import Command, Option, option, parser_of, switch
from hope_data.errors import InputError as DataInputError
from hope_data.errors import harmless
from hope_model.errors import InputError as ModelInputError

# ruff: noqa: PLC0415 (each command imports what it needs: torch takes seconds)
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; wrong input is one line on stderr and status 2."""
    argv = sys.argv[1:] if argv is None else argv
    # Packages above this one add commands: `ablations` comes with hope-study.
    for entry in entry_points(group="hope_train.commands", name=argv[0]) if argv else ():
        status: int = entry.load()(argv[1:])
        return status
    description = "Train language models from one resolved file."
    arguments = parser_of("hope-train", description, TOP, COMMANDS).parse_args(argv)
    try:
        return int(arguments.function(arguments) or 0)
    except (DataInputError, ModelInputError) as error:
        return _fail(error, 2)
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.filename else error
        return _fail(reason, 2 if error.errno in WRONG_PATH else 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)


def _compose(arguments: argparse.Namespace) -> None:
    from hope_data.publishing import write_atomic
    from hope_train import config
    from hope_train.compose import compose, load_params

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


def _facts(arguments: argparse.Namespace) -> None:
    from hope_train.facts import write

    write(arguments.params, arguments.conf, arguments.out)


def _run(arguments: argparse.Namespace) -> int:
    from hope_train import config

    loaded = config.load(arguments.config)
    from hope_train.loop import DivergedError  # torch is slow to import; wrong input is said before
    from hope_train.run import train

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


def _verify(arguments: argparse.Namespace) -> None:
    from hope_train.checkpoint.verify import verify

    print(verify(arguments.folder))


def _plan(arguments: argparse.Namespace) -> None:
    from hope_train.compose import compose, load_params

    params = load_params(arguments.params)
    run = arguments.run or next(iter(params.runs), "")
    config = compose(run, arguments.conf, params, arguments.overrides)
    from hope_train.planning.plan import check, plan, table

    if arguments.measure:
        numbers = check(config)
        print(
            "foreseen {foreseen_gib:.3f} GiB, measured in use {measured_gib:.3f} GiB: {ratio:.2f}; with freed "
            "blocks that a run on a CPU keeps {resident_gib:.3f} GiB: {resident_ratio:.2f}".format(**numbers)
        )
    else:
        numbers = plan(config, arguments.device, arguments.count)
        print(table(numbers))
    _json(arguments, numbers)


def _scales(arguments: argparse.Namespace) -> None:
    from hope_train.planning.scales import scales, table

    rows = scales(arguments.conf)
    if not rows:
        raise ModelInputError(f"{arguments.conf / 'scale'}: no scale there; --conf names the folder above it")
    print(table(rows))
    _json(arguments, {"scales": rows})


def _bench(arguments: argparse.Namespace) -> None:
    from hope_train import config

    loaded = config.load(arguments.config)
    from hope_train.bench import bench

    numbers = bench(loaded, arguments.steps, arguments.rounds)
    for name, value in numbers.items():
        print(f"{name:20} {value:.4g}")
    _json(arguments, numbers)


def _json(arguments: argparse.Namespace, numbers: dict[str, Any]) -> None:
    if arguments.json:
        from hope_data.files import write_json

        write_json(arguments.json, numbers)


def _fail(error: object, status: int) -> int:
    print("error:", harmless(" ".join(str(error).splitlines())), file=sys.stderr)
    return status


CONF = option("--conf", "default: %(default)s", Path, "DIR", default=Path("conf"))
PARAMS = option("--params", "default: %(default)s", Path, "FILE", default=Path("params.yaml"))
NAME = option("--run", "a file of conf/run; without it, the first of params.yaml", metavar="NAME")
OVERRIDES = option("overrides", "Hydra overrides", metavar="KEY=VALUE", nargs="*")
CONFIG = option("config", "as `hope-train compose` writes it", Path, "CONFIG")


def _command(
    function: Callable[[argparse.Namespace], int | None], text: str, examples: str, *options: Option
) -> Command:
    return Command(function.__name__.removeprefix("_"), text, text, options, examples, function)


COMMANDS = (
    _command(
        _compose, "Merge conf/ and params.yaml into one run file.", COMPOSE,
        NAME,
        option("--out", "write here; without it, to stdout", Path, "FILE"),
        option("--print", "only this value, e.g. model.vocab_size", metavar="KEY", dest="key"),
        CONF, PARAMS, OVERRIDES,
    ),
    _command(
        _facts, "Check params.yaml and write its values.", FACTS,
        option("--out", "gets a file for each value", Path, "DIR", required=True),
        CONF, PARAMS,
    ),
    _command(
        _run, "Train a run, or resume it.", RUN,
        CONFIG,
        option("--out", "the run's folder; default: runs/NAME", Path, "DIR"),
        option("--json", "write the final numbers here", Path, "FILE"),
        switch("--fresh-on-mismatch", "replace another run in DIR (the pipeline does)"),
        option("--until", "stop after this step with everything saved (status 75)", int, "STEP"),
    ),
    _command(
        _verify, "Check a checkpoint strictly.", VERIFY,
        option("folder", "a checkpoint, a milestone, or a run", Path, "DIR"),
    ),
    _command(
        _plan, "What a run will cost.", PLAN,
        NAME,
        option("--device", "default: %(default)s", metavar="KIND", default="H100"),
        option("--count", "devices; default: %(default)s", int, "N", default=1),
        switch("--measure", "instead: two real steps on this CPU"),
        option("--json", "write the numbers here", Path, "FILE"),
        CONF, PARAMS, OVERRIDES,
    ),
    _command(
        _bench, "What the loop and the optimisers cost.", BENCH,
        CONFIG,
        option("--steps", "per turn; default: log.every", int, "N", default=0),
        option("--rounds", "turns; default: %(default)s", int, "N", default=5),
        option("--json", "write the numbers here", Path, "FILE"),
    ),
    _command(
        _scales, "How large the named scales are.", SCALES,
        CONF,
        option("--json", "write the rows here", Path, "FILE"),
    ),
)  # fmt: skip
