"""`hope-model launches`."""

import argparse
from typing import Any

from hope_model.bench_settings import TRAIN_VARIANTS, choices
from hope_model.errors import InputError
from hope_model.launches import LAUNCH_SECONDS, Pilot, launches
from hope_model.ranges import check_ranges

COLUMNS = ("variant", "forward", "backward", "launches", "milliseconds", "decode_per_layer")


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "launches",
        help="kernels that a GPU would start, counted without one",
        description="Operators of a microbatch's forward and backward in bf16, and of one token decoded (per layer), "
        f"counted on CUDA tensors without memory; milliseconds at {LAUNCH_SECONDS * 1e6:g} µs a launch.",
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
        row["milliseconds"] = round(1000 * LAUNCH_SECONDS * row["launches"])
        cells = [
            row["variant"].rjust(21),
            *(f"{row[name]:,}".rjust(max(12, len(name))) for name in COLUMNS[1:]),
        ]
        print("  ".join(cells), flush=True)
