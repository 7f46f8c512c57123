"""`hope-model launches`."""

import argparse
from typing import Any

from hope_model.bench_settings import TRAIN_VARIANTS, choices
from hope_model.errors import InputError
from hope_model.launches import LAUNCH_SECONDS, Pilot, launches
from hope_model.ranges import check_ranges

COLUMNS = (
    "variant",
    "forward",
    "backward",
    "launches",
    "launch_ms",
    "device_ms",
    "tflop",
    "decode_per_layer",
)


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "launches",
        help="kernels that a GPU would start, counted without one",
        description="Operators of a microbatch's forward and backward in bf16, and of one token decoded (per layer), "
        f"counted on CUDA tensors without memory. launch_ms: {LAUNCH_SECONDS * 1e6:g} µs each, started one after the "
        "other. device_ms: the least that an H200 needs for them: of every operator the products at 40 % of its peak, "
        "or the bytes at 70 % of its bandwidth, whichever takes longer; kernels that fill it less take longer. A step "
        "takes at least the larger of both. tflop: products.",
    )
    parser.add_argument("--variants", default=",".join(TRAIN_VARIANTS), help=f"of {', '.join(choices())}")
    for name, default in vars(Pilot()).items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=int, default=default, help=f"default {default}"
        )
    parser.set_defaults(function=_launches)


def _launches(arguments: argparse.Namespace) -> None:
    variants = arguments.variants.split(",")
    if unknown := [v for v in variants if v not in choices()]:
        raise InputError(f"--variants {', '.join(unknown)}: choose of {', '.join(choices())}")
    pilot = Pilot(**{name: getattr(arguments, name) for name in vars(Pilot())})
    check_ranges(pilot, "")
    print("  ".join(name.rjust(21 if name == "variant" else 12) for name in COLUMNS))
    for variant in variants:
        (row,) = launches([variant], pilot)
        row["launch_ms"] = round(1000 * LAUNCH_SECONDS * row["launches"])
        cells = [
            row["variant"].rjust(21),
            *(f"{row[name]:,}".rjust(max(12, len(name))) for name in COLUMNS[1:]),
        ]
        print("  ".join(cells), flush=True)
