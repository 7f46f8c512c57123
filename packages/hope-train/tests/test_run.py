"""A run that is stopped, killed, repeated, changed or spoilt."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hope_data.cli import main as hope_data
from hope_data.files import dump_sealed, load_sealed
from hope_model import counting
from hope_model.errors import InputError
from hope_train import config as configuration
from hope_train import loop
from hope_train.cli import main
from hope_train.config import TrainConfig
from hope_train.run import train
from hope_train.tracking import Jsonl

RESUMABLE = 75
TENSORS = "training-00000-of-00001.safetensors"


def change(config: TrainConfig, **values: Any) -> TrainConfig:
    """`optim__lr=1` changes config.optim.lr."""
    for key, value in values.items():
        *outer, last = key.split("__")
        inner = getattr(config, outer[0]) if outer else config
        inner = dataclasses.replace(inner, **{last: value})
        config = dataclasses.replace(config, **{outer[0]: inner}) if outer else inner
    return config


def rows(out: Path) -> list[dict[str, float]]:
    """The log, without what depends on the clock."""
    lines = (out / "log.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in ("tokens_per_s", "mfu")} for line in lines]


def write(config: TrainConfig, path: Path) -> Path:
    path.write_text(configuration.dump(config))
    return path


class Interruption(BaseException):
    """Like a power cut: nothing in the loop may catch it."""


def interrupt(monkeypatch: pytest.MonkeyPatch, how: str, at: int) -> None:
    """Make step `at` the last one: by a signal to this process, or by dying in the middle of it."""
    real, calls = loop.forward_backward, [0]

    def wrapped(*arguments: Any, **keywords: Any) -> Any:
        calls[0] += 1
        if calls[0] == at and how == "kill":
            raise Interruption
        if calls[0] == at:
            os.kill(os.getpid(), signal.Signals[how])
        return real(*arguments, **keywords)

    monkeypatch.setattr(loop, "forward_backward", wrapped)


@pytest.mark.parametrize(
    ("how", "at", "variant", "optimizer"),
    [
        ("SIGTERM", 3, "hope", "muon"),
        ("SIGINT", 5, "transformer", "adamw"),
        ("kill", 5, "hope", "muon"),
        ("kill", 3, "titans", "muon"),
        ("until", 4, "hope", "m3"),
    ],
)
def test_going_on_equals_never_having_stopped(
    tiny: TrainConfig, tmp_path: Path, how: str, at: int, variant: str, optimizer: str
) -> None:
    config = change(tiny, model__variant=variant, optim__name=optimizer, checkpoint_every=3, precision="bf16")
    assert train(config, tmp_path / "whole") == 0
    with pytest.MonkeyPatch.context() as patch:
        if how == "until":
            assert train(config, tmp_path / "parts", until=at) == RESUMABLE
        else:
            interrupt(patch, how, at)
        if how == "kill":
            with pytest.raises(Interruption):
                train(config, tmp_path / "parts")
        elif how != "until":
            assert train(config, tmp_path / "parts") == RESUMABLE
    assert train(config, tmp_path / "parts") == 0

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for name in ("model.safetensors", TENSORS):
        assert (whole / "checkpoint" / name).read_bytes() == (parts / "checkpoint" / name).read_bytes(), name
    assert [row["step"] for row in rows(parts)] == [2, 3, 4, 6]
    assert rows(parts) == rows(whole)
    assert rows(whole)[-1]["loss"] < rows(whole)[0]["loss"]
    sidecars = [json.loads((out / "checkpoint/training.json").read_text()) for out in (whole, parts)]
    assert sidecars[0]["loader"] == sidecars[1]["loader"]


def test_twice_is_bitwise_the_same_and_numbers_are_reported(tiny: TrainConfig, tmp_path: Path) -> None:
    for name in "ab":
        assert train(tiny, tmp_path / name, report=tmp_path / f"{name}.json") == 0
    a, b = (load_file(tmp_path / name / "checkpoint/model.safetensors") for name in "ab")
    assert all(torch.equal(a[key], b[key]) for key in a)
    numbers = json.loads((tmp_path / "a.json").read_text())
    assert (numbers["steps"], numbers["tokens"], numbers["seed"]) == (6, 6 * 4 * 32, 0)
    assert numbers["val_windows"] == 6
    assert numbers["val_bpb"] == rows(tmp_path / "a")[-1]["val_bpb"]
    assert numbers["parameters"] == sum(t.numel() for t in a.values())
    assert {"val_bpb_left", "val_bpb_right", "val_bpb_se", "val_loss", "seconds"} <= numbers.keys()
    assert numbers["step_seconds"] > 0
    assert numbers["flops_per_token"] == counting.training_flops_per_token(tiny.model, 32)
    meta = json.loads((tmp_path / "a/checkpoint/meta.json").read_text())
    assert (meta["run"], meta["step"], meta["length"], meta["corpora"]) == ("tiny", 6, 32, ["left", "right"])
    assert meta["config_sha256"] == configuration.fingerprint(tiny)


def test_steps_cost_what_they_compute_not_what_they_wait(
    tiny: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As beside another process; a continued run goes on counting."""
    update, found = loop.update, list[float]()

    def late(*arguments: Any, **named: Any) -> Any:
        time.sleep(0.2)
        return update(*arguments, **named)

    monkeypatch.setattr(loop, "update", late)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for until in (3, 6):
        train(tiny, tmp_path, until=until)
        progress = json.loads((tmp_path / "checkpoint/training.json").read_text())["progress"]
        found.append(progress["step_seconds"])
    torch.set_num_threads(threads)
    assert 0 < found[0] < found[1] < progress["seconds"] - 6 * 0.2


def test_a_finished_run_says_so_and_reports_again(
    tiny: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write(tiny, tmp_path / "tiny.yaml")
    arguments = ["run", str(config), "--out", str(tmp_path / "out"), "--json"]
    assert main([*arguments, str(tmp_path / "a.json")]) == 0
    weights = (tmp_path / "out/checkpoint/model.safetensors").stat().st_mtime_ns
    capsys.readouterr()
    assert main([*arguments, str(tmp_path / "b.json")]) == 0
    assert capsys.readouterr().err == "tiny: finished at step 6; nothing to do\n"
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert (tmp_path / "out/checkpoint/model.safetensors").stat().st_mtime_ns == weights


def test_another_run_in_the_folder_is_refused_or_replaced(
    tiny: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert train(tiny, out) == 0
    other = change(tiny, optim__lr=0.001, steps=2)
    with pytest.raises(
        InputError,
        match=r"differs in optim\.lr 0\.003 -> 0\.001, steps 6 -> 2 \(6 are done\); choose another",
    ):
        train(other, out)
    assert rows(out)[-1]["step"] == 6
    assert train(other, out, fresh_on_mismatch=True) == 0
    assert [row["step"] for row in rows(out)] == [2]
    assert "starting afresh: the former run differs in optim.lr" in capsys.readouterr().err
    assert train(other, tmp_path / "direct") == 0
    one, two = (load_file(o / "checkpoint/model.safetensors") for o in (out, tmp_path / "direct"))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_other_tokens_are_another_run(tiny: TrainConfig, tmp_path: Path) -> None:
    assert train(tiny, tmp_path / "out") == 0
    assert configuration.fingerprint(tiny) != configuration.fingerprint(change(tiny, seed=1))
    sidecar = tmp_path / "out/checkpoint/training.json"
    for key, name in (("data", "the shards"), ("tokenizer", "the tokenizer")):
        values = load_sealed(sidecar, "")
        values["identity"][key] = "0" * 64
        sidecar.write_bytes(dump_sealed(values))
        with pytest.raises(InputError, match=f"differs in {name}"):
            train(tiny, tmp_path / "out")


@pytest.mark.parametrize("name", ["model.safetensors", "meta.json", TENSORS, "training.json"])
def test_a_damaged_checkpoint_is_named(tiny: TrainConfig, tmp_path: Path, name: str) -> None:
    config, out = change(tiny, checkpoint_every=1), tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, "SIGTERM", 1)
        assert train(config, out) == RESUMABLE
    file = out / "checkpoint" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)
    with pytest.raises(InputError, match=name):
        train(config, out)


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_checkpoint(
    tiny: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wild = change(tiny, optim__lr=1e30, optim__matrix_lr=1e30, schedule__warmup=0.0, checkpoint_every=1)
    arguments = ["run", str(write(wild, tmp_path / "wild.yaml")), "--out", str(tmp_path / "out")]
    assert main(arguments) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: run 'tiny': loss is nan")
    assert "at step 2 (samples 4 to 7 of the stream, from " in error
    assert "checkpoint keeps step 1" in error
    weights = load_file(tmp_path / "out/checkpoint/model.safetensors")
    assert all(bool(torch.isfinite(w).all()) for w in weights.values())

    config = write(change(wild, checkpoint_every=0, seed=1), tmp_path / "wilder.yaml")
    assert main(["run", str(config), "--out", str(tmp_path / "out"), "--fresh-on-mismatch"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.endswith("no checkpoint had been written"), "the former run's checkpoint is not this one's"


def test_input_that_does_not_fit_is_one_line(
    tiny: TrainConfig, corpora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "tokenizer"
    step = ["tokenizer", str(corpora / "clean"), "--out", str(other), "--vocab-size", "310"]
    assert hope_data([*step, "--threads", "1"]) == 0
    cases = {
        "shards were made with tokenizer": change(tiny, data__tokenizer=str(other)),
        "320 tokens, but model.vocab_size is 300": change(tiny, model__vocab_size=300),
        "no shards of corpus nowhere": change(tiny, data__corpora=["left", "nowhere"]),
        "data.weights name ['left'], but data.corpora ['right']": change(
            tiny, data__weights={"left": 1.0}, data__corpora=["right"]
        ),
        "device 'cuda:9'": change(tiny, device="cuda:9"),
    }
    for expected, config in cases.items():
        capsys.readouterr()
        assert main(["run", str(write(config, tmp_path / "c.yaml")), "--out", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1, error
        assert error.startswith("error: ")
        assert expected in error
    assert not (tmp_path / "out").exists()
    (tmp_path / "c.yaml").write_text("run: a\nstepz: 3\n")
    assert main(["run", str(tmp_path / "c.yaml")]) == 2
    assert capsys.readouterr().err.endswith(
        "c.yaml: unknown key 'stepz'; remove it or correct its spelling\n"
    )
    assert main(["run", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml: No such file" in capsys.readouterr().err


def test_corpora_choose_and_weights_mix(tiny: TrainConfig, tmp_path: Path) -> None:
    from hope_train.data import open_data

    assert list(open_data(change(tiny, data__corpora=["right"])).windows) == ["right"]
    mixed = open_data(change(tiny, data__weights={"left": 3.0, "right": 1.0})).loader
    drawn = np.concatenate([next(mixed).corpus for _ in range(100)])
    assert np.bincount(drawn).tolist() == [300, 100]


def test_a_log_of_something_else_is_named(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 1}\nhello\n')
    with pytest.raises(InputError, match=r"log\.jsonl: a line of it is no row"):
        Jsonl(tmp_path / "log.jsonl", step=1)


def test_a_swap_that_died_half_way_is_mended(tiny: TrainConfig, tmp_path: Path) -> None:
    assert train(tiny, tmp_path / "out", until=3) == RESUMABLE
    (tmp_path / "out/checkpoint").rename(tmp_path / "out/.checkpoint.old")
    assert train(tiny, tmp_path / "out", until=4) == RESUMABLE
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["checkpoint", "log.jsonl"]
    assert [row["step"] for row in rows(tmp_path / "out")] == [2, 3, 4]


def test_the_console_script_is_stopped_by_a_signal_and_keeps_trackers_in_its_folder(
    tiny: TrainConfig, tmp_path: Path
) -> None:
    config = write(change(tiny, steps=100_000, eval_every=0), tmp_path / "long.yaml")
    command = [sys.executable, "-m", "hope_train", "run", str(config), "--out", str(tmp_path / "out")]
    environment = os.environ | {"WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, env=environment, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    log = tmp_path / "out/log.jsonl"
    limit = time.monotonic() + 180
    while not (log.exists() and log.stat().st_size) and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.05)
    process.terminate()
    output, error = process.communicate(timeout=60)
    assert process.returncode == RESUMABLE, error
    assert output == ""
    assert "SIGTERM: saving after this step" in error
    saved = json.loads((tmp_path / "out/checkpoint/training.json").read_text())
    assert saved["progress"]["step"] >= rows(tmp_path / "out")[-1]["step"] >= 2
    assert list((tmp_path / "out/wandb").glob("offline-run-*/run-*.wandb"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["long.yaml", "out"]
