"""What one of several processes does in test_distributed.py: the jobs of a JSON file, one after the other."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist

from hope_train import config as configuration
from hope_train import loop
from hope_train.checkpoint import state
from hope_train.data import open_data
from hope_train.parallel import distributed
from hope_train.run import build, train


def copy(config: configuration.TrainConfig, source: Path, target: Path) -> int:
    """Load a checkpoint over as many processes as there are, and save it again."""
    with distributed.join(config.device) as world:
        run = build(config, open_data(config, world.rank, world.size), world)
        saved = state.read(source)
        assert saved is not None
        state.restore(source, saved, run.optimizer, world)
        state.save(target, run.optimizer, world, dataclasses.replace(saved, sha256={}), {})
    return 0


def stop(config: configuration.TrainConfig, out: Path) -> int:
    """Train, and have the last process alone told to stop in its third step."""
    real, calls = loop.forward_backward, [0]

    def wrapped(*arguments: Any, **keywords: Any) -> Any:
        calls[0] += 1
        if calls[0] == 3 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments, **keywords)

    loop.forward_backward = wrapped  # type: ignore[assignment]
    try:
        return train(config, out)
    finally:
        loop.forward_backward = real


def groups(config: configuration.TrainConfig, _: Path) -> int:
    """How many parts of the network gather their weights on their own."""
    with distributed.join(config.device) as world:
        run = build(config, open_data(config, world.rank, world.size), world)
        return sum(map(distributed._is_fsdp, run.network.modules()))


JOBS = {"train": train, "stop": stop, "copy": copy, "groups": groups}


def meet_once() -> None:
    """One process group for all jobs: DeepSpeed keeps its own groups beyond a run."""
    dist.init_process_group("gloo")
    dist.init_process_group = dist.destroy_process_group = lambda *_: None  # type: ignore[assignment]


if __name__ == "__main__":
    if "MASTER_PORT" in os.environ:
        meet_once()
    for port, name, path, *folders, expected in json.loads(Path(sys.argv[1]).read_text()):
        # A meeting place of its own: the last one's may still be open on the other side.
        os.environ["MASTER_PORT"] = str(port)
        status = JOBS[name](configuration.load(Path(path)), *map(Path, folders))  # type: ignore[operator]
        assert status == expected, (name, path, status)
