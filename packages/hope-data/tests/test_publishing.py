"""Locks, atomic files and folders: one writer at a time, nothing half-written, nothing left behind."""

import errno
import fcntl
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


def test_a_folder_that_is_away_between_two_renames_is_not_taken_for_somebody_elses(tmp_path: Path) -> None:
    """One process replaces a folder again and again; the other is refused because it is busy, and for nothing else."""
    out = tmp_path / "out"
    code = "import sys; from pathlib import Path; from hope_data.publishing import exclusive, new_folder\n"
    code += "out = Path(sys.argv[1])\nfor _ in range(100):\n"
    code += "  with exclusive(out, wait=True), new_folder(out, 'marker') as f: (f / 'marker').touch()"
    child = subprocess.Popen([sys.executable, "-c", code, str(out)])
    refused = 0
    while child.poll() is None:
        try:
            with new_folder(out, "marker") as folder:
                (folder / "marker").touch()
        except InputError as error:
            refused += 1
            assert "is writing it" in str(error)  # noqa: PT017 (any number of times)
    assert child.returncode == 0
    assert refused
    assert (out / "marker").exists()
    assert hidden(tmp_path) == []


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


def test_a_lock_is_never_taken_through_a_link(tmp_path: Path) -> None:
    """Another user of a shared folder could let it point at a file of ours, which would be emptied."""
    precious = tmp_path / "precious"
    precious.write_text("years of work")
    (tmp_path / ".out.lock").symlink_to(precious)
    with pytest.raises(InputError, match="out: cannot be written"), new_folder(tmp_path / "out", "marker"):
        pass
    assert precious.read_text() == "years of work"


def test_one_output_by_two_names_has_one_lock(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with exclusive(tmp_path / "real" / "out"), exclusive(tmp_path / "link" / ".." / "real" / "out"):
        assert hidden(tmp_path / "real") == [".out.lock"]


def test_files_and_folders_have_the_mode_that_the_user_asks_for(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "file", b"x")
        with new_folder(tmp_path / "out", "marker") as folder:
            (folder / "marker").touch()
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750


def test_a_pipe_is_written_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_atomic(pipe, b"numbers")
    assert os.read(reader, 99) == b"numbers"
    os.close(reader)
    assert pipe.is_fifo()


def test_half_a_predecessor_never_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while it removes the predecessor; then somebody removes the output too."""
    new, out = tmp_path / "new", tmp_path / "out"
    for folder in (new, out):
        folder.mkdir()
        (folder / "file").write_text(folder.name)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            replace_folder(new, out)
    (out / "file").unlink()
    out.rmdir()
    recover_folder(out)
    assert not out.exists()
    with exclusive(out):
        pass
    assert hidden(tmp_path) == []


def test_file_systems_that_lock_no_folders_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS locks only what is open for writing, which no folder can be."""
    flock = fcntl.flock

    def no_folders(handle: int, operation: int) -> None:
        if Path(f"/proc/self/fd/{handle}").resolve().is_dir():
            raise OSError(errno.EBADF, "Bad file descriptor")
        flock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", no_folders)
    (tmp_path / ".out.01234567.tmp").mkdir()  # of a killed writer
    (tmp_path / ".other.01234567.tmp").mkdir()  # of somebody who may live
    with new_folder(tmp_path / "out", "marker") as folder:
        (folder / "marker").write_text("1")
    assert hidden(tmp_path) == [".other.01234567.tmp"]
    assert (tmp_path / "out" / "marker").read_text() == "1"
