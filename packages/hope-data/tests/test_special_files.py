"""Pipes, devices and far too large files in the place of an input or output: one line, at once."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from hope_data.cli import _weights, main
from hope_data.compressed import lines
from hope_data.errors import InputError
from hope_data.files import load_sealed, read_bytes, sha256_file
from hope_data.manifest import load_manifest
from hope_data.publishing import exclusive, new_folder
from hope_data.shards import open_array
from hope_data.tokenizer_training import Guard


@pytest.fixture(params=["fifo", "/dev/zero", "folder", "huge"])
def special(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / str(request.param)
    if request.param == "fifo":
        os.mkfifo(path)
    elif request.param == "folder":
        path.mkdir()
    elif request.param == "huge":
        with path.open("wb") as file:
            file.truncate(2**33)
    return path


def test_no_reader_waits_for_one_or_reads_it_whole(special: Path) -> None:
    begun = time.perf_counter()
    for read in (
        lambda: load_sealed(special, "make it again"),
        lambda: Guard.load(special, 0.02),
        lambda: open_array(special, "<u2"),
        lambda: next(lines(special)),
    ):
        with pytest.raises(InputError) as caught:
            read()
        assert str(special) in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(OSError, match=r"regular file|directory|larger than 1,073,741,824 bytes"):
        read_bytes(special)
    if special.name != "huge":
        with pytest.raises(OSError, match=r"regular file|directory"):
            sha256_file(special)
    assert time.perf_counter() - begun < 5


def test_a_manifest_that_is_a_pipe_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert main(["acquire", "--manifest", str(tmp_path / "pipe"), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error == (
        f"error: {tmp_path / 'pipe'}: is no regular file; --manifest takes a file like conf/corpus/NAME.yaml\n"
    )


@pytest.mark.parametrize("out", ["", ".", "..", "/", "text/.."])
def test_an_output_without_a_name_is_one_line(out: str) -> None:
    with (
        pytest.raises(InputError, match="names no file or folder that could be written"),
        exclusive(Path(out)),
    ):
        pass


def test_an_output_where_no_file_can_be_made_does_not_wait_for_ever() -> None:
    begun = time.perf_counter()
    with (
        pytest.raises(InputError, match="/proc/self/mem: cannot be written"),
        new_folder(Path("/proc/self/mem"), "x"),
    ):
        pass
    assert time.perf_counter() - begun < 5


@pytest.mark.parametrize("text", ["{" * 5000, "[" * 5000, "a: " + "[{a: " * 300])
def test_brackets_by_the_thousand_are_one_line_at_once(text: str, tmp_path: Path) -> None:
    (tmp_path / "deep.yaml").write_text(text)
    begun = time.process_time()
    with pytest.raises(InputError, match=r"deep.yaml: lists or mappings are nested too deeply$"):
        load_manifest(tmp_path / "deep.yaml")
    assert time.process_time() - begun < 0.5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('"a.b": 1', "unknown key 'a.b'; known here: kind, licence, source"),
        ("filter: {a.b: 1}", "unknown key 'filter.a.b'; known here: language, min_chars"),
    ],
)
def test_an_unknown_key_with_a_dot_names_the_known_ones(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "it.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        load_manifest(tmp_path / "it.yaml")


def test_a_weight_for_a_name_twice_is_one_line() -> None:
    with pytest.raises(InputError, match="--weights code=2: code is named twice; give it one weight"):
        _weights(["code=1", "text=1", "code=2"])
