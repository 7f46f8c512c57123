"""Seeds of a run side by side, killed and resumed; experiments as a table; sweeps that resume."""

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

import pytest
import yaml
from rich.console import Console
from suites import arms, project

from hope_eval.progress import Display
from hope_eval.tasks.held_out import USUAL
from hope_study import experiments, seeds, side_by_side
from hope_train import config as configuration


@pytest.mark.parametrize(
    ("number", "cores", "processes"),
    [(3, 2, 3), (3, 1, 1), (1, 8, 1), (4, 2, 2), (5, 2, 3), (6, 4, 6), (3, 16, 3), (8, 4, 4)],
)
def test_no_core_waits_for_the_last_seed(number: int, cores: int, processes: int) -> None:
    assert side_by_side.at_a_time(number, cores) == processes


PARAMS = "scale: tiny\nteach_scale: 0.1\nseeds: [0, 1]\nruns: [delta]\n"


def prepare(tmp_path: Path, steps: int) -> list[str]:
    """A run of parity with two seeds; the command that trains it."""
    [arm] = arms(project(tmp_path, arms={"delta": {"run": "gated_deltanet"}}))
    config = dataclasses.replace(arm.config, run="delta", steps=steps, checkpoint_every=20)
    for name, text in {
        "runs/delta/config.yaml": configuration.dump(config),
        "params.yaml": PARAMS,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return [
        sys.executable,
        "-c",
        "import sys; from hope_study.cli import main; sys.exit(main())",
        "train",
        "--run",
        "delta",
    ]


def weights(tmp_path: Path) -> dict[str, bytes]:
    home = tmp_path / "runs/delta/seeds"
    return {seed: (home / seed / "checkpoint/model.safetensors").read_bytes() for seed in ("0", "1")}


def test_seeds_that_were_killed_resume_to_the_same_bits(tmp_path: Path) -> None:
    command = prepare(tmp_path, 80)
    home = tmp_path / "runs/delta/seeds"
    (home / "7").mkdir(parents=True)
    environment = {**os.environ, "WANDB_MODE": "disabled"}
    first = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (home / "1/checkpoint/training.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    # What the dead one started goes on, or is killed as well; either way the same command finishes it.
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not (home / "7").exists()
    numbers = json.loads((tmp_path / "reports/metrics/train_delta.json").read_text())
    assert list(numbers) == ["delta"]
    killed = weights(tmp_path)
    assert killed["0"] != killed["1"]
    for seed in ("0", "1"):
        config = home / seed / "config.yaml"
        assert configuration.load(config).seed == int(seed)
        alone = [sys.executable, "-m", "hope_train", "run", str(config), "--out", str(tmp_path / seed)]
        undisturbed = {**environment, "OMP_NUM_THREADS": "1"}
        subprocess.run(alone, cwd=tmp_path, env=undisturbed, capture_output=True, check=True)
        assert (tmp_path / seed / "checkpoint/model.safetensors").read_bytes() == killed[seed]


def test_a_seed_that_fails_ends_the_others_and_is_one_line(tmp_path: Path) -> None:
    command = prepare(tmp_path, 100_000)
    config = configuration.load(tmp_path / "runs/delta/config.yaml")
    (tmp_path / "params.yaml").write_text(PARAMS.replace("[0, 1]", "[0]"))
    wild = dataclasses.replace(
        config, optim=dataclasses.replace(config.optim, lr=1e20, matrix_lr=1e20, clip=1e20)
    )
    (tmp_path / "runs/delta/config.yaml").write_text(configuration.dump(wild))
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    [error] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert error.startswith("error: delta, training 1 of 1: seed 0: run 'delta': loss is ")
    assert error.endswith("; runs/delta/hope-train-0.txt has the rest")


def test_an_old_log_says_nothing_of_a_new_configuration(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 20}\n{"step": 48}\n')
    assert seeds._steps(log, 96, 0.0)() == 0.5
    assert seeds._steps(log, 96, time.time() + 9)() == 0.0
    assert seeds._steps(tmp_path / "none", 96, 0.0)() == 0.0
    assert side_by_side.Task("0", [], seeds._steps(log, 40, 0.0)).share() == 1.0  # not 120 %


def test_an_evaluation_tells_how_far_it_is(tmp_path: Path) -> None:
    output = tmp_path / "hope-eval-0.txt"
    assert seeds._passed(output)() == 0.0
    output.write_text("loading: 0 tokens\n")
    assert seeds._passed(output)() == 0.0
    display = Display()
    display.passes = 5
    for name, tokens, done in (("perplexity", 4000, 4000), ("choice", 2000, 500)):
        display.begin(name, tokens)
        display._done = done
        output.write_text(f"{output.read_text()}{display._text(10.0)}\n")
    assert output.read_text().endswith("choice: 500 of about 2,000 tokens, 30 s left; 2 of 5\n")
    output.write_text(f"{output.read_text()}a warning\n")
    assert seeds._passed(output)() == (1 + 500 / 2000) / 5


def test_the_line_of_progress_has_the_time_of_everything(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock, shares = [100.0], [0.0, 0.0, 0.0]
    monkeypatch.setattr(side_by_side.time, "monotonic", lambda: clock[0])
    tasks = [
        side_by_side.Task(str(n), [], lambda n=n: shares[n], weight) for n, weight in enumerate((1, 1, 0.5))
    ]
    display = side_by_side.Display(
        "hope, evaluations 1 to 3 of 12", tasks, side_by_side.Rest(["titans"], 2.0, 100.0)
    )
    display.update()
    clock[0], shares[:] = 110.0, [0.25, 0.25, 0.0]
    display.update()
    clock[0] = 111.0
    display.update()  # too soon
    clock[0], shares[:] = 120.0, [0.5, 0.5, 0.0]
    display.update()
    clock[0], shares[:] = 140.0, [1.2, 1.0, 1.0]
    display.update()
    start, first, second, last = (line.split(": ")[1] for line in capsys.readouterr().err.splitlines())
    assert (start, first) == ("0 %, 0 s", "20 %, 10 s")  # how much of it was imports?
    assert (
        second == "40 %, 20 s, 30 s left; about 4 min with titans"
    )  # 20 % in 10 s; then twice 50 s and 100 s
    assert last == "100 %, 40 s, 0 s left; about 3 min with titans"
    assert seeds._numbered("training", 2, 4, 3) == "trainings 4 to 6 of 12"
    assert seeds._numbered("evaluation", 2, 4, 1) == "evaluation 2 of 4"


def test_work_that_follows_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(tmp_path, 80)
    config = configuration.load(tmp_path / "runs/delta/config.yaml")
    rests: list[side_by_side.Rest] = []
    monkeypatch.setattr(seeds, "side_by_side", lambda *given: rests.append(given[-1]) or 75)
    monkeypatch.setattr(seeds, "_test_documents", lambda *_: [])
    metrics = tmp_path / "reports/metrics/train_delta.json"
    metrics.parent.mkdir(parents=True)
    for name, speed in (("delta", 300.0), ("slow", 100.0)):
        (metrics.parent / f"train_{name}.json").write_text(json.dumps({name: {"tokens_per_s": speed}}))
    how = seeds.Evaluation(0, {"slow": ["writes"]})
    seeds.train("delta", ["0"], tmp_path / "runs", metrics, ["delta", "slow"], how)
    each = seeds.EVALUATION / (80 * config.batch_size * config.length)
    assert rests[0].names == ["evaluations", "slow"]
    assert rests[0].multiple == pytest.approx(each + 3 * (1 + each * 1.7))
    (tmp_path / "runs/delta/seeds/0/train.json").write_text('{"seconds": 20.0}')
    out = tmp_path / "reports/results/delta"
    out.mkdir(parents=True)
    (out / "0.json").write_text('{"seconds": 30.0}')
    seeds.train("delta", ["0"], tmp_path / "runs", metrics, ["delta", "slow"], how)
    assert rests.pop().multiple == pytest.approx(each + 3 * (1 + each * 1.7))
    (tmp_path / "runs/delta/seeds/0/train.json").write_text('{"seconds": 20.0}')
    assert seeds._evaluation_cost(["slow", "delta"], "0", tmp_path / "runs", out.parent, how) == 1.5
    seeds.evaluate("delta", ["0"], tmp_path / "runs", out, tmp_path, how, [], ["delta", "slow"])
    assert rests[1] == side_by_side.Rest(["slow"], pytest.approx(3 * 1.7), 60.0)


def test_an_evaluation_adapts_its_run_and_shows_test_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(tmp_path, 20)
    (tmp_path / "evaluate.yaml").write_text("limit: 30\nadapt: {delta: ['writes:scale=0.5', neural_cache]}\n")
    assert seeds.TASKS == USUAL
    how = seeds.evaluation(tmp_path / "evaluate.yaml")
    assert how == seeds.Evaluation(30, {"delta": ["writes:scale=0.5", "neural_cache"]})
    assert seeds.evaluation(tmp_path / "absent.yaml") == seeds.Evaluation()
    for text in ("limits: 3\n", "adapt: {delta: writes}\n", "limit: -1\n", "tasks: [choice]\n"):
        (tmp_path / "evaluate.yaml").write_text(text)
        with pytest.raises(seeds.InputError, match=r"evaluate\.yaml: "):
            seeds.evaluation(tmp_path / "evaluate.yaml")
    started: list[side_by_side.Task] = []
    monkeypatch.setattr(seeds, "side_by_side", lambda _title, tasks, *_: started.extend(tasks) or 0)
    monkeypatch.setattr(seeds, "_test_documents", lambda _data, corpora: [(name, "text") for name in corpora])
    out = tmp_path / "results"
    out.mkdir()
    (out / "7.json").touch()
    assert seeds.evaluate("delta", ["0", "1"], tmp_path / "runs", out, tmp_path / "data", how, ["code"]) == 0
    assert not (out / "7.json").exists()
    assert [task.seed for task in started] == ["0", "1", "surprise-code"]
    assert started[1].command[-5:] == [
        *("--limit", "30"),
        *("--adapt=writes:scale=0.5", "--adapt=neural_cache", "--adapt-tasks=perplexity"),
    ]
    assert "--tasks" not in started[1].command
    assert started[2].command[:2] == ["hope-eval", "surprise"]
    assert "--adapt" not in started[2].command  # the model has a memory of its own
    assert (tmp_path / "runs/delta/surprise/code.txt").read_text() == "text"


def state(
    name: str, revision: str, scale: float, bpb: float, experiments: list[Any] | None = None
) -> dict[str, Any]:
    metrics = {
        "reports/differences.json": {
            "data": {"hope": bpb, "hope-titans": f"{bpb - 2:+.3f} ± 0.020", "old": {"bpb": 2.0}}
        },
        "reports/old.json": {"data": {"bits_per_byte": 2.2}},
        "reports/studies/mini.metrics.json": {
            "data": {"mini": {"one": {"mean": 0.5, "stderr": 0.1, "n": 3}}}
        },
    }
    params = {"params.yaml": {"data": {"scale": "tiny", "teach_scale": scale}}}
    data = {"params": params, "metrics": metrics}
    return {
        "rev": revision,
        "name": name,
        "data": data,
        "experiments": [{"revs": [one]} for one in experiments or []],
    }


STATES = [
    state("", "workspace", 0.1, 2.1),
    state(
        "main",
        "c" * 40,
        0.1,
        2.1,
        [state("red-fox", "d" * 40, 0.15, 2.0), state("old-owl", "e" * 40, 0.2, 2.2)],
    ),
]


def test_the_table_has_what_differs_and_numbers_with_intervals() -> None:
    table = experiments.table(list(experiments._rows(STATES)))
    columns = {str(column.header): list(column.cells) for column in table.columns}
    assert columns == {
        "experiment": ["workspace", "main", "red-fox", "old-owl"],
        "teach_scale": ["0.1", "0.1", "0.15", "0.2"],
        "hope": ["2.100", "2.100", "2.000", "2.200"],
        "hope-titans": ["+0.100 ± 0.020", "+0.100 ± 0.020", "+0.000 ± 0.020", "+0.200 ± 0.020"],
    }
    whole = experiments.table(list(experiments._rows(STATES)), everything=True)
    assert list(whole.columns[-1].cells) == ["0.500 ± 0.100"] * 4


def test_a_narrow_table_hides_no_end_of_a_path(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        experiments.Row(name, "c", "c", {"init": f"runs/transformer/{name}"}, {})
        for name in ("before", "after")
    ]
    Console(width=30).print(experiments.table(rows))
    columns = [line.split("│") for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert "".join(c[2].strip() for c in columns) == "runs/transformer/beforeruns/transformer/after"


def test_a_sweep_runs_what_is_missing_and_puts_the_parameters_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = "# Facts.\nscale: tiny\nteach_scale: 0.1\n"
    (tmp_path / "params.yaml").write_text(before)
    calls: list[list[str]] = []

    def run(command: list[str], **_: Any) -> Any:
        if command[:3] == ["dvc", "exp", "show"]:
            return subprocess.CompletedProcess(command, 0, json.dumps(STATES), "")
        calls.append(command)
        if command[1] == "exp":
            (tmp_path / "params.yaml").write_text("changed")
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(experiments.subprocess, "run", run)
    assert experiments.sweep(["teach_scale=0.1,0.15,0.3"], tmp_path / "params.yaml") == 0
    assert calls == [["dvc", "exp", "run", "-Steach_scale=0.3"], ["dvc", "checkout", "-q", "--force"]]
    assert (tmp_path / "params.yaml").read_text() == before
    said = capsys.readouterr()
    assert said.err == (
        "1 of 3: teach_scale=0.1: there already\n2 of 3: teach_scale=0.15: there already\n3 of 3: teach_scale=0.3\n"
    )
    assert "red-fox" in said.out
    # Uncommitted changes count: what was run at another scale is not what is asked for, and what is asked for is found.
    calls.clear()
    (tmp_path / "params.yaml").write_text(before.replace("tiny", "smoke"))
    assert experiments.sweep(["teach_scale=0.15"], tmp_path / "params.yaml") == 0
    assert calls[0] == ["dvc", "exp", "run", "-Steach_scale=0.15"]
    assert "red-fox" not in capsys.readouterr().out
    changed = [experiments.Row("new", "f", "c", {"scale": "smoke", "teach_scale": 0.15}, {"hope": "2.0"})]
    found = experiments._named({"teach_scale": 0.15}, changed, {"scale": "smoke", "teach_scale": 0.1})
    assert found is changed[0]
    with pytest.raises(experiments.InputError, match="teach=1: it must be KEY=VALUE,VALUE"):
        experiments.sweep(["teach=1"], tmp_path / "params.yaml")


def test_the_defaults_are_those_of_the_pipeline() -> None:
    root = Path(__file__).parents[2]
    facts = [yaml.safe_load((root / name).read_text()) for name in ("params.yaml", "conf/defaults.yaml")]
    assert facts[0] == facts[1]
