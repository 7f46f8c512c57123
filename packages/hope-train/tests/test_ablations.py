"""The runner of studies: fair arms only, a learning rate for each, nothing done twice, interruptible anywhere."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import yaml
from suites import ROOT, SILENT, TINY, fake, project, suite

from hope_model import counting
from hope_model.blocks import EQUATIONS
from hope_model.errors import InputError
from hope_train import ablations, records, study
from hope_train.ablations import DIVERGED
from hope_train.cli import main
from hope_train.measure import asked_for, command, streamed
from hope_train.progress import ASSUMED
from hope_train.records import write_down


def test_the_best_rate_on_validation_is_the_one_that_counts(tmp_path: Path) -> None:
    first = fake(tmp_path, project(tmp_path, widen=0), {0.3: 0.7, 1.0: None, 3.0: 0.5})
    assert first.run()
    tuning = [f"tiny/delta/rate{rate}-seed0" for rate in ("0.3", "1", "3")]
    assert first.trained[:5] == [*tuning, *[f"tiny/delta/rate3-seed{seed}" for seed in (1, 2)]]
    assert len(first.trained) == 10  # the arm that cannot be run is left alone
    made = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("results/tiny/full/*.json"))]
    assert [(r["rate"], r["seed"]) for r in made] == [(0.3, 0), (1.0, 0), (3.0, 0), (3.0, 1), (3.0, 2)]
    assert made[2]["lr"] == pytest.approx(3e-2)


@pytest.mark.parametrize(
    "losses",
    [
        {0.3: 0.7, 1.0: 0.6, 3.0: 0.5, 10.0: 0.55},  # bracketed
        {0.3: 0.7, 1.0: 0.6, 3.0: 0.5, 10.0: 0.4, 30.0: None},
        {0.3: 0.5, 1.0: 0.6, 3.0: 0.7, 0.1: 0.4, 0.03: 0.3},  # twice, no more
        {0.3: 0.7, 1.0: 0.6, 3.0: 0.0005},  # solved
        {0.3: None, 1.0: None, 3.0: None, 0.1: 0.9, 0.03: None},  # all diverged
        {0.3: math.nan, 1.0: 0.6, 3.0: math.nan},
    ],
)
def test_a_rate_beyond_the_end_is_tried(tmp_path: Path, losses: dict[float, Any]) -> None:
    first = fake(tmp_path, project(tmp_path, arms={"delta": {"run": "gated_deltanet"}}, widen=2), losses)
    assert first.run()
    names = [f"rate{rate:g}-seed0" for rate in losses]
    assert first.trained[: len(names)] == [f"tiny/delta/{name}" for name in names]
    best = min((r for r in losses if losses[r] is not None), key=lambda r: (math.isnan(losses[r]), losses[r]))
    assert first.trained[len(names) :] == [f"tiny/delta/rate{best:g}-seed{seed}" for seed in (1, 2)]
    plan = json.loads((tmp_path / "results/plan.json").read_text())["tiny"]["arms"]["delta"]
    assert list(plan["units"])[::3] == names
    assert plan["chosen"] == best
    assert (first.left(first.chains[0]), first.total(first.chains[0])) == (0, len(names) + 2)


def test_rates_that_solve_a_task_are_told_apart_at_the_longest_length() -> None:
    solved = study.score({"val_loss": 1e-7, "val_loss_128": 0.5, "val_loss_64": 0.2})
    assert solved == (study.SOLVED, 0.5)
    assert study.score({"val_loss": 9e-4, "val_loss_64": 0.3, "val_loss_128": 0.4}) < solved
    assert study.score({"val_loss": 0.5, "val_loss_64": 0.1}) == (0.5, 0.5) > solved
    assert study.score({"val_loss": 1e-4}) == (study.SOLVED, 1e-4)
    assert study.score({"val_loss": 1e-7, "val_loss_64": math.nan}) == (study.SOLVED, math.inf)
    for none in ({}, {"val_loss": math.nan}, {"val_loss": math.inf}):
        assert study.score(none) == (math.inf, math.inf)


def test_what_is_done_is_not_done_again_until_its_definition_changes(tmp_path: Path) -> None:
    conf = project(tmp_path)
    losses = {0.3: 0.7, 1.0: 0.2, 3.0: 0.5}
    stopped = fake(tmp_path, conf, losses, most=4)
    assert not stopped.run()
    again = fake(tmp_path, conf, losses)
    assert [again.left(chain) for chain in again.chains[:2]] == [1, 5]
    assert again.seconds(again.chains[0]) == 3.0
    assert again.run()
    assert len(again.trained) == 6
    assert not set(stopped.trained) & set(again.trained)
    third = fake(tmp_path, conf, losses, most=0)
    assert third.run()
    assert not third.trained
    values = yaml.safe_load((conf / "study/tiny.yaml").read_text())
    values["arms"]["full"]["overrides"] = ["optim.clip=0.5"]
    (conf / "study/tiny.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    changed = fake(tmp_path, conf, losses)
    assert [changed.left(chain) for chain in changed.chains[:2]] == [0, 5]


def test_equal_runs_of_two_studies_are_trained_once(tmp_path: Path) -> None:
    conf = project(tmp_path)
    first = fake(tmp_path, conf, {0.3: 0.7, 1.0: 0.2, 3.0: 0.5})
    assert first.run()
    twin = TINY | {"arms": {"same": {"run": "transformer"}}}
    (conf / "study/twin.yaml").write_text(yaml.safe_dump(twin))
    chains = study.chains("twin", study.load(conf, [])["twin"], conf, [])
    second = fake(tmp_path, conf, first.losses)
    second.chains = chains
    assert second.run()
    assert not second.trained
    record = json.loads((tmp_path / "results/twin/same/rate1-seed2.json").read_text())
    assert (record["study"], record["arm"], record["seed"]) == ("twin", "same", 2)


def test_a_real_training_leaves_its_json_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf = project(tmp_path, arms={"delta": {"run": "gated_deltanet"}})
    real = suite(tmp_path, conf)
    assert real.seconds(real.chains[0]) == ASSUMED
    unit = real.chains[0].unit(1.0, 0)
    real.display = SILENT
    real._unit(unit)
    record = real.result(unit)
    assert record is not None
    assert [(m["name"], m["length"], m["n"]) for m in record["metrics"]] == [
        (name, length, 256) for name in ("task_accuracy", "task_exact") for length in (8, 16)
    ]
    assert (record["steps"], record["tokens"], record["failed"]) == (2, 32, "")
    assert record["flops"] > 0
    assert not list((tmp_path / "work").rglob("*.safetensors"))


def test_a_signal_to_the_whole_group_leaves_nothing_running_and_nothing_lost(tmp_path: Path) -> None:
    """As from `timeout`, or a scheduler: trainings are the runner's to stop, and go on from their checkpoints."""
    overrides = [*TINY["overrides"], "steps=4000", "checkpoint_every=0"]
    conf = project(
        tmp_path,
        arms={"delta": {"run": "gated_deltanet"}, "full": {"run": "transformer"}},
        overrides=overrides,
    )
    command = [sys.executable, "-m", "hope_train", "ablations", "--jobs", "2", "--conf", str(conf)]
    command += ["--params", str(ROOT / "params.yaml"), "--results", str(tmp_path / "results")]
    command += ["--work", str(tmp_path / "work")]
    runner = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (started := list(tmp_path.glob("work/tiny/*/*/log.jsonl"))) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(runner.pid, signal.SIGTERM)
    said = runner.communicate(timeout=90)[1]
    assert (runner.returncode, started) == (75, started), said
    assert "stopping: running trainings save; the same command goes on" in said
    waits = Event()
    waits.set()
    for lock in tmp_path.glob("work/locks/*"):
        with records.locked(lock, waits):  # raises where whoever trained is still there
            pass
    assert all((path.parent / "checkpoint/training.json").is_file() for path in started)


def test_a_signal_to_the_group_does_not_reach_what_trainings_are_forked_from(tmp_path: Path) -> None:
    code = """
import os, sys
from multiprocessing import forkserver
from pathlib import Path
from hope_train.warm import Warm
lock = os.open(sys.argv[1] + ".lock", os.O_CREAT | os.O_RDWR)
Warm([], {}).start(["hope-train", "--help"], Path(sys.argv[1]), lock).join()
print(os.getpgid(forkserver._forkserver._forkserver_pid) != os.getpgid(0))
"""
    command = [sys.executable, "-c", code, str(tmp_path / "said")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "True\n"


def test_what_another_runner_made_meanwhile_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = suite(tmp_path, project(tmp_path))
    unit = real.chains[0].unit(1.0, 0)
    theirs = {"schema": records.SCHEMA, "sha256": unit.sha256, "by": "another"}

    @contextmanager
    def waited(*_: Any) -> Iterator[int]:
        real.path(unit).parent.mkdir(parents=True)
        real.path(unit).write_text(json.dumps(theirs))
        yield 0

    monkeypatch.setattr(ablations, "locked", waited)
    real._unit(unit)
    assert real.result(unit) == theirs
    assert not (tmp_path / "work").exists()


def test_a_result_is_there_before_another_runner_gets_the_lock(tmp_path: Path) -> None:
    """And what waits for another's training can be stopped."""
    conf = project(tmp_path)
    first, second = (fake(tmp_path, conf, {1.0: 0.5}) for _ in range(2))
    unit = first.chains[0].unit(1.0, 0)
    train, entered, go = first._train, Event(), Event()

    def slow(unit: study.Unit, lock: int) -> dict[str, Any]:
        entered.set()
        assert go.wait(60)
        return train(unit, lock)

    for one in (first, second):
        one.display = SILENT
    first._train = slow  # type: ignore[method-assign]
    with ThreadPoolExecutor(2) as pool:
        making = pool.submit(first._unit, unit)
        assert entered.wait(10)
        waiting = pool.submit(second._unit, unit)
        third = fake(tmp_path, conf, {1.0: 0.5})
        third.stop.set()
        with (
            pytest.raises(records.StoppedError),
            records.locked(tmp_path / "work/locks" / unit.sha256[:16], third.stop),
        ):
            pytest.fail("the lock was another's")
        go.set()
        making.result(), waiting.result()
    assert (first.trained, second.trained) == ([unit.config.run], [])


def test_what_is_no_number_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text('{"val_loss": NaN}')
    assert records.ill(tmp_path) == "the last validation's loss is nan"
    (tmp_path / "train.json").write_text('{"val_loss": 0.5}')
    assert records.ill(tmp_path) == ""
    (tmp_path / "log.jsonl").write_text(
        '{"step": 1, "val_loss": 0.5}\n{"step": 2, "val_loss": NaN}\n{"step": 3}\n'
    )
    unit = suite(tmp_path, project(tmp_path)).chains[0].unit(1.0, 0)
    assert write_down(unit, tmp_path, [], "", "abc")["curve"] == [{"step": 1, "val_loss": 0.5}]
    (tmp_path / "other.json").write_text('{"schema": 1}')
    assert records.read(tmp_path / "other.json") is None


def test_a_plan_forgets_studies_that_are_gone(tmp_path: Path) -> None:
    made = suite(tmp_path, project(tmp_path))
    made.results.mkdir()
    for known, left in ([], ["gone", "tiny"]), (["tiny"], ["tiny"]):
        (made.results / "plan.json").write_text('{"gone": {"order": -1}}')
        made.known = known
        made.write_plan()
        assert list(json.loads((made.results / "plan.json").read_text())) == left
    (made.results / "plan.json").write_text("<<<<<<< HEAD")
    with pytest.raises(InputError, match=r"plan.json: .*remove the file"):
        made.write_plan()


def test_a_diverged_run_is_told_from_a_broken_one() -> None:
    assert DIVERGED.search("error: run 'x': loss is nan and gradient norm nan at step 3 (samples ...")
    assert not DIVERGED.search("error: data/shards: no such folder")


def test_unfair_comparisons_are_refused(tmp_path: Path) -> None:
    conf = project(tmp_path, tolerance=0.001)
    with pytest.raises(
        InputError, match=r"arm 'full' has [\d,]+ parameters, 'delta' [\d,]+: more than 0% apart"
    ):
        suite(tmp_path, conf)
    values = TINY | {"seeds": [0, 1]}
    (conf / "study/tiny.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(InputError, match="at least three 'rates' and three 'seeds'"):
        study.load(conf, [])


def test_every_study_of_the_repository_is_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every arm composes and is of its study's size, else `--plan` refuses."""
    studies = study.load(ROOT / "conf", [])
    orders = [one.order for one in studies.values()]
    assert orders == sorted(set(orders))
    for name, one in studies.items():
        assert len(one.arms) > 1, name
        assert len(one.seeds) >= 3
        assert len(one.rates) >= 3
    stages = yaml.safe_load((ROOT / "reports/dvc.yaml").read_text())["stages"]
    assert stages["ablation"]["matrix"]["study"] == list(studies)
    common = ["--conf", str(ROOT / "conf"), "--params", str(ROOT / "params.yaml"), "--results", str(tmp_path)]
    assert main(["ablations", "--plan", "--only", "nothing", *common]) == 2
    assert "--only nothing: no such study; choose among" in capsys.readouterr().err
    assert main(["ablations", "--plan", "--only", "parity", "order/tpyo", *common]) == 2
    assert "--only order/tpyo: no such arm; choose among first, second" in capsys.readouterr().err
    assert main(["ablations", "--plan", *common]) == 0
    rows = [name for name, one in studies.items() if not one.follow_up]
    assert "mqar" in rows
    assert list(json.loads((tmp_path / "plan.json").read_text())) == rows
    assert main(["ablations", "--plan", "--only", "longer", *common]) == 0
    assert list(json.loads((tmp_path / "plan.json").read_text())) == [*rows, "longer"]
    assert main(["ablations", "--plan", "--follow-ups", *common]) == 0
    assert list(json.loads((tmp_path / "plan.json").read_text())) == list(studies)


def test_arms_that_say_so_have_states_of_one_size() -> None:
    chains = study.chains(
        "mqar_state", study.load(ROOT / "conf", ["mqar_state"])["mqar_state"], ROOT / "conf", []
    )
    sizes = [counting.state_bytes(chain.config.model, 64) for chain in chains]
    assert max(sizes) / min(sizes) < 1.05


def test_what_two_studies_share_is_estimated_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both compare HOPE with a variant of it: twenty results, fifteen trainings of an assumed minute."""
    common = ["--conf", str(ROOT / "conf"), "--params", str(ROOT / "params.yaml"), "--results", str(tmp_path)]
    assert main(["ablations", "--plan", "--only", "order", "through_writes", *common]) == 0
    said = capsys.readouterr().out
    assert said.startswith("0 of 20 results there; the rest takes about 0.2 h, all of them 0.2 h")
    assert list(json.loads((tmp_path / "plan.json").read_text())["order"]["arms"]) == ["first", "second"]


def test_the_run_with_writes_is_the_one_that_counts() -> None:
    off, on = (
        {"task": f"perplexity+{mode}", "metrics": [{"value": n}]} for n, mode in enumerate(("off", "on"))
    )
    assert asked_for([off, on]) == [{"value": 1}]
    assert asked_for([{"task": "perplexity", "metrics": [{"value": 7}]}]) == [{"value": 7}]


def test_a_stream_brings_what_was_not_trained_on(tmp_path: Path) -> None:
    stream = {"domains": ["b", "c"], "tokens": 9}
    arms = {"delta": {"run": "gated_deltanet"}}
    text = ["data.corpora=[a]", "optim.lr=0.02"]
    conf = project(tmp_path, scale="ablation", overrides=text, arms=arms, stream=stream)
    [chain] = suite(tmp_path, conf).chains
    unit = chain.unit(0.5, 0)
    told = command(unit, Path("here"), Path("out.json"))
    for key, given in {"--corpora": "b,c", "--learn": "each", "--lr": "0.001", "--tokens": "9"}.items():
        assert told[told.index(key) + 1] == given
    loaded = study.load(conf, [])["tiny"]
    with pytest.raises(InputError, match=r"arm 'delta' is trained on 'b', which the stream brings as new"):
        study.chains("tiny", dataclasses.replace(loaded, overrides=[]), conf, ["b"])
    longer = dataclasses.replace(loaded, stream=dataclasses.replace(loaded.stream, tokens=10))
    assert study.chains("tiny", longer, conf, [])[0].unit(0.5, 0).sha256 != unit.sha256


def test_a_result_is_of_what_its_variant_computes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of memories are nothing to a variant that has none; new equations make results of before another's."""
    relu = ["model.memory.activation=relu"]
    arms = {"delta": {"run": "gated_deltanet"}, "delta_relu": {"run": "gated_deltanet", "overrides": relu}}
    arms |= {"titans": {"run": "titans"}, "titans_relu": {"run": "titans", "overrides": relu}}
    conf = project(tmp_path, arms=arms)

    def hashes() -> list[str]:
        return [chain.unit(1.0, 0).sha256 for chain in suite(tmp_path, conf).chains]

    delta, delta_relu, titans, titans_relu = hashes()
    assert delta == delta_relu
    assert len({delta, titans, titans_relu}) == 3
    monkeypatch.setitem(EQUATIONS, "memory", EQUATIONS["memory"] + 1)
    assert [old == new for old, new in zip((delta, titans), hashes()[::2], strict=True)] == [True, False]


def test_of_a_stream_cells_and_transfers_are_kept() -> None:
    row = {"name": "bits_per_byte", "n": 4, "value": 2.0, "stderr": None, "chance": None}
    groups = ("all", "cell=0>a", "stage=0", "domain=a")
    metrics = [row | {"group": g} for g in groups] + [row | {"name": "forgetting", "group": "all"}]
    found = streamed([{"task": "continual_stream_memorize+on", "metrics": metrics}], 512)
    assert [(m["name"], m["group"], m["length"]) for m in found] == [
        ("bits_per_byte", "memorize+on 0>a", 512),
        ("forgetting", "memorize+on", 512),
    ]
