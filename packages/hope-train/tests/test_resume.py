"""What may change between two starts of a run, what may not, and what is said."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hope_data.files import dump_sealed, load_sealed
from hope_model.errors import InputError
from hope_train import files, loop, resume, schedule, state
from hope_train.cli import main
from hope_train.config import DataConfig, OptimConfig, ScheduleConfig, TrainConfig, dump
from hope_train.run import train
from hope_train.values import strict

RESUMABLE = 75
FREE: dict[str, Any] = {
    "run": "other", "log": {"every": 3, "project": "elsewhere"}, "eval_every": 2, "eval_windows": 2,
    "checkpoint_every": 2, "milestone_every": 0, "milestones": 3, "parallel": "fsdp", "precision": "bf16",
    "tf32": False, "activation_checkpoint": True, "accumulate": 2, "sdpa": "math", "device": "auto",
}  # fmt: skip
BITS = (
    "precision fp32 -> bf16",
    "activation_checkpoint False -> True",
    "accumulate 1 -> 2",
    "sdpa auto -> math",
)
REFUSED: dict[str, Any] = {
    "seed": 1, "batch_size": 8, "length": 16, "model.dim": 64, "optim.lr": 1e-3, "optim.beta1": 0.8,
    "schedule.warmup": 0.2, "teach.warmup": 0.5, "memory_chunks": [8], "data.corpora": ["left"], "lengths": {0: 16},
}  # fmt: skip


def change(config: TrainConfig, values: dict[str, Any]) -> TrainConfig:
    """The run with other values, `{"optim.lr": 1}` or `{"optim": {"lr": 1}}`."""
    plain = dataclasses.asdict(config)
    for key, value in values.items():
        *outer, last = key.split(".")
        inner = plain
        for part in outer:
            inner = inner[part]
        inner[last] = inner[last] | value if isinstance(value, dict) else value
    return strict(TrainConfig, plain, "test")


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "checkpoint/model.safetensors")


def same(one: Path, two: Path) -> bool:
    a, b = weights(one), weights(two)
    return all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def half(tiny: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Puts a run that was stopped after three of six steps into a folder."""
    out = tmp_path_factory.mktemp("half") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        assert train(tiny, out, until=3) == RESUMABLE
    return lambda target: Path(shutil.copytree(out, target))


@pytest.mark.parametrize("fresh", [False, True])
def test_what_leaves_the_mathematics_is_resumed_and_said(
    fresh: bool,
    tiny: TrainConfig,
    half: Callable[[Path], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = half(tmp_path / "out")
    moved = {"data.shards": str(tmp_path / "shards"), "data.tokenizer": str(tmp_path / "tokenizer")}
    for key, folder in (("shards", tiny.data.shards), ("tokenizer", tiny.data.tokenizer)):
        shutil.copytree(folder, tmp_path / key)
    assert train(change(tiny, FREE | moved), out, fresh_on_mismatch=fresh) == 0
    said = capsys.readouterr().err
    assert f"data.shards {tiny.data.shards} -> {tmp_path / 'shards'}" in said
    [line] = [line for line in said.splitlines() if "resuming with" in line]
    expected = "other: resuming with run tiny -> other, "
    assert line.startswith(expected)
    for text in ("log.every 2 -> 3", "log.project hope-lab -> elsewhere", "eval_every 3 -> 2", "eval_windows 3 -> 2",
        "checkpoint_every 0 -> 2", "milestones 0 -> 3"):  # fmt: skip
        assert text in line
    [line] = [line for line in said.splitlines() if "not to the same bits" in line]
    for text in BITS:
        assert text in line
    meta = json.loads((out / "checkpoint/meta.json").read_text())
    assert (meta["run"], meta["step"], meta["precision"]) == ("other", 6, "bf16")
    assert train(change(tiny, FREE), tmp_path / "anew") == 0
    assert not same(out, tmp_path / "anew"), "half of it is of another precision"


@pytest.mark.parametrize("key", REFUSED)
def test_what_changes_the_mathematics_is_refused_with_both_values(
    key: str,
    tiny: TrainConfig,
    half: Callable[[Path], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = change(tiny, {key: REFUSED[key], "log.every": 1})
    out = half(tmp_path / "out")
    before = (out / "checkpoint/training.json").read_bytes()
    (tmp_path / "run.yaml").write_text(dump(config))
    assert main(["run", str(tmp_path / "run.yaml"), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    shown = {"lengths": "lengths.0 None -> 16", "optim.lr": "optim.lr 0.003 -> 0.001", "seed": "seed 0 -> 1",
        "data.corpora": "data.corpora [] -> ['left']"}.get(key, f"{key} ")  # fmt: skip
    assert f"belongs to another run: it differs in {shown}" in error
    assert "log.every" not in error
    assert "-> " in error
    assert (out / "checkpoint/training.json").read_bytes() == before


def test_afresh_only_for_another_run_and_without_its_milestones(
    tiny: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, kept = tmp_path / "out", change(tiny, {"checkpoint_every": 2, "milestone_every": 2})
    assert train(kept, out) == 0
    assert sorted(p.name for p in (out / "milestones").iterdir()) == [
        "step-00000002",
        "step-00000004",
        "step-00000006",
    ]
    other = change(tiny, {"seed": 1, "steps": 2})
    # Trackers come first: where one is refused the former run stays.
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "mlflow", None)
        with pytest.raises(InputError, match=r"log\.mlflow"):
            train(change(other, {"log.mlflow": "sqlite:///x.db"}), out, fresh_on_mismatch=True)
    assert train(kept, out) == 0
    assert train(other, out, fresh_on_mismatch=True) == 0
    assert (
        "starting afresh: the former run differs in seed 0 -> 1, steps 6 -> 2 (6 are done)"
        in capsys.readouterr().err
    )
    assert not (out / "milestones").exists()
    assert train(other, tmp_path / "direct") == 0
    assert same(out, tmp_path / "direct")


STILL = {
    "constant": ScheduleConfig("constant", warmup=0.0),
    "wsd": ScheduleConfig("wsd", warmup=0.0, decay=0.25),
}


@pytest.mark.parametrize("name", ["constant", "wsd", "cosine"])
@pytest.mark.parametrize("fresh", [False, True])
def test_more_steps_train_on(
    name: str, fresh: bool, tiny: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Six steps (of a plan of eight, where it ends in a decay), then twelve: bitwise those of twelve in one go."""
    plan = STILL.get(name, ScheduleConfig())
    first = dataclasses.replace(tiny, schedule=plan, steps=8 if name == "wsd" else 6, checkpoint_every=3)
    longer = dataclasses.replace(first, steps=12)
    assert train(first, tmp_path / "parts", until=6) == (RESUMABLE if name == "wsd" else 0)
    capsys.readouterr()
    assert train(longer, tmp_path / "parts", fresh_on_mismatch=fresh) == 0
    said = capsys.readouterr().err
    assert train(longer, tmp_path / "whole") == 0
    if name == "cosine" and fresh:  # what was done is not what twelve steps would have done
        assert "starting afresh: the former run differs in steps 6 -> 12" in said
    else:
        now = {"constant": 1, "wsd": 1, "cosine": round(schedule.factor(plan, 6, 12), 3)}[name]
        last = {"constant": 1, "wsd": 1, "cosine": round(schedule.factor(plan, 5, 6), 3)}[name]
        assert (
            f"tiny: steps {first.steps} -> 12: from step 6 on the schedule is that of 12 steps; "
            f"its factor was {last} and is now {now}\n" in said
        )
    assert same(tmp_path / "parts", tmp_path / "whole") == (name != "cosine" or fresh)
    numbers = json.loads((tmp_path / "parts/checkpoint/training.json").read_text())["progress"]
    assert (numbers["step"], numbers["metrics"]["steps"]) == (12, 12)


@pytest.mark.parametrize("fresh", [False, True])
def test_a_decay_branches_off_a_constant_rate(fresh: bool, tiny: TrainConfig, tmp_path: Path) -> None:
    """Four of forty steps serve a run of eight whose warm-up has as many steps and whose decay is still to come."""
    trunk = dataclasses.replace(tiny, schedule=ScheduleConfig("wsd", warmup=0.05, decay=0.5), steps=40)
    branch = dataclasses.replace(tiny, schedule=ScheduleConfig("wsd", warmup=0.25, decay=0.5), steps=8)
    assert train(trunk, tmp_path / "parts", until=4) == RESUMABLE
    assert train(branch, tmp_path / "parts", fresh_on_mismatch=fresh) == 0
    assert train(branch, tmp_path / "whole") == 0
    assert same(tmp_path / "parts", tmp_path / "whole")
    assert json.loads((tmp_path / "parts/checkpoint/training.json").read_text())["progress"]["seconds"] > 0


def test_a_plan_that_was_not_followed_is_another_run(tiny: TrainConfig, tmp_path: Path) -> None:
    trunk = dataclasses.replace(tiny, schedule=ScheduleConfig("wsd", warmup=0.05, decay=0.5), steps=40)
    assert train(trunk, tmp_path / "out", until=4) == RESUMABLE
    for other in (
        ScheduleConfig("wsd", warmup=0.5, decay=0.5),
        ScheduleConfig("wsd", warmup=0.25, decay=0.75),
    ):
        with pytest.raises(InputError, match=r"differs in .*schedule\.warmup"):
            train(dataclasses.replace(tiny, schedule=other, steps=8), tmp_path / "out")


def test_fewer_steps_than_done_are_refused_and_as_many_end_the_run(
    tiny: TrainConfig, half: Callable[[Path], Path], tmp_path: Path
) -> None:
    out = half(tmp_path / "out")
    with pytest.raises(InputError, match=r"differs in steps 6 -> 2 \(3 are done\)"):
        train(change(tiny, {"steps": 2}), out)
    before = weights(out)
    assert train(change(tiny, {"steps": 3}), out, report=tmp_path / "numbers.json") == 0
    assert all(torch.equal(before[key], value) for key, value in weights(out).items())
    assert json.loads((tmp_path / "numbers.json").read_text())["steps"] == 3


def test_a_finished_run_is_measured_again_where_its_validation_changed(
    tiny: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert train(tiny, out, report=tmp_path / "a.json") == 0
    assert train(change(tiny, {"log.every": 3}), out, report=tmp_path / "b.json") == 0
    assert "finished at step 6; nothing to do" in capsys.readouterr().err
    assert train(change(tiny, {"eval_windows": 2}), out, report=tmp_path / "c.json") == 0
    a, b, c = (json.loads((tmp_path / f"{name}.json").read_text()) for name in "abc")
    assert a == b
    assert (a["val_windows"], c["val_windows"]) == (6, 4)
    assert a["val_bpb"] != c["val_bpb"]


def test_tasks_are_measured_at_other_lengths(tmp_path: Path, tiny: TrainConfig) -> None:
    task = dataclasses.replace(
        tiny,
        data=DataConfig(task={"name": "parity"}, eval_lengths=[16]),
        length=16,
        eval_windows=2,
        eval_every=0,
    )
    assert train(task, tmp_path / "out", until=3) == RESUMABLE
    longer = change(task, {"data.eval_lengths": [16, 32]})
    assert train(longer, tmp_path / "out", report=tmp_path / "numbers.json") == 0
    assert "val_loss_32" in json.loads((tmp_path / "numbers.json").read_text())


def test_kernels_and_compilers_are_part_of_the_bits(
    tiny: TrainConfig, half: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = half(tmp_path / "out")
    before = json.loads((out / "checkpoint/training.json").read_text())["flags"]["kernels"]
    monkeypatch.setattr("hope_model.ops.native.build.identity", lambda: "C++ of another compiler")
    assert train(tiny, out, until=4) == RESUMABLE
    assert f"not to the same bits: kernels {before} -> C++ of another compiler\n" in capsys.readouterr().err
    saved = state.read(out / "checkpoint")
    assert saved is not None
    older = dataclasses.replace(saved, flags={})
    assert resume.bits(older, {"kernels": "torch"}, 2) == ["processes 1 -> 2"]


@pytest.mark.parametrize("end", [False, True])
def test_a_milestone_survives_a_death_between_saving_and_keeping(
    end: bool, tiny: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Death(BaseException):
        pass

    def die(*_: object) -> None:
        raise Death

    config = change(tiny, {"checkpoint_every": 3, "milestone_every": 6 if end else 3})
    keep = files.keep
    monkeypatch.setattr(files, "keep", die)
    with pytest.raises(Death):
        train(config, tmp_path / "out")
    assert not (tmp_path / "out/milestones").exists()
    monkeypatch.setattr(files, "keep", keep)
    assert train(config, tmp_path / "out") == 0
    kept = sorted(p.name for p in (tmp_path / "out/milestones").iterdir())
    assert kept == (["step-00000006"] if end else ["step-00000003", "step-00000006"])
    for name in kept:
        assert main(["verify", str(tmp_path / "out/milestones" / name)]) == 0


def test_a_lost_terminal_saves_and_nohup_goes_on(
    tiny: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = loop.forward_backward, [0]

    def hang_up(*arguments: Any, **keywords: Any) -> Any:
        calls[0] += 1
        if calls[0] == 3:
            os.kill(os.getpid(), signal.SIGHUP)
        return real(*arguments, **keywords)

    monkeypatch.setattr(loop, "forward_backward", hang_up)
    assert train(tiny, tmp_path / "out") == RESUMABLE
    assert json.loads((tmp_path / "out/checkpoint/training.json").read_text())["progress"]["step"] == 3
    calls[0] = 0
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert train(tiny, tmp_path / "nohup") == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


LOGS: dict[str, Callable[[list[str]], list[str]]] = {
    "changed": lambda lines: [lines[0].replace('"loss": ', '"loss": 1'), *lines[1:]],
    "cut": lambda lines: lines[:1],
    "empty": lambda lines: [],
    "doubled": lambda lines: [lines[0], *lines],
}


@pytest.mark.parametrize("how", LOGS)
@pytest.mark.parametrize("finished", [False, True])
def test_a_log_that_is_not_the_runs_is_noticed(
    how: str, finished: bool, tiny: TrainConfig, half: Callable[[Path], Path], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out, log = half(tmp_path / "out"), tmp_path / "out/log.jsonl"
    if finished:
        assert train(tiny, out) == 0
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(LOGS[how](lines)))
    with pytest.raises(
        InputError, match=r"log\.jsonl: its rows up to step \d are not those that the run wrote; put"
    ):
        train(tiny, out)
    assert main(["verify", str(out)]) == 2
    log.write_text("".join(lines) + '{"step": 99, "torn')  # beyond the checkpoint all is done again
    assert main(["verify", str(out / "checkpoint")]) == 0
    log.unlink()
    capsys.readouterr()
    assert train(tiny, out) == 0
    assert (
        f"log.jsonl: is not there; its rows begin after step {6 if finished else 3}"
        in capsys.readouterr().err
    )


def test_a_finished_runs_damaged_tensors_are_noticed(
    tiny: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert train(tiny, out) == 0
    for name in ("model.safetensors", "training-00000-of-00001.safetensors", "config.json"):
        file = out / "checkpoint" / name
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        for fresh in (False, True):  # damage is no other run: nothing is removed for it
            with pytest.raises(InputError, match=f"{name}: damaged"):
                train(tiny, out, fresh_on_mismatch=fresh)
        file.unlink()
        with pytest.raises(InputError, match=f"{name}: missing"):
            train(tiny, out)
        file.write_bytes(content)
    capsys.readouterr()
    assert train(tiny, out) == 0
    assert capsys.readouterr().err.endswith("nothing to do\n")


SIDECARS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "step": lambda values: values["progress"].update(step="3"),
    "negative": lambda values: values["progress"].update(step=-1),
    "progress": lambda values: values.update(progress=[1]),
    "no identity": lambda values: values.pop("identity"),
    "no model": lambda values: values["config"].pop("model"),
    "model": lambda values: values["config"].update(model=3),
    "more": lambda values: values.update(more=3),
    "processes": lambda values: values.update(processes=2),
    "no steps": lambda values: values["config"].pop("steps"),
    "position": lambda values: values.update(
        loader={"samples": "x", "fingerprint": values["loader"]["fingerprint"]}
    ),
    "hashes": lambda values: values.update(sha256={"a": 3}),
}


@pytest.mark.parametrize("how", [*SIDECARS, "nested", "list", "empty"])
def test_a_sidecar_that_no_run_wrote_is_one_line(
    how: str,
    tiny: TrainConfig,
    half: Callable[[Path], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = half(tmp_path / "out")
    sidecar = out / "checkpoint/training.json"
    if how in SIDECARS:
        values = load_sealed(sidecar, "")
        SIDECARS[how](values)
        sidecar.write_bytes(dump_sealed(values))
    else:
        sidecar.write_text({"nested": "[" * 100_000, "list": "[1]", "empty": ""}[how])
    (tmp_path / "run.yaml").write_text(dump(tiny))
    for command in (
        ["run", str(tmp_path / "run.yaml"), "--out", str(out)],
        ["verify", str(out / "checkpoint")],
    ):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "training" in error
    assert sidecar.exists()


def test_optimisers_of_another_kind_are_another_run(
    tiny: TrainConfig, half: Callable[[Path], Path], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"differs in optim\.name muon -> adamw"):
        train(dataclasses.replace(tiny, optim=OptimConfig(name="adamw")), half(tmp_path / "out"))
