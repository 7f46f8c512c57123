"""The runner of studies: fair arms only, a learning rate for each, nothing done twice, interruptible anywhere."""

from __future__ import annotations

import dataclasses
import math
import os
import re
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
from suites import ROOT, SILENT, TINY, arms, fake, ledger, project

from hope_eval.results import Items, Metric, TaskResult
from hope_model import counting
from hope_model.blocks import EQUATIONS
from hope_model.errors import InputError
from hope_study import choose_rate, runner, study
from hope_study.cli import main
from hope_study.ledger import ASSUMED, Ledger
from hope_study.measure import commands, streamed, with_writes
from hope_study.records import Measured, Record, invalid_reason, record_of
from hope_study.runner import DIVERGED, Runner
from hope_study.store import Store


def test_the_best_rate_on_validation_is_the_one_that_counts(tmp_path: Path) -> None:
    first = fake(tmp_path, project(tmp_path, widen=0), {0.3: 0.7, 1.0: None, 3.0: 0.5})
    assert first.run()
    tuning = [f"tiny/delta/rate{rate}-seed0" for rate in ("0.3", "1", "3")]
    assert first.trained[:5] == [*tuning, *[f"tiny/delta/rate3-seed{seed}" for seed in (1, 2)]]
    assert len(first.trained) == 10  # the arm that cannot be run is left alone
    kept = [record for record in Store(tmp_path / "results").records("tiny").values() if record.arm == "full"]
    assert [(r.rate, r.seed) for r in kept] == [(0.3, 0), (1.0, 0), (3.0, 0), (3.0, 1), (3.0, 2)]
    assert kept[2].lr == pytest.approx(3e-2)


@pytest.mark.parametrize(
    "losses",
    [
        {0.3: 0.7, 1.0: 0.6, 3.0: 0.5, 10.0: 0.55},  # bracketed
        {0.3: 0.7, 1.0: 0.6, 3.0: 0.5, 10.0: 0.4, 30.0: None},
        {0.3: 0.5, 1.0: 0.6, 3.0: 0.7, 0.1: 0.4, 0.03: 0.3},  # twice, no more
        {0.3: 0.7, 1.0: 0.6, 3.0: 0.0005},  # solved
        {0.3: None, 1.0: None, 3.0: None, 0.1: 0.9, 0.03: None},  # all diverged
        {0.3: 1e300, 1.0: 0.6, 3.0: 1e300},
    ],
)
def test_a_grid_is_extended_at_its_edge(tmp_path: Path, losses: dict[float, Any]) -> None:
    first = fake(tmp_path, project(tmp_path, arms={"delta": {"run": "gated_deltanet"}}, widen=2), losses)
    assert first.run()
    names = [f"rate{rate:g}-seed0" for rate in losses]
    assert first.trained[: len(names)] == [f"tiny/delta/{name}" for name in names]
    best = min((rate for rate, loss in losses.items() if loss is not None), key=lambda rate: losses[rate])
    assert first.trained[len(names) :] == [f"tiny/delta/rate{best:g}-seed{seed}" for seed in (1, 2)]
    [arm] = first.ledger.arms
    assert [one.name for one in first.ledger.tuning(arm)] == names
    assert first.ledger.chosen(arm) == best
    assert (first.ledger.left(arm), first.ledger.total(arm)) == (0, len(names) + 2)


def test_rates_that_solve_a_task_are_arguments_apart_at_the_longest_length() -> None:
    solved = choose_rate.score({"val_loss": 1e-7, "val_loss_128": 0.5, "val_loss_64": 0.2})
    assert solved == (choose_rate.SOLVED, 0.5)
    assert choose_rate.score({"val_loss": 9e-4, "val_loss_64": 0.3, "val_loss_128": 0.4}) < solved
    assert choose_rate.score({"val_loss": 0.5, "val_loss_64": 0.1}) == (0.5, 0.5) > solved
    assert choose_rate.score({"val_loss": 1e-4}) == (choose_rate.SOLVED, 1e-4)
    assert choose_rate.score({"val_loss": 1e-7, "val_loss_64": math.nan}) == (choose_rate.SOLVED, math.inf)
    for none in ({}, {"val_loss": math.nan}, {"val_loss": math.inf}):
        assert choose_rate.score(none) == (math.inf, math.inf)


def test_what_is_done_is_not_done_again_until_its_definition_changes(tmp_path: Path) -> None:
    conf = project(tmp_path)
    losses = {0.3: 0.7, 1.0: 0.2, 3.0: 0.5}
    stopped = fake(tmp_path, conf, losses, most=4)
    assert not stopped.run()
    again = fake(tmp_path, conf, losses)
    assert [again.ledger.left(arm) for arm in again.ledger.arms[:2]] == [1, 5]
    assert again.ledger.seconds(again.ledger.arms[0]) == 3.0
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
    assert [changed.ledger.left(arm) for arm in changed.ledger.arms[:2]] == [0, 5]


def test_equal_runs_of_two_studies_are_trained_once(tmp_path: Path) -> None:
    conf = project(tmp_path)
    first = fake(tmp_path, conf, {0.3: 0.7, 1.0: 0.2, 3.0: 0.5})
    assert first.run()
    twin = TINY | {"arms": {"same": {"run": "transformer"}}}
    (conf / "study/twin.yaml").write_text(yaml.safe_dump(twin))
    second = Runner(Ledger(arms(conf, "twin"), first.ledger.store), tmp_path / "work")
    assert second.run()  # it would really train
    record = Store(tmp_path / "results").records("twin")["same", "rate1-seed2"]
    assert (record.study, record.arm, record.seed, record.lr) == ("twin", "same", 2, 0.01)
    assert not (tmp_path / "work/twin").exists()


def test_records_of_another_folder_tell_only_how_long_trainings_take(tmp_path: Path) -> None:
    first = fake(tmp_path, project(tmp_path), {0.3: 0.7, 1.0: 0.2, 3.0: 0.5})
    assert first.run()
    arm = first.ledger.arms[0]
    fresh = Ledger(first.ledger.arms, Store(tmp_path / "fresh"), timed=first.ledger.store.all())
    assert fresh.seconds(arm) == first.ledger.seconds(arm) != ASSUMED
    assert (fresh.measured(), fresh.left(arm), fresh.total(arm)) == (2, 5, 5)


# Hours of trainings; every other study has all its records.
UNFINISHED = {"worth_rates", "worth_03m", "worth_1m", "worth_3m", "worth_7m", "worth_larger", "worth_novels"}
UNFINISHED |= {"worth_flops", "worth_time", "worth_domains", "worth_classes", "signs_paper"}


def test_a_real_training_leaves_its_record_and_nothing_else(tmp_path: Path) -> None:
    real = Runner(ledger(tmp_path, project(tmp_path)), tmp_path / "work")
    arm = real.arms[0]
    assert real.ledger.seconds(arm) == ASSUMED
    training = arm.training(1.0, 0)
    real.display = SILENT
    real._do(training)
    record = real.ledger.result(training)
    assert record is not None
    assert [(m.name, m.length, m.n) for m in record.metrics] == [
        (name, length, 256) for name in ("task_accuracy", "task_exact") for length in (8, 16)
    ]
    assert (record.steps, record.tokens, record.failed) == (2, 32, "")
    assert record.flops > 0
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
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    started: list[Path] = []
    while not started and time.monotonic() < deadline:
        time.sleep(0.1)
        # One whose first step is done: before that there is nothing to save.
        started = [path for path in tmp_path.glob("work/tiny/*/*/log.jsonl") if path.stat().st_size]
    os.killpg(process.pid, signal.SIGTERM)
    said = process.communicate(timeout=90)[1]
    assert (process.returncode, started) == (75, started), said
    assert "stopping: running trainings save; the same command resumes" in said
    waits = Event()
    waits.set()
    for lock in tmp_path.glob("work/locks/*"):
        with runner.locked(lock, waits):  # raises where whoever trained is still there
            pass
    assert all((path.parent / "checkpoint/training.json").is_file() for path in started)


def test_a_signal_to_the_group_does_not_reach_what_trainings_are_forked_from(tmp_path: Path) -> None:
    code = """
import os, sys
from multiprocessing import forkserver
from pathlib import Path
from hope_study.worker import Workers
lock = os.open(sys.argv[1] + ".lock", os.O_CREAT | os.O_RDWR)
Workers({}, ["hope_study.detached"]).start(["hope-train", "--help"], Path(sys.argv[1]), lock).join()
print(os.getpgid(forkserver._forkserver._forkserver_pid) != os.getpgid(0))
"""
    command = [sys.executable, "-c", code, str(tmp_path / "said")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "True\n"


def test_what_another_runner_finished_meanwhile_is_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf = project(tmp_path)
    first, second = (fake(tmp_path, conf, {1.0: 0.5}) for _ in range(2))
    for one in (first, second):
        one.display = SILENT
    training = first.arms[0].training(1.0, 0)

    @contextmanager
    def waited(*_: Any) -> Iterator[int]:
        with monkeypatch.context() as patch:
            patch.setattr(runner, "locked", locked)
            first._do(training)
        yield 0

    locked = runner.locked
    monkeypatch.setattr(runner, "locked", waited)
    second._do(second.arms[0].training(1.0, 0))
    assert (first.trained, second.trained) == ([training.config.run], [])


def test_a_record_is_there_before_another_runner_gets_the_lock(tmp_path: Path) -> None:
    """And what waits for another's training can be stopped."""
    conf = project(tmp_path)
    first, second = (fake(tmp_path, conf, {1.0: 0.5}) for _ in range(2))
    training = first.arms[0].training(1.0, 0)
    train, entered, go = first._train, Event(), Event()

    def slow(training: study.Training, lock: int) -> Any:
        entered.set()
        assert go.wait(60)
        return train(training, lock)

    for one in (first, second):
        one.display = SILENT
    first._train = slow
    with ThreadPoolExecutor(2) as pool:
        making = pool.submit(first._do, training)
        assert entered.wait(10)
        waiting = pool.submit(second._do, training)
        stopped = Event()
        stopped.set()
        with (
            pytest.raises(runner.StoppedError),
            runner.locked(tmp_path / "work/locks" / training.sha256[:16], stopped),
        ):
            pytest.fail("the lock was another's")
        go.set()
        making.result(), waiting.result()
    assert (first.trained, second.trained) == ([training.config.run], [])


def test_what_is_no_number_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text('{"val_loss": NaN}')
    assert invalid_reason(tmp_path) == "the last validation's loss is nan"
    (tmp_path / "train.json").write_text('{"val_loss": 0.5, "val_loss_64": Infinity}')
    assert invalid_reason(tmp_path) == ""
    (tmp_path / "log.jsonl").write_text(
        '{"step": 1, "val_loss": 0.5}\n{"step": 2, "val_loss": NaN}\n{"step": 3}\n'
    )
    training = arms(project(tmp_path))[0].training(1.0, 0)
    record = record_of(training, tmp_path, Measured(), "", "abc", 1.0)
    assert record.curve == [{"step": 1, "val_loss": 0.5}]
    assert choose_rate.score(record.validation) == (0.5, 0.5)
    store = Store(tmp_path / "results")
    store.add(record)
    assert list(Store(store.folder).all()) == [record]


def test_a_diverged_run_is_arguments_from_a_broken_one() -> None:
    assert DIVERGED.search("error: run 'x': loss is nan and gradient norm nan at step 3 (samples ...")
    assert not DIVERGED.search("error: data/shards: no such folder")


def test_unfair_comparisons_are_refused(tmp_path: Path) -> None:
    conf = project(tmp_path, tolerance=0.001)
    with pytest.raises(
        InputError, match=r"arm 'full' has [\d,]+ parameters, 'delta' [\d,]+: more than 0% apart"
    ):
        arms(conf)
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
        assert len(one.rates) >= 3 or one.rates_of
    assert set(yaml.safe_load((ROOT / "params.yaml").read_text())["studies"]) <= set(studies)
    common = ["--conf", str(ROOT / "conf"), "--params", str(ROOT / "params.yaml")]
    common += ["--results", str(ROOT / "reports/studies")]
    assert main(["run", "--plan", "--only", "nothing", *common]) == 2
    assert "--only nothing: no such study; choose among" in capsys.readouterr().err
    assert main(["run", "--plan", "--only", "parity", "order/tpyo", *common]) == 2
    assert "--only order/tpyo: no such arm; choose among first, second" in capsys.readouterr().err
    whole = sorted(studies.keys() - UNFINISHED)
    assert main(["run", "--plan", "--only", *whole, *common]) == 0
    done, total = map(int, re.match(r"(\d+) of (\d+) results exist", capsys.readouterr().out).groups())  # type: ignore[union-attr]
    assert done == total == sum(map(len, map(Store(ROOT / "reports/studies").records, whole)))


def test_a_record_that_is_added_leaves_the_others_lines_alone(tmp_path: Path) -> None:
    """Those of before wrote whole numbers where records now have fractions."""
    lines = (ROOT / "reports/studies/parity.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "parity.jsonl").write_text("".join(lines[:7] + lines[8:]))
    store = Store(tmp_path)
    store.add(Record.from_line(lines[7].strip(), "here"))
    after = (tmp_path / "parity.jsonl").read_text().splitlines(keepends=True)
    assert len(after) == len(lines) == 57
    assert after[:7] + after[8:] == lines[:7] + lines[8:]
    assert '"step": 200.0' in after[7]
    assert '"step": 200,' in lines[7]


def test_arms_that_say_so_have_states_of_one_size() -> None:
    sizes = [counting.state_bytes(arm.config.model, 64) for arm in arms(ROOT / "conf", "mqar_state")]
    assert max(sizes) / min(sizes) < 1.05


def test_what_two_studies_share_is_estimated_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both compare HOPE with a variant of it: twenty results, fifteen trainings of an assumed minute."""
    common = ["--conf", str(ROOT / "conf"), "--params", str(ROOT / "params.yaml"), "--results", str(tmp_path)]
    assert main(["run", "--plan", "--only", "order", "through_writes", *common]) == 0
    expected = "0 of 20 results exist; the rest takes about 0.2 h, all of them 0.2 h"
    assert capsys.readouterr().out.startswith(expected)


def task(name: str, *metrics: tuple[str, str, float]) -> TaskResult:
    items = Items({}, [0], [1.0], {})
    rows = [Metric(metric, group, value, None, 4, 1) for metric, group, value in metrics]
    return TaskResult(name, 1, {}, 0, "", 0, 0.0, rows, items)


def test_the_run_with_writes_is_the_one_that_counts() -> None:
    off, on = task("perplexity+off"), task("perplexity+on")
    assert with_writes([off, on]) is on
    assert with_writes([task("perplexity")]).task == "perplexity"


def test_a_stream_brings_what_was_not_trained_on(tmp_path: Path) -> None:
    stream = {"domains": ["b", "c"], "tokens": 9}
    text = ["data.corpora=[a]", "optim.lr=0.02"]
    settings = {"delta": {"run": "gated_deltanet"}}
    conf = project(tmp_path, scale="ablation", overrides=text, arms=settings, stream=stream)
    training = arms(conf)[0].training(0.5, 0)
    [arguments] = commands(training, Path("here"))
    for key, given in {"--corpora": "b,c", "--learn": "each", "--lr": "0.001", "--tokens": "9"}.items():
        assert arguments[arguments.index(key) + 1] == given
    loaded = study.load(conf, [])["tiny"]
    with pytest.raises(InputError, match=r"arm 'delta' is trained on 'b', which the stream brings as new"):
        study.arms("tiny", dataclasses.replace(loaded, overrides=[]), conf, ["b"])
    classes = dataclasses.replace(loaded.stream, classes="clinc150", data="data/clinc150")
    [arm] = study.arms("tiny", dataclasses.replace(loaded, stream=classes), conf, [])
    [arguments] = commands(arm.training(0.5, 0), Path("here"))
    for key, given in {"--classes": "clinc150", "--data": "data/clinc150", "--limit": "2"}.items():
        assert arguments[arguments.index(key) + 1] == given
    assert "--corpora" not in arguments
    assert arm.training(0.5, 0).sha256 != training.sha256
    longer = dataclasses.replace(loaded, stream=dataclasses.replace(loaded.stream, tokens=10))
    assert study.arms("tiny", longer, conf, [])[0].training(0.5, 0).sha256 != training.sha256


def test_a_result_is_of_what_its_variant_computes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of memories are nothing to a variant that has none; new equations make results of before another's."""
    relu = ["model.memory.activation=relu"]
    settings = {
        "delta": {"run": "gated_deltanet"},
        "delta_relu": {"run": "gated_deltanet", "overrides": relu},
    }
    settings |= {"titans": {"run": "titans"}, "titans_relu": {"run": "titans", "overrides": relu}}
    conf = project(tmp_path, arms=settings)

    def hashes() -> list[str]:
        return [arm.training(1.0, 0).sha256 for arm in arms(conf)]

    delta, delta_relu, titans, titans_relu = hashes()
    assert delta == delta_relu
    assert len({delta, titans, titans_relu}) == 3
    monkeypatch.setitem(EQUATIONS, "memory", EQUATIONS["memory"] + 1)
    assert [old == new for old, new in zip((delta, titans), hashes()[::2], strict=True)] == [True, False]


def test_of_a_stream_cells_and_transfers_are_kept() -> None:
    groups = ("all", "cell=0>a", "stage=0", "domain=a")
    metrics = [*(("bits_per_byte", group, 2.0) for group in groups), ("forgetting", "all", 0.5)]
    values = streamed([task("continual_stream_memorize+on", *metrics)], 512)
    assert [(v.name, v.group, v.length, v.value) for v in values] == [
        ("bits_per_byte", "memorize+on 0>a", 512, 2.0),
        ("forgetting", "memorize+on", 512, 0.5),
    ]
