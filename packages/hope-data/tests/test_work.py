"""Tasks in several processes, killed and taken up again: always the same bytes."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from disturbed import folder_bytes

from hope_data import acquire, documents, filters, sharding
from hope_data.cli import main
from hope_data.engines import engine
from hope_data.errors import Unfinished
from hope_data.loader import Loader, LoaderConfig, eval_windows
from hope_data.shards import Split
from hope_data.validate import validate

# 100 was run once for the record: HOPE_KILLS=100 pytest -k kill
KILLS = int(os.environ.get("HOPE_KILLS", "2"))
PARTS = 6  # of the corpus `many`


@pytest.mark.parametrize("name", ["processes", "datatrove"])
def test_two_workers_write_the_same_bytes(name: str, many: Path, tmp_path: Path) -> None:
    if name == "datatrove":
        pytest.importorskip("datatrove")
    else:
        filters.run(many / "raw" / "m", tmp_path / "m", workers=2)
        assert folder_bytes(tmp_path / "m") == folder_bytes(many / "clean" / "m")
        shutil.rmtree(tmp_path / "m")
    run = engine(name)
    sharding.shard(many / "clean" / "m", many / "tokenizer", tmp_path / "s" / "m", workers=2, engine=run)
    assert folder_bytes(tmp_path / "s" / "m") == folder_bytes(many / "shards" / "m")
    assert [p.name for p in tmp_path.rglob("*") if p.is_dir()] == ["s", "m"]


def command(step: str, many: Path, out: Path) -> list[str]:
    script = "import sys; from hope_data.cli import main; sys.exit(main(sys.argv[1:]))"
    given = {
        "filter": [many / "raw" / "m"],
        "shard": [many / "clean" / "m", "--tokenizer", many / "tokenizer"],
    }[step]
    return [sys.executable, "-c", script, step, *map(str, given), "--out", str(out / "m"), "--workers", "2"]


class Killing:
    """Runs of one step that may be killed, and where in them the kills came."""

    def __init__(self, step: str, many: Path, out: Path):
        self.step, self.many, self.out = step, many, out
        self.partial = out / ".m.partial"
        self.phases = dict.fromkeys(("start", "work", "end"), 0)
        self.process, self.before = self._start()
        self.until_work, self.work = self._timed()

    def _start(self) -> tuple[subprocess.Popen[bytes], dict[str, int]]:
        before = self.files()
        # A session of its own, so that its workers can be killed with it.
        run = command(self.step, self.many, self.out)
        null = subprocess.DEVNULL
        return subprocess.Popen(run, stdout=null, stderr=null, start_new_session=True), before

    def files(self) -> dict[str, int]:
        """What tasks have written so far, with the time of it."""
        found: dict[str, int] = {}
        with suppress(FileNotFoundError):
            for entry in os.scandir(self.partial):
                with suppress(FileNotFoundError):
                    found[entry.name] = entry.stat().st_mtime_ns
        return {name: when for name, when in found.items() if "-0" in name and not name.startswith(".")}

    def left(self) -> int:
        """Tasks of the last step that are not sealed."""
        last = {"filter": "keep", "shard": "shard"}[self.step]
        return PARTS - len(list(self.partial.glob(f"{last}-0000?.json")))

    def _wait_for_work(self) -> None:
        while self.process.poll() is None and self.files() == self.before:
            time.sleep(0.001)

    def _timed(self) -> tuple[float, float]:
        began = time.monotonic()
        self._wait_for_work()
        middle = time.monotonic()
        self.process.wait()
        shutil.rmtree(self.out)
        return middle - began, time.monotonic() - middle

    def kill(self, k: int, rng: random.Random) -> bool:
        """Start a run and kill it: every third at any moment, the others once a task has written something.

        Returns:
            Whether it was still running.
        """
        self.process, self.before = self._start()
        if k % 3 == 2:
            time.sleep(rng.uniform(0, self.until_work + self.work))
        else:
            self._wait_for_work()
            time.sleep(rng.uniform(0, self.work * self.left() / PARTS) if k else 0)
        if self.process.poll() is not None:
            return False
        # With its workers, or alone: then they notice, and the next run waits for them.
        os.killpg(self.process.pid, signal.SIGKILL) if k % 2 else self.process.kill()
        self.process.wait()
        time.sleep(0.1)
        worked = self.files() != self.before
        self.phases["work" if worked and self.left() else "end" if worked else "start"] += 1
        return True


def test_kills_change_no_byte(many: Path, tmp_path: Path) -> None:
    """kill -9 at random moments of filter and shard, then go on: byte for byte the undisturbed output."""
    rng = random.Random(0)
    for step, reference in (("filter", many / "clean" / "m"), ("shard", many / "shards" / "m")):
        out, killed, whole = tmp_path / step, 0, 0
        runs = Killing(step, many, out)
        while killed < KILLS // 2:
            killed += runs.kill(killed, rng)
            if (out / "m").exists():
                assert folder_bytes(out / "m") == folder_bytes(reference)
                shutil.rmtree(out)
                whole += 1
        subprocess.run(command(step, many, out), check=True, capture_output=True)
        assert folder_bytes(out / "m") == folder_bytes(reference)
        assert [p.name for p in out.iterdir()] == ["m"]
        sys.stdout.write(
            f"{step}: {killed} kills by phase {runs.phases}, {whole + 1} whole outputs compared\n"
        )
        assert 3 * runs.phases["work"] >= killed


def test_a_killed_worker_is_told_in_one_line(many: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(command("shard", many, tmp_path), stderr=subprocess.PIPE, text=True)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    workers: list[str] = []
    while not workers and process.poll() is None:
        time.sleep(0.01)
        found = children.read_text().split() if children.exists() else []
        workers = [c for c in found if "spawn_main" in Path(f"/proc/{c}/cmdline").read_text()]
    os.kill(int(workers[0]), signal.SIGKILL)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 2
    assert error.startswith("error: ")
    assert "a worker process was killed; run it again to go on" in error
    assert error.count("\n") == 1


def test_a_split_of_several_shards_reads_like_one(many: Path, tmp_path: Path) -> None:
    split = Split.open(many / "shards" / "m", "train")
    assert len(split.shards) == PARTS
    whole = np.concatenate([shard.tokens for shard in split.shards])
    tokens = split.tokens
    assert len(tokens) == split.n_tokens == len(whole)
    assert np.array_equal(np.asarray(tokens), whole)
    edge = len(split.shards[0].tokens)
    for where in (slice(0, 5), slice(edge - 3, edge + 4), slice(None), slice(7, len(whole), 3), slice(5, 5)):
        assert np.array_equal(tokens[where], whole[where])
    texts = [d.tolist() for d in np.split(whole, split.ends)[:-1]]
    assert [[*split.document(i).tolist(), split.eos_id] for i in range(split.n_documents)] == texts
    assert sum(split.document_bytes(i) for i in range(split.n_documents)) == split.n_bytes
    windows = eval_windows(many / "shards" / "m", 32, 10**9, "train")
    expected = [s.tokens[k : k + 33] for s in split.shards for k in range(0, len(s.tokens) - 32, 32)]
    assert np.array_equal(windows, np.stack(expected))
    loader = Loader(LoaderConfig(str(many / "shards"), batch_size=1, length=32), "train", seed=0)
    drawn = sorted(next(loader).tokens.tobytes() for _ in range(len(expected)))
    assert drawn == sorted(window.astype(np.int64).tobytes() for window in expected)
    record = validate(many / "shards", tokenizer_folder=many / "tokenizer")
    assert record["total"]["documents"] == documents.provenance(many / "clean" / "m")["documents"]


def test_acquire_goes_on_after_its_last_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text("".join(f'{{"text": "{i:05d} {"word " * 20}"}}\n' for i in range(500)))
    path = tmp_path / "m.yaml"
    path.write_text(f"kind: jsonl\nfiles: ['{source}']\nlimits: {{documents: 450}}\n")
    monkeypatch.setattr(acquire, "PART_BYTES", 9_000)
    acquire.acquire(path, "", tmp_path / "whole")
    write, written = documents.Writer.write, []

    def stop_after_200(self: documents.Writer, document: documents.Document) -> None:
        if len(written) == 200:
            raise KeyboardInterrupt
        written.append(document.id)
        write(self, document)

    with monkeypatch.context() as patch:
        patch.setattr(documents.Writer, "write", stop_after_200)
        with pytest.raises(KeyboardInterrupt):
            acquire.acquire(path, "", tmp_path / "o")
    written.clear()
    monkeypatch.setattr(documents.Writer, "write", lambda self, d: (written.append(d.id), write(self, d))[1])
    acquire.acquire(path, "", tmp_path / "o")
    assert 250 <= len(written) < 350
    assert folder_bytes(tmp_path / "o") == folder_bytes(tmp_path / "whole")
    assert documents.provenance(tmp_path / "o")["documents"] == 450


@pytest.mark.parametrize("chunk_bytes", [0, 300])
def test_a_hub_data_set_goes_on_where_it_stood(
    chunk_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pa = pytest.importorskip("pyarrow")
    pytest.importorskip("datasets")
    from pyarrow import parquet

    (tmp_path / "d").mkdir()
    for k in range(3):
        rows = [f"{k} {i}\n\n" + "word word word\n\n" * 20 for i in range(100)]
        parquet.write_table(
            pa.table({"text": rows}), tmp_path / "d" / f"train-{k}.parquet", row_group_size=30
        )
    path = tmp_path / "m.yaml"
    path.write_text(f"kind: hf\nhub: {{path: '{tmp_path / 'd'}'}}\nchunk_bytes: {chunk_bytes}\n")
    monkeypatch.setattr(acquire, "PART_BYTES", 20_000)
    acquire.acquire(path, "", tmp_path / "whole")
    seal = acquire.Work.seal

    def stop_after_two(self: object, step: str, i: int, found: dict[str, object]) -> None:
        seal(self, step, i, found)  # type: ignore[arg-type]
        if i == 1:
            raise Unfinished("the network is gone")

    with monkeypatch.context() as patch:
        patch.setattr(acquire.Work, "seal", stop_after_two)
        with pytest.raises(Unfinished):
            acquire.acquire(path, "", tmp_path / "o")
    assert main(["acquire", "--manifest", str(path), "--out", str(tmp_path / "o")]) == 0
    assert folder_bytes(tmp_path / "o") == folder_bytes(tmp_path / "whole")


SLURM = {
    "sbatch": """
        for script; do :; done
        array=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
        if grep -q launch_pickled_pipeline "$script"; then
            for i in $(seq 0 $array); do
                if [ "$i" != "$FAILS" ]; then SLURM_ARRAY_TASK_ID=$i SLURM_NODELIST=n bash "$script" >> log 2>&1; fi
            done
        fi
        echo Submitted batch job 7
    """,
    "srun": 'while [ "${1#-}" != "$1" ] || [ "$1" = 1 ]; do shift; done; exec "$@"',
    "scontrol": "echo localhost",
    "squeue": "true",
}


def test_slurm_job_array(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """datatrove's own launch script and pickled pipeline; in Slurm's place stand four scripts that run it at once."""
    pytest.importorskip("datatrove")
    given = ["shard", many / "clean" / "m", "--tokenizer", many / "tokenizer", "--out", tmp_path / "o" / "m"]
    command = [*map(str, given), "--engine", "slurm", "--workers", "2", "--slurm"]
    assert main([*command, "partition=cpu", "time=1"]) == 2
    assert "no sbatch on PATH" in capsys.readouterr().err
    (tmp_path / "bin").mkdir()
    for name, text in SLURM.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    assert main([*command, "partition=cpu"]) == 2
    assert "'time'" in capsys.readouterr().err
    monkeypatch.setenv("FAILS", "1")
    assert main([*command, "partition=cpu", "time=1"]) == 2
    assert "ended with tasks undone" in capsys.readouterr().err
    assert len(list((tmp_path / "o" / ".m.partial").glob("shard-*.json"))) == PARTS // 2
    monkeypatch.setenv("FAILS", "")
    assert main([*command, "partition=cpu", "time=1", "cpus_per_task=2"]) == 0
    assert folder_bytes(tmp_path / "o" / "m") == folder_bytes(many / "shards" / "m")
    assert [path.name for path in (tmp_path / "o").iterdir()] == ["m"]
