"""Two trainings into one folder at once, again and again.

    python pairs.py CONFIG --pairs 100

Both begin within a moment of each other. One of them, at random, has another seed and may start afresh where the folder
holds another run. Either the second finds the first alive and is refused in one line, or it comes late and finds its
work. Whatever happens, the folder then holds one of the two runs to the bit, with its whole log.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import re
import sys
import tempfile
import time
import traceback
from pathlib import Path

from hope_model.counting import build_meta
from hope_train import config as configuration
from hope_train.checkpoint.verify import verify
from hope_train.cli import main
from hope_train.config import TrainConfig

REFUSED = re.compile(
    r"error: \S+/checkpoint: process \d+ is writing it; wait until it has finished, or name another output"
)


def start(config: Path, out: Path, said: Path, *flags: str) -> int:
    """Fork one; what it says goes into a file."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.environ["WANDB_MODE"] = "disabled"
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        status = main(["run", str(config), "--out", str(out), *flags])
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        os._exit(status)


def ended(child: int) -> int:
    """Exit status of one, at its end."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def contents(out: Path) -> tuple[bytes, list[int]]:
    """Weights, and the steps of the log."""
    steps = [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()]
    return (out / "checkpoint/model.safetensors").read_bytes(), steps


def pair(config: TrainConfig, pairs: int, seed: int = 0) -> dict[str, int]:
    """Run so many pairs; returns counts of what happened."""
    build_meta(config.model)  # imports what every child would import for seconds
    draw, counts = random.Random(seed), {"pairs": 0, "refused": 0, "late": 0}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        expected = []
        for number in range(2):
            file = root / f"{number}.yaml"
            file.write_text(configuration.dump(dataclasses.replace(config, seed=number)))
            begin = time.monotonic()
            assert ended(start(file, root / f"alone{number}", root / "said")) == 0, (
                root / "said"
            ).read_text()
            needed = time.monotonic() - begin
            expected.append(contents(root / f"alone{number}"))
        for _ in range(pairs):
            out, children = root / f"pair{counts['pairs']}", []
            order = draw.sample((0, 1), 2) if draw.random() < 0.5 else [0, 0]
            for place, number in enumerate(order):
                flags = ["--fresh-on-mismatch"] if draw.random() < 0.5 or place else []
                children.append(start(root / f"{number}.yaml", out, root / f"said{place}", *flags))
                time.sleep(draw.choice((0, draw.random() * needed)))
            statuses = sorted(map(ended, children))
            assert statuses in ([0, 0], [0, 2]), [(root / f"said{n}").read_text() for n in range(2)]
            if statuses[1]:
                lines = [(root / f"said{n}").read_text() for n in range(2)]
                assert sum(bool(REFUSED.fullmatch(text.strip())) for text in lines) == 1, lines
            counts["refused" if statuses[1] else "late"] += 1
            verify(out / "checkpoint")
            assert contents(out) in [expected[number] for number in order]
            assert sorted(path.name for path in out.iterdir()) == ["checkpoint", "log.jsonl"]
            counts["pairs"] += 1
    return counts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    loaded = configuration.load(arguments.config)
    sys.stdout.write(json.dumps(pair(loaded, arguments.pairs, arguments.seed)) + "\n")
