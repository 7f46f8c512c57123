"""Console script of hope-model."""

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from hope_model import launch_commands, llama_commands, text_commands
from hope_model.bench_settings import TRAIN_VARIANTS, UNBOUNDED, BenchSettings, choices, model_config
from hope_model.errors import InputError
from hope_model.files import write_atomic
from hope_model.ranges import check_ranges, shown

EXAMPLES = """examples:
  hope-model generate runs/hope/checkpoint "A tensor is"    continue a prompt
  hope-model recall runs/hope/checkpoint             does it remember a number that it was told?
  hope-model bench                                   the figures of the package README (a few minutes)
  hope-model bench --precision fp32 --threads 1      not as training runs: in float32 on one core
  hope-model bench --length 4096 --json bench.json   longer sequences; rows also as JSON
  hope-model bench --device cuda --bf16 --dim 768 --layers 12 --length 16384
  hope-model bench decode --positions 1024,32768     cost of one token far into a stream
  hope-model launches --variants titans,hope         kernels that a GPU would start, counted without one
  hope-model convert SmolLM2-135M smollm             a Llama-family folder becomes a checkpoint of ours
  hope-model export smollm SmolLM2-again             and back
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 on success, 2 on a user's mistake."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.function(arguments)
    except BrokenPipeError:  # the reader of the text has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (InputError, OSError, RuntimeError) as error:
        message = str(error).strip() or type(error).__name__
        print(f"error: {_harmless(message.splitlines()[0])}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _harmless(text: str) -> str:
    """The text without characters that a terminal would obey."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Say in one line what is wrong with the arguments."""
        self.exit(2, f"error: {_harmless(message)}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    kind = argparse.RawDescriptionHelpFormatter
    parser: argparse.ArgumentParser = _Parser(
        "hope-model",
        description="Try, measure and convert models: the checkpoints of hope-train and of the Llama family.",
        epilog=EXAMPLES,
        formatter_class=kind,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    bench = commands.add_parser(
        "bench",
        help="tokens/s, memory and operations of every variant against a Transformer",
        description="Whole train steps at equal parameters, all variants in one run; or one-token decoding.",
        epilog=EXAMPLES,
        formatter_class=kind,
    )
    bench.add_argument("what", nargs="?", choices=("train", "decode"), default="train")
    bench.add_argument("--variants", default=",".join(TRAIN_VARIANTS), help=f"of {', '.join(choices())}")
    for name, text in (
        ("length", "tokens of a sequence"),
        ("dim", "model width"),
        ("layers", "blocks"),
        ("head-dim", "width of a head"),
        ("vocab-size", "vocabulary"),
        ("batch-size", "sequences"),
        ("repeats", "timed rounds; the median counts"),
        ("threads", "CPU threads"),
        ("seed", "of weights and tokens"),
    ):
        default = BenchSettings.__dict__.get(name.replace("-", "_"))
        known = "torch's own number" if default is None else default
        bench.add_argument(f"--{name}", type=int, default=default, help=f"{text} (default: {known})")
    bench.add_argument("--device", default="cpu", help="cpu or cuda")
    bench.add_argument(
        "--precision",
        default=BenchSettings.precision,
        help="fp32, bf16 (autocast; states stay in float32) or auto: bf16 where the hardware multiplies it",
    )
    bench.add_argument(
        "--bf16", dest="precision", action="store_const", const="bf16", help="the same as --precision bf16"
    )
    bench.add_argument(
        "--positions", default="1024,32768,1048576", help="decode: tokens before the timed ones"
    )
    bench.add_argument("--json", type=Path, help="also write the rows here")
    bench.set_defaults(function=_bench)
    launch_commands.add(commands)
    text_commands.add(commands)
    llama_commands.add(commands)
    return parser


def _bench(arguments: argparse.Namespace) -> None:
    values = vars(arguments)
    names = [name for name in BenchSettings.__dataclass_fields__ if values[name] is not None]
    given: dict[str, Any] = {name: values[name] for name in names} | {
        "variants": tuple(arguments.variants.split(","))
    }
    positions = _check(BenchSettings(**{"threads": 1, **given}), arguments)
    settings = BenchSettings(**given)
    from hope_model.bench import bench_decode, bench_training, machine  # noqa: PLC0415 (torch is slow to import)

    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # the profiler's own chatter
    live = sys.stderr.isatty()

    def report(text: str) -> None:
        if live:
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)

    decode = arguments.what == "decode"
    rows = bench_decode(settings, positions, report) if decode else bench_training(settings, report)
    report("")
    where = machine(settings)
    print(", ".join(f"{key} {value}" for key, value in where.items()))
    _table(rows)
    if arguments.json:
        write_atomic(
            arguments.json, (json.dumps([{**row, **where} for row in rows], indent=1) + "\n").encode()
        )


def _check(settings: BenchSettings, arguments: argparse.Namespace) -> list[int]:
    """Refuse what cannot be measured, before the minutes that measuring takes; returns the positions to decode at."""
    if unknown := [v for v in settings.variants if v not in choices()]:
        raise InputError(f"--variants {', '.join(unknown)}: choose of {', '.join(choices())}")
    try:
        check_ranges(settings, "")
    except InputError as error:
        name, _, fault = str(error).partition(" ")
        raise InputError(f"--{name.replace('_', '-')} {fault}") from None
    for variant in settings.variants:
        model_config(settings, variant)
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", settings.device):
        raise InputError(f"--device {shown(settings.device)}: choose cpu, cuda or one of several as cuda:1")
    if settings.device.startswith("cuda"):
        import torch  # noqa: PLC0415

        if not torch.cuda.is_available():
            raise InputError(
                "--device cuda: torch sees no CUDA device; leave the option out to run on the CPU"
            )
    if not re.fullmatch(r"\d{1,12}(,\d{1,12})*", arguments.positions):
        raise InputError(f"--positions {shown(arguments.positions)}: give whole numbers such as 1024,32768")
    if arguments.what == "decode" and set(settings.variants) <= set(UNBOUNDED):
        raise InputError(
            f"--variants {', '.join(settings.variants)}: their states grow with every token; name others"
        )
    return [int(part) for part in arguments.positions.split(",")]


def _table(rows: list[dict[str, Any]]) -> None:
    cells = [list(rows[0])] + [[_cell(value) for value in row.values()] for row in rows]
    widths = [max(len(row[n]) for row in cells) for n in range(len(cells[0]))]
    for row in cells:
        print("  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)))


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
