"""Two processes on one CPU (gloo) against one: same data, same weights, same checkpoints."""

from __future__ import annotations

import dataclasses
import json
import os
import runpy
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hope_model import CMSConfig
from hope_model.errors import InputError
from hope_train import config as configuration
from hope_train.checkpoint import state
from hope_train.config import OptimConfig, TrainConfig
from hope_train.data import open_data
from hope_train.optim.muon import newton_schulz
from hope_train.parallel.distributed import World
from hope_train.run import build, train

RESUMABLE = 75
RANKS = Path(__file__).with_name("ranks.py")
FILES = ("training-00000-of-00002.safetensors", "training-00001-of-00002.safetensors")


def weights(out: Path) -> dict[str, Tensor]:
    return load_file(out / "checkpoint/model.safetensors")


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[key] - b[key]).abs().max()) for key in a)


@pytest.fixture(scope="module")
def configs(tiny: TrainConfig) -> dict[str, TrainConfig]:
    model = dataclasses.replace(tiny.model, layers=2)
    base = dataclasses.replace(tiny, model=model, steps=4, eval_every=0, checkpoint_every=2)
    # AdamW's first steps blow rounding errors of tiny gradients up to whole steps; this epsilon does not.
    adamw = dataclasses.replace(base, optim=OptimConfig(name="adamw", eps=1e-5))
    return {
        "ddp": adamw,
        "fsdp": dataclasses.replace(adamw, parallel="fsdp", accumulate=2, activation_checkpoint=True),
        "muon": dataclasses.replace(base, steps=1, checkpoint_every=0),
        "muon_fsdp": dataclasses.replace(base, steps=1, checkpoint_every=0, parallel="fsdp"),
        "m3_fsdp": dataclasses.replace(base, optim=OptimConfig(name="m3", slow_every=2), parallel="fsdp"),
    }


@pytest.fixture(scope="module")
def two(configs: dict[str, TrainConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with every run of `configs` by two processes, and one (`stopped`) that one of them was told to stop."""
    root = tmp_path_factory.mktemp("two")
    for name, config in configs.items():
        (root / f"{name}.yaml").write_text(configuration.dump(config))
    jobs = [["train", f"{root}/{name}.yaml", f"{root}/{name}", 0] for name in configs]
    jobs += [["stop", f"{root}/ddp.yaml", f"{root}/stopped", RESUMABLE]]
    jobs += [["train", f"{root}/ddp.yaml", f"{root}/stopped", 0]]
    # Two blocks and what is left; one group where a block runs with history once a segment.
    by_layer = dataclasses.replace(configs["fsdp"].model, cms=CMSConfig(signal="layer"))
    (root / "layer.yaml").write_text(configuration.dump(dataclasses.replace(configs["fsdp"], model=by_layer)))
    jobs += [["groups", f"{root}/{name}.yaml", f"{root}", n] for name, n in (("fsdp", 3), ("layer", 1))]
    launch(jobs, root)
    return root


def launch(jobs: list[list[object]], root: Path, size: int = 2, *, together: bool = False) -> None:
    """Every job by `size` processes; each with a meeting of its own, or all `together` in one."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in jobs]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        ports = [free.getsockname()[1] for free in sockets]
    (root / "jobs.json").write_text(json.dumps([[port, *job] for port, job in zip(ports, jobs, strict=True)]))
    shared = {
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
        **({"MASTER_PORT": str(ports[0])} if together else {}),
    }
    command = [sys.executable, str(RANKS), str(root / "jobs.json")]
    processes = [
        subprocess.Popen(
            command,
            env=os.environ | shared | {"WANDB_MODE": "disabled", "RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    errors = [process.communicate(timeout=400)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * size, "\n".join(errors)


def test_two_processes_share_a_batch_without_a_double_or_a_gap(configs: dict[str, TrainConfig]) -> None:
    config = configs["ddp"]
    alone = open_data(config).loader
    both = [open_data(config, rank, 2).loader for rank in range(2)]
    for _ in range(3):
        parts = [next(loader).tokens for loader in both]
        assert (torch.from_numpy(next(alone).tokens) == torch.cat([torch.from_numpy(p) for p in parts])).all()
    with pytest.raises(InputError, match="'batch_size' 4 cannot be split over 3 processes"):
        open_data(config, 0, 3)


def test_ddp_is_one_process_with_the_double_batch(
    configs: dict[str, TrainConfig], two: Path, tmp_path: Path
) -> None:
    assert train(configs["ddp"], tmp_path / "one") == 0
    one, ddp = weights(tmp_path / "one"), weights(two / "ddp")
    assert distance(one, ddp) < 1e-6
    rows = [
        [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        for out in (tmp_path / "one", two / "ddp")
    ]
    for key in ("loss", "grad_norm", "grad_rms_adamw", "update_rms_adamw", "val_bpb", "val_loss"):
        assert rows[0][-1][key] == pytest.approx(rows[1][-1][key], rel=1e-5), key
    assert rows[0][-1]["tokens"] == rows[1][-1]["tokens"] == 4 * 4 * 32


def test_fsdp_is_ddp(two: Path) -> None:
    """Also with the batch in two parts and blocks recomputed."""
    assert distance(weights(two / "ddp"), weights(two / "fsdp")) < 1e-5


def test_muon_orthogonalises_whole_matrices_under_fsdp(two: Path, configs: dict[str, TrainConfig]) -> None:
    alone = World(0, 1, torch.device("cpu"))
    run = build(configs["muon"], open_data(configs["muon"]), alone)
    start = {name: p.detach() for name, p in run.optimizer.named.items()}
    ddp, fsdp = weights(two / "muon"), weights(two / "muon_fsdp")
    for name in run.optimizer.names["muon"]:
        a, b = (w[name] - start[name] for w in (ddp, fsdp))
        assert float((a - b).norm() / a.norm()) < 0.05, name
        halves = torch.cat([half.float() for half in newton_schulz(a.chunk(2))])
        wrong = halves * (a.norm() / halves.norm())
        assert float((a - wrong).norm() / a.norm()) > 0.1, "this test would not see shards"


def test_a_signal_to_one_process_stops_all_and_going_on_is_bitwise(two: Path) -> None:
    for name in ("model.safetensors", *FILES):
        ddp, stopped = ((two / run / "checkpoint" / name).read_bytes() for run in ("ddp", "stopped"))
        assert ddp == stopped, name


def test_a_checkpoint_of_two_serves_one_and_two_again(
    two: Path, configs: dict[str, TrainConfig], tmp_path: Path
) -> None:
    names, copy = ("fsdp", "m3_fsdp"), runpy.run_path(str(RANKS))["copy"]
    for name in names:
        assert copy(configs[name], two / name / "checkpoint", tmp_path / f"{name}_alone") == 0
    launch(
        [["copy", f"{two}/{n}.yaml", f"{tmp_path}/{n}_alone", f"{tmp_path}/{n}_again", 0] for n in names],
        tmp_path,
    )
    for name in names:
        first, alone, again = (
            two / name / "checkpoint",
            tmp_path / f"{name}_alone",
            tmp_path / f"{name}_again",
        )
        saved = state.read(alone)
        assert saved is not None
        assert saved.processes == 1
        for file in ("model.safetensors", *FILES):
            a, b = load_file(first / file), load_file(again / file)
            assert a.keys() == b.keys()
            assert all(torch.equal(a[k], b[k]) for k in a if not k.startswith("rng/")), file
        shards = [load_file(first / file) for file in FILES]
        one = load_file(alone / "training-00000-of-00001.safetensors")
        key = next(k for k in one if k.endswith(("/exp_avg", "/fast")) and one[k].ndim == 2)
        assert torch.equal(torch.cat([part[key] for part in shards]), one[key])
