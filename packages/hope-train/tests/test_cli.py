"""Whatever a user gets wrong on the command line is one line on stderr, status 2, and nothing written."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest

from hope_model.errors import InputError
from hope_train import run
from hope_train.cli import main
from hope_train.config import TrainConfig, dump

ROOT = Path(__file__).parents[3]
CONF = ["--conf", str(ROOT / "conf"), "--params", str(ROOT / "params.yaml")]
MISTAKES = {
    "run RUN --until -1": "--until -1: it must be a step, at least 1",
    "run RUN --until 0": "--until 0: it must be a step, at least 1",
    "run RUN --out FILE/x": "Not a directory",
    "run RUN --out FILE": "FILE: File exists",
    "run DIR": "Is a directory",
    "run nowhere.yaml": "nowhere.yaml: No such file or directory",
    "bench RUN --steps -1": "--steps -1, --rounds 5: steps must be at least 0, rounds at least 1",
    "bench RUN --rounds 0": "--steps 0, --rounds 0: steps must be at least 0, rounds at least 1",
    "bench nowhere.yaml": "nowhere.yaml: No such file or directory",
    "plan --count 0 CONF": "--count 0: it must be at least 1",
    "plan --run nobody CONF": "conf/run/nobody.yaml: no such file; choose one of gated_deltanet, hope",
    "plan CONF --conf DIR": "config.yaml: no such file; --conf names the folder that holds it",
    "verify nowhere": "nowhere: no such checkpoint",
    "verify FILE": "FILE/training.json: Not a directory",
    "verify DIR": "training.json: No such file or directory",
    "scales --conf nowhere": "nowhere/scale: no scale there",
    "compose --params nowhere": "nowhere: No such file or directory",
    "compose --out DIR CONF": "DIR",
}


@pytest.mark.parametrize("mistake", MISTAKES, ids=range(len(MISTAKES)))
def test_a_mistake_is_one_line(
    mistake: str, tiny: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("RUN").write_text(dump(tiny))
    Path("FILE").write_text("")
    Path("DIR").mkdir()
    arguments = [part for word in mistake.split() for part in (CONF if word == "CONF" else [word])]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert MISTAKES[mistake] in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["DIR", "FILE", "RUN"]


def test_an_unknown_mode_of_a_tracker_is_found_before_anything_is_removed(
    tiny: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "foo\nbar")
    (tmp_path / "run.yaml").write_text(dump(tiny))
    assert (
        main(["run", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "out"), "--fresh-on-mismatch"]) == 2
    )
    assert (
        capsys.readouterr().err
        == "error: WANDB_MODE is 'foo\\nbar'; choose one of offline, online, disabled\n"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (
            MemoryError("Unable to allocate 7.45 GiB for an array"),
            1,
            "Unable to allocate 7.45 GiB for an array; lower",
        ),
        (
            RuntimeError("CUDA out of memory. Tried\nmore"),
            1,
            "CUDA out of memory. Tried; lower batch_size or length",
        ),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory"),
            1,
            "can't allocate memory; lower batch_size",
        ),
        (
            RuntimeError("No viable backend for attention"),
            2,
            "sdpa 'auto' does not serve this device, precision or",
        ),
        (InputError("\x1b]0;x\x07\nmore"), 2, "error: \\x1b]0;x\\x07 more"),
        (OSError(28, "No space left on device"), 1, "No space left on device"),
        (PermissionError(13, "Permission denied", "out"), 2, "out: Permission denied"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_the_machine_refuses_is_one_line(
    error: BaseException, status: int, words: str, tiny: TrainConfig, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(run, "train", refuse)
    (tmp_path / "run.yaml").write_text(dump(tiny))
    assert main(["run", str(tmp_path / "run.yaml")]) == status
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert words in said


def test_a_fault_of_the_code_keeps_its_traceback(
    tiny: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(run, "train", fail)
    (tmp_path / "run.yaml").write_text(dump(tiny))
    with pytest.raises(RuntimeError, match="shape mismatch"):
        main(["run", str(tmp_path / "run.yaml")])


def test_a_tokenizer_smaller_than_the_vocabulary_trains_and_a_larger_one_is_named(
    tiny: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for size, status in ((384, 75), (319, 2)):
        text = dump(tiny).replace("vocab_size: 320", f"vocab_size: {size}")
        (tmp_path / "run.yaml").write_text(text)
        arguments = ["run", str(tmp_path / "run.yaml"), "--out", str(tmp_path / f"{size}"), "--until", "2"]
        assert main(arguments) == status
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.endswith(
        "tokenizer: 320 tokens, but model.vocab_size is 319; train a smaller tokenizer or enlarge the model's"
    )
    assert json.loads((tmp_path / "384/checkpoint/config.json").read_text())["vocab_size"] == 384


def test_a_device_that_computes_nothing_is_refused(
    tiny: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("meta", "cuda:9", "abacus", ""):
        (tmp_path / "run.yaml").write_text(dump(dataclasses.replace(tiny, device=name)))
        assert main(["run", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: device '{name}': ")
        assert error.count("\n") == 1


@pytest.mark.parametrize("started", [False, True])
def test_changed_tokens_are_never_trained_on(
    started: bool, tiny: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for key, folder in (("shards", tiny.data.shards), ("tokenizer", tiny.data.tokenizer)):
        shutil.copytree(folder, tmp_path / key)
    data = dataclasses.replace(
        tiny.data, shards=str(tmp_path / "shards"), tokenizer=str(tmp_path / "tokenizer")
    )
    (tmp_path / "run.yaml").write_text(dump(dataclasses.replace(tiny, data=data)))
    arguments = ["run", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "out"), "--until"]
    if started:
        assert main([*arguments, "2"]) == 75
    shards = [f"shards/left/{part}{kind}.bin" for part in ("train", "val") for kind in ("", ".docs")]
    for name in (*shards, "shards/right/index.json", "tokenizer/tokenizer.model", "tokenizer/tokenizer.json"):
        file = tmp_path / name
        content = file.read_bytes()
        middle = len(content) // 2
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        capsys.readouterr()
        for flags in ([], ["--fresh-on-mismatch"]):
            assert main([*arguments, "4", *flags]) == 2, name
            error = capsys.readouterr().err
            assert error.count("\n") == 1
            assert file.name.split(".")[0] in error
            assert "is damaged" in error or "is not the model that tokenizer.json names" in error
        file.write_bytes(content)
    assert main([*arguments, "4"]) == 75
    progress = json.loads((tmp_path / "out/checkpoint/training.json").read_text())["progress"]
    assert progress["step"] == 4


def test_a_full_disk_while_saving_leaves_the_former_checkpoint(
    tiny: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run.yaml").write_text(dump(tiny))
    arguments = ["run", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--until", "3"]) == 75

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    for name in ("tensors.write", "replace_folder", "_save_model"):
        with monkeypatch.context() as patch:
            patch.setattr(f"hope_train.checkpoint.state.{name}", full)
            assert main(arguments) == 1
        assert capsys.readouterr().err.endswith("error: [Errno 28] No space left on device\n")
        assert main(["verify", str(tmp_path / "out")]) == 0
        assert "step 3" in capsys.readouterr().out
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["checkpoint", "log.jsonl"]
    assert main(arguments) == 0
    shutil.rmtree(tmp_path / "out")


def test_arguments_that_do_not_parse_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["plan", "--count", "\x1b[31m1.5"])
    assert caught.value.code == 2
    assert capsys.readouterr().err == (
        "error: argument --count: invalid int value: '\\x1b[31m1.5'; see hope-train plan --help\n"
    )


def test_a_configuration_that_is_a_pipe_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    assert main(["run", str(tmp_path / "pipe.yaml")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'pipe.yaml'}: is no regular file\n"
