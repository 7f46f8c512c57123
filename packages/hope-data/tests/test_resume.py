"""Folders of work: what an interruption leaves, who may write there, and what is kept."""

import os
import random
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from disturbed import Commands, folder_bytes, kill_everywhere

from hope_data import filters, work
from hope_data.errors import InputError, Unfinished
from hope_data.work import open_work


def task(folder: Path, i: int) -> dict[str, object]:
    (folder / f"{i}.txt").write_text(str(i))
    (folder.parent / "log").open("a").write(f"{i} ")
    return {"files": [f"{i}.txt"], "value": i * i}


def test_only_what_is_missing_is_done_again(tmp_path: Path) -> None:
    for round_ in range(2):
        with open_work(tmp_path / "o", "0.txt", {"job": 1}) as work:
            assert [r["value"] for r in work.run("t", task, 4)] == [0, 1, 4, 9]
            if round_ == 0:
                work._record("t", 2).write_bytes(b"{}")  # a damaged result
                (work.folder / "3.txt").unlink()  # and one whose file is gone
    assert (tmp_path / "log").read_text() == "0 1 2 3 2 3 "
    with open_work(tmp_path / "o", "0.txt", {"job": 2}) as work:
        work.run("t", task, 1)  # another job starts afresh
        assert sorted(p.name for p in work.folder.iterdir()) == ["0.txt", "job.json", "lock", "t-00000.json"]
        work.finish(["0.txt"])
    assert [p.name for p in (tmp_path / "o").iterdir()] == ["0.txt"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log", "o"]


def test_mistakes_leave_nothing_and_mishaps_leave_what_was_done(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="mistake"), open_work(tmp_path / "o", "m", {}):
        raise InputError("mistake")
    assert not list(tmp_path.iterdir())
    with pytest.raises(Unfinished, match="no hub"), open_work(tmp_path / "o", "m", {}):
        raise Unfinished("no hub")
    assert not list(tmp_path.iterdir())
    with open_work(tmp_path / "o", "m", {}) as work:
        work.run("t", task, 2)
        with pytest.raises(Unfinished, match="2 of 2 tasks of step u are not done"):
            work.run("u", task, 2, engine=lambda todo, _: None)
    assert sorted(p.name for p in (tmp_path / ".o.partial").glob("t-*")) == ["t-00000.json", "t-00001.json"]


def test_a_file_that_changed_is_made_again(tmp_path: Path) -> None:
    """One flipped bit in a file of a finished task: as if the task had not been done."""
    with open_work(tmp_path / "o", "m", {}) as first:
        first.run("t", task, 3)
        (first.folder / "1.txt").write_text("2")  # of the right length
    with open_work(tmp_path / "o", "m", {}) as second:
        second.run("t", task, 3)
        assert (second.folder / "1.txt").read_text() == "1"
    assert (tmp_path / "log").read_text() == "0 1 2 1 "


@pytest.mark.parametrize("name", ["judged-00003.jsonl.zst", "judged-00003.npy", "passages-00003.npy"])
def test_filter_resumed_from_changed_files_writes_the_right_bytes(
    name: str, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise Unfinished("no more time")

    with monkeypatch.context() as patch:
        patch.setattr(filters, "_unlike", stop)
        with pytest.raises(Unfinished, match="no more time"):
            filters.run(many / "raw" / "m", tmp_path / "m")
    path = tmp_path / ".m.partial" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    filters.run(many / "raw" / "m", tmp_path / "m")
    assert folder_bytes(tmp_path / "m") == folder_bytes(many / "clean" / "m")


def test_a_second_run_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    with open_work(tmp_path / "o", "0.txt", {}) as first:
        child = os.fork()
        if not child:
            try:
                with open_work(tmp_path / "o", "0.txt", {}):
                    pass
            except InputError as error:
                os._exit(10 if f"process {os.getppid()} is writing it" in str(error) else 11)
            os._exit(12)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 10
        first.run("t", task, 1)
        first.finish(["0.txt"])
    assert [p.name for p in (tmp_path / "o").iterdir()] == ["0.txt"]


def test_a_worker_of_a_killed_run_writes_nothing_into_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_work(tmp_path / "o", "m", {}) as killed:
        pass
    monkeypatch.setattr(work, "_PATIENCE", 0.1)
    with (  # in the middle of a task: the next run waits
        killed._worker(),
        pytest.raises(Unfinished, match="workers of an earlier run are still writing"),
        open_work(tmp_path / "o", "m", {}),
    ):
        pass
    with open_work(tmp_path / "o", "m", {}) as second:
        with pytest.raises(Unfinished, match="another run has taken over"):
            killed.do("t", task, 0)
        assert not (second.folder / "0.txt").exists()
        second.run("t", task, 1)
        second.finish(["0.txt"])
    with pytest.raises(Unfinished, match="its tasks have been taken away"):
        killed.do("t", task, 0)
    assert (tmp_path / "log").read_text() == "0 "


@pytest.mark.parametrize("step", ["acquire", "filter", "shard", "tokenizer", "look"])
@pytest.mark.parametrize(
    "every", [pytest.param(False, id="some"), pytest.param(True, id="every", marks=pytest.mark.long)]
)
def test_a_kill_before_any_step_on_the_disk_changes_no_byte(
    step: str, every: bool, data: Path, tmp_path: Path, commands: Commands
) -> None:
    """Among the steps are both renames by which the new folder takes the place of an earlier one."""
    out = tmp_path / "o" / "b"
    given, earlier = {
        "acquire": (["--manifest", data / "b.yaml"], "raw/a"),
        "filter": ([data / "raw" / "b"], "clean/a"),
        "shard": ([data / "clean" / "b", "--tokenizer", data / "tokenizer"], "shards/a"),
        "tokenizer": ([data / "clean", "--vocab-size", 380], "tokenizer"),
        "look": ([data / "clean" / "b"], ""),
    }[step]

    def prepare() -> None:
        out.parent.mkdir()
        if earlier:
            shutil.copytree(data / earlier, out)

    def choose(total: int) -> Iterable[int]:
        if every:
            return range(total)
        # Among the last are the two renames; drawing and training take seconds each time.
        few = range(total)[-6:-3] if step in ("look", "tokenizer") else range(total)[-8:]
        return sorted({*random.Random(0).sample(range(total), 2), *few})

    command = [step, *given, "--html" if step == "look" else "--out", out]
    kills = kill_everywhere(commands, command, out, prepare, choose)
    assert kills >= 4
    sys.stdout.write(f"{step}: {kills} kills\n")
