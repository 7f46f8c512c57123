"""Command line of `hope-eval tune`, and the option `--adapt`."""

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hope_data.publishing import write_atomic
from hope_eval import results as schema
from hope_eval.arguments import names, positive, seed
from hope_eval.commands import Parsers

if TYPE_CHECKING:
    from hope_eval.scoring.adaptation import Adaptation

NAMES = "writes, neural_cache, unigram_cache, dynamic, off"


def add_adapt(parser: argparse.ArgumentParser) -> None:
    """The option of evaluators."""
    parser.add_argument(
        "--adapt",
        metavar="NAME[:DIAL=VALUE,...]",
        help=f"each task plain and adapted at test time, with the paired difference: {NAMES}; or a file of `tune`",
    )


def adapt_of(arguments: argparse.Namespace) -> "Adaptation | None":
    """What the option asks for; None without it."""
    from hope_eval.scoring.adaptation import parse  # noqa: PLC0415 (torch is slow to import, --help is not)

    return parse(arguments.adapt) if arguments.adapt else None


def add(commands: Parsers) -> None:
    """`hope-eval tune`."""
    parser = commands.add_parser(
        "tune",
        help="choose the dials of an adaptation at test time on validation text",
        description="Measure bits per byte of the validation split for one dial after another and write every trial. "
        "The file is what `hope-eval run --adapt FILE` takes. The test split is never read.",
        epilog="example:\n  hope-eval tune --adapt writes --checkpoint runs/gated_deltanet/checkpoint \\\n"
        "      --shards data/shards --tokenizer data/tokenizer --json writes.json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--adapt", required=True, metavar="NAME[:DIAL=VALUE,...]", help=f"where to begin: {NAMES}"
    )
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="DIR", help="one of ours")
    parser.add_argument("--shards", type=Path, required=True, metavar="DIR", help="a folder per corpus")
    parser.add_argument(
        "--tokenizer", type=Path, required=True, metavar="DIR", help="the one it was trained with"
    )
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="every trial and the best")
    parser.add_argument("--domains", default="", metavar="A,B", help="default: those it was trained on")
    parser.add_argument(
        "--tokens", type=positive, default=16_384, metavar="N", help="of each trial; default: %(default)s"
    )
    parser.add_argument(
        "--length", type=positive, default=0, metavar="T", help="window; default: as in training"
    )
    parser.add_argument("--seed", type=seed, default=0, metavar="S", help="of the text; default: %(default)s")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    parser.add_argument(
        "--batch-tokens", type=positive, default=4096, metavar="N", help="default: %(default)s"
    )
    parser.set_defaults(function=_tune)


def _tune(arguments: argparse.Namespace) -> None:
    from hope_eval.evaluate import Request, opened  # noqa: PLC0415
    from hope_eval.scoring.adaptation import parse  # noqa: PLC0415 (torch is slow to import, --help is not)
    from hope_eval.tasks.tune import tune  # noqa: PLC0415

    start = parse(arguments.adapt)
    request = Request(
        checkpoint=arguments.checkpoint,
        shards=arguments.shards,
        tokenizer=arguments.tokenizer,
        domains=names(arguments.domains),
        length=arguments.length,
        seed=arguments.seed,
        device=arguments.device,
        batch_tokens=arguments.batch_tokens,
    )
    with opened(request, ("train", "val")) as (context, about):
        tuned = tune(context, start, arguments.tokens, _say)
    record = {**dataclasses.asdict(tuned), "checkpoint": dataclasses.asdict(about)}
    write_atomic(arguments.json, schema.dumps(record).encode())
    edge = f"; at the edge of what was tried: {', '.join(tuned.at_edge)}" if tuned.at_edge else ""
    print(
        f"plain {tuned.plain_bits_per_byte:.4f}, {tuned.adapt} {tuned.bits_per_byte:.4f} bits per byte{edge}"
    )


def _say(trial: dict[str, Any]) -> None:
    dials = " ".join(
        f"{key}={value}" for key, value in trial.items() if key not in ("bits_per_byte", "seconds")
    )
    print(f"{dials}  {trial['bits_per_byte']:.4f}  {trial['seconds']:.1f} s", flush=True)
