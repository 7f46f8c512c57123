"""One command at a time writes a run's folder; the second is refused in one line, however the first was started."""

from __future__ import annotations

import dataclasses
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hope_data.publishing import exclusive
from hope_train.cli import main
from hope_train.config import TrainConfig, dump
from hope_train.run import train

HERE = Path(__file__).parent
ENVIRONMENT = {"WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("pairs", [3, pytest.param(100, marks=pytest.mark.long)])
def test_of_two_at_once_one_is_refused_and_nothing_is_lost(
    pairs: int, tiny: TrainConfig, tmp_path: Path
) -> None:
    config = dataclasses.replace(tiny, checkpoint_every=2, log=dataclasses.replace(tiny.log, every=1))
    (tmp_path / "run.yaml").write_text(dump(config))
    command = [sys.executable, str(HERE / "pairs.py"), str(tmp_path / "run.yaml"), "--pairs", str(pairs)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | ENVIRONMENT, check=False)
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert counts["pairs"] == pairs
    assert counts["refused"] > 0


def test_an_orphan_keeps_its_folder(
    tiny: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after `kill -9` of dvc alone: the trainer lives, and nothing of it is called damaged or removed."""
    out = tmp_path / "out"
    config = dataclasses.replace(tiny, steps=100_000, eval_every=0, checkpoint_every=1)
    (tmp_path / "run.yaml").write_text(dump(config))
    (tmp_path / "other.yaml").write_text(dump(dataclasses.replace(config, seed=1)))
    trainer = f"'{sys.executable}' -m hope_train run '{tmp_path}/run.yaml' --out '{out}' & echo $!; wait"
    shell = subprocess.Popen(["sh", "-c", trainer], env=os.environ | ENVIRONMENT, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True)  # fmt: skip
    assert shell.stdout is not None
    child = int(shell.stdout.readline())
    try:
        limit = time.monotonic() + 120
        while not (out / "checkpoint").exists() and time.monotonic() < limit:
            time.sleep(0.05)
        shell.kill()
        shell.wait()
        for name, flags in (("run", []), ("other", []), ("other", ["--fresh-on-mismatch"])):
            assert main(["run", str(tmp_path / f"{name}.yaml"), "--out", str(out), *flags]) == 2
            assert capsys.readouterr().err == (
                f"error: {out}/checkpoint: process {child} is writing it; wait until it has finished, "
                "or name another output\n"
            )
    finally:
        os.kill(child, signal.SIGTERM)
    limit = time.monotonic() + 60
    while (out / ".checkpoint.lock").exists() and time.monotonic() < limit:
        time.sleep(0.05)
    assert train(dataclasses.replace(config, steps=200_000), out, until=1) == 75
    assert main(["verify", str(out)]) == 0


def test_the_second_of_two_processes_of_a_run_is_refused_too(tiny: TrainConfig, tmp_path: Path) -> None:
    """Two processes find the folder taken: neither waits for the other, no traceback."""
    launch = runpy.run_path(str(HERE / "test_distributed.py"))["launch"]
    (tmp_path / "run.yaml").write_text(dump(tiny))
    with exclusive(tmp_path / "out/checkpoint"), pytest.raises(AssertionError) as caught:
        launch([["train", f"{tmp_path}/run.yaml", f"{tmp_path}/out", 0]], tmp_path)
    assert f"out/checkpoint: process {os.getpid()} is writing it" in str(caught.value)
    assert "another process of this run found wrong input" in str(caught.value)


def test_temporaries_of_the_dead_are_swept(tiny: TrainConfig, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert train(tiny, out, until=2) == 75
    for name in (".checkpoint.abcdefgh.tmp", ".log.jsonl.abcdefgh.tmp"):
        (out / name).mkdir() if "checkpoint" in name else (out / name).write_text("half")
    assert train(tiny, out) == 0
    assert sorted(path.name for path in out.iterdir()) == ["checkpoint", "log.jsonl"]
