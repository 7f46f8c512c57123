"""Kill a run again and again, and see whether it ends at the same bits.

    python kills.py CONFIG --kills 100 --processes 2

Each attempt is a forked process (or several), killed with SIGKILL at a random moment of what a quarter of the
run takes: all of them, or one, whose loss the others must notice. Every fifth attempt instead finds its disk full at a
random byte while it saves. After each, the checkpoint is verified; when a run has ended, its weights are compared with
those of a run left alone, every milestone must be there and whole, and another begins.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import socket
import sys
import tempfile
import time
import traceback
from pathlib import Path

from hope_data.publishing import recover_folder
from hope_model.counting import build_meta
from hope_train import config as configuration
from hope_train.checkpoint.verify import verify
from hope_train.run import train


def start(config: configuration.TrainConfig, out: Path, size: int, largest: int | None) -> list[int]:
    """Fork the processes of one attempt; `largest` bounds the size of any file they write, as a full disk does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    children = []
    for rank in range(size):
        child = os.fork()
        if child:
            children.append(child)
            continue
        status = 1
        try:
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "WANDB_MODE": "disabled"}
            os.dup2(os.open(out.with_suffix(".err"), os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
            if largest:
                resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
            status = train(config, out)
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            os._exit(status)
    return children


def wait(children: list[int], kill: list[int]) -> list[int]:
    """Exit statuses, after killing some; whoever outlives another is given three seconds to notice."""
    for child in kill:
        os.kill(child, signal.SIGKILL)
    left, statuses, limit = list(children), list[int](), time.monotonic() + 120
    while left:
        for child in list(left):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                left.remove(child)
                limit = min(limit, time.monotonic() + 3)
                statuses.append(os.waitstatus_to_exitcode(status))
        if time.monotonic() > limit:
            for child in left:
                os.kill(child, signal.SIGKILL)
        time.sleep(0.005)
    return statuses


def torment(config: configuration.TrainConfig, kills: int, size: int, seed: int = 0) -> dict[str, int]:
    """Kill `kills` times; returns counts of what happened."""
    build_meta(config.model)  # imports what every child would import for seconds
    draw, counts = (
        random.Random(seed),
        {"kills": 0, "full_disks": 0, "finished": 0, "verified": 0, "milestones": 0},
    )
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        needed = 120.0
        for name in ("cold", "alone"):
            begin = time.monotonic()
            statuses = wait(start(config, root / name, size, None), [])
            assert statuses == [0] * size, (root / f"{name}.err").read_text()
            needed = min(needed, time.monotonic() - begin)
        expected = (root / "alone/checkpoint/model.safetensors").read_bytes()
        while counts["kills"] + counts["full_disks"] < kills:
            out = root / f"run{counts['finished']}"
            full = draw.random() < 0.2
            children = start(config, out, size, draw.randrange(1000, len(expected)) if full else None)
            if full:
                counts["full_disks"] += any(wait(children, []))
            else:
                time.sleep(draw.random() * needed / 4)
                one = draw.random() < 0.5
                statuses = wait(children, [draw.choice(children)] if one else children)
                counts["kills"] += any(statuses)
            recover_folder(out / "checkpoint")
            if (out / "checkpoint").exists():
                verify(out / "checkpoint")
                counts["verified"] += 1
            last = counts["kills"] + counts["full_disks"] >= kills
            if last:
                wait(start(config, out, size, None), [])
            if finished(out, config.steps):
                assert (out / "checkpoint/model.safetensors").read_bytes() == expected, "other bits"
                steps = [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()]
                assert steps == sorted(set(steps)) == list(range(1, config.steps + 1)), (
                    "log with a gap or double row"
                )
                milestones = [
                    step for step in steps if config.milestone_every and step % config.milestone_every == 0
                ]
                for step in milestones:
                    verify(out / f"milestones/step-{step:08}")
                counts["finished"] += 1
                counts["milestones"] += len(milestones)
    return counts


def finished(out: Path, steps: int) -> bool:
    meta = out / "checkpoint/meta.json"
    return meta.exists() and json.loads(meta.read_text())["step"] == steps


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    loaded = configuration.load(arguments.config)
    sys.stdout.write(json.dumps(torment(loaded, arguments.kills, arguments.processes, arguments.seed)) + "\n")
