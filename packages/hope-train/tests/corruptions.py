"""Damage one file of a run, its configuration or its shards at random, and see whether the next command notices.

    python corruptions.py CONFIG --count 100

CONFIG is a run that has its shards and tokenizer; each trial works on copies. A file gets a flipped bit, loses its end,
becomes empty, or is replaced by another file of the same kind. Then `hope-train run` must refuse it in one line, or end
at the bits of an undisturbed run with its whole log (harmless); anything else counts as unnoticed, and is listed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path

from hope_train import config as configuration
from hope_train.cli import main
from hope_train.config import TrainConfig

KINDS = ("flip", "cut", "empty", "swap")


def damage(path: Path, how: str, draw: random.Random, others: list[Path]) -> None:
    """Change a file."""
    content = bytearray(path.read_bytes())
    if how == "flip":
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    elif how == "cut":
        content = content[: draw.randrange(len(content))]
    elif how == "empty":
        content = bytearray()
    else:
        content = bytearray(draw.choice(others).read_bytes())
    path.chmod(0o644)
    path.write_bytes(content)


def spoil(config: TrainConfig, count: int, seed: int = 0) -> dict[str, object]:
    """Damage `count` files, one a trial; returns counts, by where the file lies, and what went unnoticed."""
    os.environ["WANDB_MODE"] = "disabled"
    draw, unnoticed = random.Random(seed), list[str]()
    counts = {"noticed": 0, "harmless": 0, "unnoticed": 0}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        data = dataclasses.replace(
            config.data, shards=str(root / "work/shards"), tokenizer=str(root / "work/tokenizer")
        )
        plain = dataclasses.replace(config, data=data)
        for number in range(2):  # another run, whose files are swapped in
            shutil.copytree(config.data.shards, root / f"whole{number}/shards")
            shutil.copytree(config.data.tokenizer, root / f"whole{number}/tokenizer")
            text = configuration.dump(dataclasses.replace(plain, seed=number))
            (root / f"whole{number}/run.yaml").write_text(text)
            run(root, number, until=config.steps // 2)
        shutil.copytree(root / "whole0", root / "work")
        status, said = call(root, [])
        assert status == 0, said
        expected = contents(root / "work/out")
        files = [path for path in sorted((root / "whole0").rglob("*")) if path.is_file()]
        for _ in range(count):
            shutil.rmtree(root / "work")
            shutil.copytree(root / "whole0", root / "work")
            name, how = draw.choice(files).relative_to(root / "whole0"), draw.choice(KINDS)
            others = [
                path for path in files if path.suffix == name.suffix and path.parent.name == name.parent.name
            ]
            before = (root / "work" / name).read_bytes()
            damage(root / "work" / name, how, draw, [root / "whole1" / name, *others])
            status, said = call(root, ["--fresh-on-mismatch"] if draw.random() < 0.3 else [])
            if status == 2 and said.count("\n") == 1 and said.startswith("error: "):
                counts["noticed"] += 1
            elif (root / "work" / name).read_bytes() == before or (
                status == 0 and contents(root / "work/out") == expected
            ):
                counts["harmless"] += 1
            else:
                counts["unnoticed"] += 1
                unnoticed.append(f"{name} {how}: status {status}, {said.strip().splitlines()[-1:]}")
    return {**counts, "list": unnoticed}


def run(root: Path, number: int, until: int) -> None:
    """Train the run of one folder half-way, in the folder where all trials are."""
    (root / f"whole{number}").rename(root / "work")
    status, said = call(root, ["--until", str(until)])
    assert status == 75, said
    (root / "work").rename(root / f"whole{number}")


def call(root: Path, flags: list[str]) -> tuple[int, str]:
    """Exit status and what was said; a traceback counts as status -1."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            status = main(["run", str(root / "work/run.yaml"), "--out", str(root / "work/out"), *flags])
        except BaseException as error:  # noqa: BLE001
            return -1, f"{said.getvalue()}{type(error).__name__}: {error}"
    return status, said.getvalue()


def contents(out: Path) -> tuple[bytes, list[int]]:
    """Weights, and the steps of the log."""
    steps = [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()]
    return (out / "checkpoint/model.safetensors").read_bytes(), steps


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    loaded = configuration.load(arguments.config)
    sys.stdout.write(json.dumps(spoil(loaded, arguments.count, arguments.seed), indent=1) + "\n")
