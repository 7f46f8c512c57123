"""Locks, atomic files and folders: one writer at a time, nothing half-written, nothing left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hope_data.errors import InputError
from hope_data.publishing import exclusive, new_folder, recover_folder, replace_folder, write_atomic

HOLD = """
import sys, time
from pathlib import Path
from hope_data.publishing import exclusive, new_folder
with new_folder(Path(sys.argv[1]), "marker") as folder:
    (folder / "marker").write_text("child")
    print("holding", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def holder(out: Path, seconds: float) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(out), str(seconds)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "holding\n"
    return process


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def test_a_second_writer_is_refused_in_one_line_or_waits(tmp_path: Path) -> None:
    out = tmp_path / "out"
    child = holder(out, 1)
    with (
        pytest.raises(InputError, match=rf"out: process {child.pid} is writing it"),
        new_folder(out, "marker"),
    ):
        pass
    with exclusive(out, wait=True):
        assert (out / "marker").read_text() == "child"
    assert child.wait() == 0
    assert hidden(tmp_path) == []


def test_a_killed_writer_frees_the_lock_and_its_temporary_is_removed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    child = holder(out, 60)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert len(hidden(tmp_path)) == 2  # lock and temporary
    with new_folder(out, "marker") as folder:
        (folder / "marker").write_text("second")
    assert (out / "marker").read_text() == "second"
    assert hidden(tmp_path) == []


def test_one_process_may_take_a_lock_inside_itself(tmp_path: Path) -> None:
    with exclusive(tmp_path / "out"), exclusive(tmp_path / "out"):
        assert hidden(tmp_path) == [".out.lock"]
    assert hidden(tmp_path) == []


def test_a_kill_between_the_two_renames_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new, out = tmp_path / "new", tmp_path / "out"
    for folder in (new, out):
        folder.mkdir()
        (folder / "file").write_text(folder.name)
    renames = []

    def replace(self: Path, target: Path) -> Path:
        if renames:
            raise KeyboardInterrupt
        renames.append(target)
        os.rename(self, target)  # noqa: PTH104 (Path.replace is patched)
        return target

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            replace_folder(new, out)
    assert not out.exists()
    recover_folder(out)
    assert (out / "file").read_text() == "out"


def test_writers_of_one_file_never_tear_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    code = "import sys; from pathlib import Path; from hope_data.publishing import write_atomic\n"
    code += "for _ in range(100): write_atomic(Path(sys.argv[1]), sys.argv[2].encode() * 10000)"
    children = [subprocess.Popen([sys.executable, "-c", code, str(path), letter]) for letter in "ab"]
    seen = set()
    while any(child.poll() is None for child in children):
        if path.exists():
            text = path.read_text()
            assert len(text) == 10_000
            assert len(set(text)) == 1
            seen.add(text[0])
        time.sleep(0.001)
    assert seen <= {"a", "b"}
    assert seen
    assert hidden(tmp_path) == []


def test_a_live_temporary_is_not_taken_for_a_stale_one(tmp_path: Path) -> None:
    child = holder(tmp_path / "one", 1)
    with exclusive(tmp_path / "two"):
        assert any(name.startswith(".one.") and name.endswith(".tmp") for name in hidden(tmp_path))
    assert child.wait() == 0
    write_atomic(tmp_path / "file", b"x")
    assert (tmp_path / "one" / "marker").read_text() == "child"
