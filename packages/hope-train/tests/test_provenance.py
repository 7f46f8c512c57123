"""Where a number came from: the revision of a working folder, and a hash of every source that decides it."""

import subprocess
from pathlib import Path

import pytest

from hope_train import provenance


def git(*arguments: str) -> str:
    identity = ("-c", "user.name=n", "-c", "user.email=e")
    return subprocess.run(
        ["git", *identity, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    git("init", "-q")
    for name in ("code.py", "dvc.lock", "reports/page.md", "results/one.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1")
    git("add", "-A")
    git("commit", "-qm", "first")
    return tmp_path


def test_results_make_no_revision_dirty_and_code_does(folder: Path) -> None:
    results = folder / "results"
    found = git("rev-parse", "HEAD")
    assert provenance.revision() == provenance.revision(results) == found
    (results / "one.json").write_text("2")
    (results / "two.json").write_text("2")
    assert provenance.revision() == f"{found}-dirty"
    assert provenance.revision(Path("results")) == found
    assert provenance.revision(folder.parent) == f"{found}-dirty"  # not of this tree
    for name in ("dvc.lock", "reports/page.md"):
        (folder / name).write_text("2")
    assert provenance.revision(results) == found
    (folder / "code.py").write_text("2")
    assert provenance.revision(results) == f"{found}-dirty"


def test_outside_git_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance.revision() == "unknown"


@pytest.mark.parametrize("name", ["step.py", "kernel.cpp", "kernel.hpp"])
def test_every_source_counts(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "_locations", lambda _: [str(tmp_path)])
    (tmp_path / name).write_text("1")
    before = provenance.code_sha256()
    (tmp_path / "notes.md").write_text("1")
    assert provenance.code_sha256() == before
    (tmp_path / name).write_text("2")
    assert provenance.code_sha256() != before
