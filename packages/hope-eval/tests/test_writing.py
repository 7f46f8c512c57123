"""Nothing is lost or half-written: two writers of one file, a suite that was interrupted, a package that was killed."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest

from hope_data.publishing import exclusive
from hope_eval import cli, evaluate
from hope_eval import results as schema
from hope_eval.cli import main

FORK = get_context("fork")  # a spawned child would import torch, and miss its partner


def add(path: Path, template: Path, task: str, barrier: object) -> None:
    """What `--add` does once its task is measured, at the same moment as others."""
    result = schema.load(template)
    mine = replace(result, tasks=[replace(result.tasks[0], task=task)])
    barrier.wait()  # type: ignore[attr-defined]
    evaluate.write(path, mine, add=True)


def pairs(count: int, template: Path, folder: Path) -> None:
    for number in range(count):
        path, barrier = folder / f"pack-{number}.json", FORK.Barrier(2)
        both = [FORK.Process(target=add, args=(path, template, f"task_{n}", barrier)) for n in range(2)]
        for one in both:
            one.start()
        for one in both:
            one.join()
        assert [one.exitcode for one in both] == [0, 0]
        assert sorted(task.task for task in schema.load(path).tasks) == ["task_0", "task_1"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"pack-{n}.json" for n in range(count))


def test_of_two_that_add_at_once_neither_is_lost(synthetic: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "packs").mkdir()
    pairs(3, synthetic("a", 2.0, 0.5), tmp_path / "packs")


@pytest.mark.long
def test_of_a_hundred_pairs_that_add_at_once_none_is_lost(
    synthetic: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "packs").mkdir()
    pairs(100, synthetic("a", 2.0, 0.5), tmp_path / "packs")


def test_results_of_other_weights_are_never_added(
    synthetic: Callable[..., Path], edited: Callable[..., Path], tmp_path: Path
) -> None:
    mine, other = synthetic("mine", 2.0, 0.5), synthetic("other", 2.0, 0.5)
    edited(other, lambda record: record["checkpoint"].update(sha256="9" * 64))
    before = mine.read_bytes()
    with pytest.raises(ValueError, match="holds results of other weights"):
        evaluate.write(mine, schema.load(other), add=True)
    assert mine.read_bytes() == before


@pytest.fixture
def suite(checkpoint_folder: Path, corpora: Path, tmp_path: Path) -> list[str]:
    given = ["--checkpoint", checkpoint_folder, "--shards", corpora / "shards"]
    given += ["--tokenizer", corpora / "tokenizer", "--json", tmp_path / "packs" / "tiny.json"]
    return [str(x) for x in ["suite", *given]]


def counting(monkeypatch: pytest.MonkeyPatch, template: schema.Results, stop: int) -> list[str]:
    """Evaluators that take no time; the one after `stop` of them is interrupted."""
    called: list[str] = []

    def measure(arguments: argparse.Namespace) -> None:
        if len(called) == stop:
            raise KeyboardInterrupt
        called.append(arguments.command)
        task = replace(template.tasks[0], task=f"task_{len(called)}")
        evaluate.write(arguments.json, replace(template, tasks=[task]), add=arguments.add)

    monkeypatch.setattr(cli, "_evaluate", measure)
    return called


def test_a_suite_resumes_with_what_is_not_measured(
    suite: list[str],
    checkpoint_folder: Path,
    synthetic: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    template = schema.load(synthetic("a", 2.0, 0.5))
    weights = json.loads((checkpoint_folder / "meta.json").read_text())["sha256"]["model.safetensors"]
    template = replace(template, checkpoint=replace(template.checkpoint, sha256=weights))
    pack = tmp_path / "packs" / "tiny.json"
    pack.parent.mkdir()
    pack.write_bytes(schema.sealed(template))
    called = counting(monkeypatch, template, stop=2)
    assert main(suite) == 130
    assert capsys.readouterr().err == "error: interrupted\n"
    assert called == ["run", "needle"]
    assert schema.load(pack) == template  # the former pack stays until the new one is whole
    again = counting(monkeypatch, template, stop=9)
    with exclusive(pack):
        # A process that makes the same pack would be refused; a block inside another of one process is not.
        assert main(suite) == 0
    assert again == ["continual", "run"]
    assert capsys.readouterr().out.count("measured before the interruption") == 2
    whole = schema.load(pack)
    assert [task.task for task in whole.tasks] == ["task_1", "task_2"]
    assert sorted(path.name for path in pack.parent.iterdir()) == ["tiny.json"]


def test_a_second_suite_of_one_pack_is_refused(
    suite: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = (
        "import sys, time; from pathlib import Path; from hope_data.publishing import exclusive\n"
        "with exclusive(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    pack = tmp_path / "packs" / "tiny.json"
    holder = subprocess.Popen([sys.executable, "-c", code, str(pack)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert main(suite) == 2
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"process {holder.pid} is writing it" in said


def kill_package(command: list[str], folder: Path, after: float) -> int:
    """Kills the command `after` seconds after the weights have been copied; 0 where it was done by then."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(folder.glob(".*.tmp/model.safetensors")):
        time.sleep(0.01)
    time.sleep(after)
    process.send_signal(signal.SIGKILL)
    return process.wait()


def kills(count: int, checkpoint: Path, corpora: Path, pack: Path, folder: Path) -> None:
    script = str(Path(sys.executable).with_name("hope-eval"))
    given = ["--checkpoint", checkpoint, "--tokenizer", corpora / "tokenizer", "--results", pack]
    command = [script, *(str(x) for x in ["package", *given, "--out", folder / "release"])]
    folder.mkdir()
    for number in range(count):
        kill_package(command, folder, number / count)
        copies = [path for path in folder.iterdir() if path.name.endswith(".tmp")]
        assert len(copies) <= 1  # that of the kill just now, none of those before
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ)
    assert [path.name for path in folder.iterdir()] == ["release"]
    assert main(["package", "--verify", str(folder / "release")]) == 0


@pytest.fixture
def pack(corpora: Path, checkpoint_folder: Path, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.json"
    where = ["--shards", corpora / "shards", "--tokenizer", corpora / "tokenizer", "--tasks", "perplexity"]
    run = ["run", "--checkpoint", checkpoint_folder, *where, "--json", path, "--length", 48, "--limit", 2]
    assert main([str(x) for x in run]) == 0
    return path


def test_a_killed_package_leaves_no_copy_to_the_next(
    corpora: Path, checkpoint_folder: Path, pack: Path, tmp_path: Path
) -> None:
    kills(1, checkpoint_folder, corpora, pack, tmp_path / "releases")


@pytest.mark.long
def test_of_ten_killed_packages_none_leaves_a_copy(
    corpora: Path, checkpoint_folder: Path, pack: Path, tmp_path: Path
) -> None:
    kills(10, checkpoint_folder, corpora, pack, tmp_path / "releases")
