"""Kept libraries run only if this user alone could have written them and not a byte has changed since."""

import hashlib
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hope_model.ops.native import build

pytestmark = pytest.mark.skipif(build.kernels("gated_delta") is None, reason="no C++ compiler")
NOBODY = 65_534


def source(answer: int) -> str:
    return f'extern "C" long answer(long) {{ return {answer}; }}'


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty cache, and a kernel that compiles at once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "SOURCES", {"tiny.cpp": source(8)})
    build._say_once.cache_clear()
    yield tmp_path / "cache" / "hope-model"
    build._say_once.cache_clear()


def answer() -> int:
    """What the library that a new process would load says."""
    kernels = build.compiled.__wrapped__("tiny")
    assert kernels is not None
    return int(kernels.number("answer", 0))


def kept(folder: Path) -> Path:
    (library,) = folder.iterdir()
    return library


def other_library(tmp_path: Path) -> bytes:
    """What somebody else would like to run here."""
    (tmp_path / "evil.cpp").write_text(source(666))
    out = tmp_path / "evil.so"
    build._run([build.find_compiler(), *build.FLAGS, str(tmp_path / "evil.cpp"), "-o", str(out)], 60)
    return out.read_bytes()


def planted(library: Path, content: bytes) -> Path:
    """The same name but for the hash, which is that of the content."""
    return library.with_name(f"{library.stem[:-64]}{hashlib.sha256(content).hexdigest()}.so")


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o022, 0o077])
def test_folder_and_library_are_this_users_alone(folder: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        assert answer() == 8
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
    assert not kept(folder).stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    assert kept(folder).stem.endswith(hashlib.sha256(kept(folder).read_bytes()).hexdigest())


def test_a_kept_library_is_not_compiled_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert answer() == 8
    status = kept(folder).stat()
    monkeypatch.setattr(build, "COMPILE_SECONDS", 0)  # no compiler would finish
    assert answer() == 8
    assert (kept(folder).stat().st_ino, kept(folder).stat().st_mtime_ns) == (
        status.st_ino,
        status.st_mtime_ns,
    )


@pytest.mark.parametrize("damage", ["half", "empty", "bit", "longer"])
def test_a_damaged_library_is_compiled_anew(folder: Path, damage: str) -> None:
    """Loading one that was cut in half ended in SIGBUS."""
    assert answer() == 8
    library = kept(folder)
    content = bytearray(library.read_bytes())
    if damage == "bit":
        content[len(content) // 2] ^= 1
    cut = {"half": content[: len(content) // 2], "empty": b"", "bit": content, "longer": content + b"\0"}
    library.unlink()
    library.write_bytes(cut[damage])
    assert answer() == 8
    assert kept(folder).stem.endswith(hashlib.sha256(kept(folder).read_bytes()).hexdigest())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_library_of_another_user_is_not_loaded(folder: Path, tmp_path: Path) -> None:
    assert answer() == 8
    content = other_library(tmp_path)
    evil = planted(kept(folder), content)
    kept(folder).unlink()
    evil.write_bytes(content)
    evil.chmod(0o755)
    os.chown(evil, NOBODY, NOBODY)
    assert answer() == 8
    assert not evil.exists()


@pytest.mark.parametrize("mode", [0o666, 0o664])
def test_a_library_that_others_may_write_to_is_not_loaded(folder: Path, tmp_path: Path, mode: int) -> None:
    assert answer() == 8
    content = other_library(tmp_path)
    evil = planted(kept(folder), content)
    kept(folder).unlink()
    evil.write_bytes(content)
    evil.chmod(mode)
    assert answer() == 8


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_is_no_file_is_not_loaded(folder: Path, tmp_path: Path, kind: str) -> None:
    assert answer() == 8
    content = other_library(tmp_path)
    evil = planted(kept(folder), content)
    kept(folder).unlink()
    if kind == "link":
        evil.symlink_to(tmp_path / "evil.so")
    elif kind == "pipe":
        os.mkfifo(evil)
    else:
        evil.mkdir()
    if kind == "folder":
        with pytest.warns(RuntimeWarning, match=r"without its C\+\+ kernels"):
            assert build.compiled.__wrapped__("tiny") is None
    else:
        assert answer() == 8


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777])
def test_a_folder_that_others_may_write_to_is_emptied_and_closed(
    folder: Path, tmp_path: Path, mode: int
) -> None:
    assert answer() == 8
    content = other_library(tmp_path)
    planted(kept(folder), content).write_bytes(content)
    folder.chmod(mode)
    with pytest.warns(RuntimeWarning, match="could be written to by other users") as caught:
        assert answer() == 8
    assert len(caught) == 1
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert answer() == 8
    assert hashlib.sha256(kept(folder).read_bytes()) != hashlib.sha256(content)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_the_folder_of_another_user_is_not_used(folder: Path, tmp_path: Path) -> None:
    assert answer() == 8
    content = other_library(tmp_path)
    planted(kept(folder), content).write_bytes(content)
    os.chown(folder, NOBODY, NOBODY)
    before = sorted(folder.iterdir())
    with pytest.warns(RuntimeWarning, match="belongs to another user") as caught:
        assert [answer(), answer()] == [8, 8]
    assert len(caught) == 1
    assert sorted(folder.iterdir()) == before


def test_without_a_folder_kernels_are_compiled_anew(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.warns(RuntimeWarning, match="anew in every process: .*XDG_CACHE_HOME"):
        assert answer() == 8

    def homeless() -> Path:
        raise RuntimeError("no home")

    monkeypatch.setenv("XDG_CACHE_HOME", "relative/folders/do/not/count")
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.warns(RuntimeWarning, match="anew in every process: no home"):
        assert answer() == 8
    assert not Path("relative").exists()


def test_a_compiler_that_hangs_is_stopped_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = tmp_path / "slow"
    slow.write_text(f"#!/bin/sh\nsleep 60 &\necho $! > {tmp_path}/child\nwait\n")
    slow.chmod(0o755)
    monkeypatch.setenv("CXX", str(slow))
    monkeypatch.setattr(build, "TARGET_SECONDS", 0.5)
    start = time.monotonic()
    with pytest.warns(RuntimeWarning, match=r"slow has not finished after 0\.5 seconds"):
        assert build.compiled.__wrapped__("tiny") is None
    assert time.monotonic() - start < 20
    child = int((tmp_path / "child").read_text())
    for _ in range(100):  # until init has collected it
        state = Path(f"/proc/{child}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z":
            break
        time.sleep(0.1)
    else:
        os.kill(child, signal.SIGKILL)
        pytest.fail("the compiler's child still runs")


@pytest.mark.long
def test_many_processes_at_once_make_one_library(folder: Path) -> None:
    code = (
        "from hope_model.ops.native import build\n"
        f"build.SOURCES = {{'tiny.cpp': {source(8)!r}}}\n"
        "print(build.compiled('tiny').number('answer', 0))\n"
    )
    command = [sys.executable, "-c", code]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate()[0] for process in processes] == ["8\n"] * 3
    assert kept(folder).suffix == ".so"


def test_identity_tells_kernels_and_compilers_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    here = build.identity()
    assert here.startswith("C++ ")
    assert here == build.identity()
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-O1"))
    assert build.identity() != here
    monkeypatch.undo()
    with build.without_kernels():
        assert build.identity() == "torch"
