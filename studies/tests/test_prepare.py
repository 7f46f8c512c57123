"""The pipeline's data: a step is repeated where its inputs or its output have changed, and nowhere else."""

from __future__ import annotations

import itertools
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from hope_data.files import sha256_bytes
from hope_model.errors import InputError
from hope_study import prepare

ROOT = Path(__file__).parents[2]
MARKS = {
    "acquire": "provenance.json",
    "filter": "provenance.json",
    "shard": "index.json",
    "tokenizer": "tokenizer.json",
}
Run = Callable[..., list[str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Prepares with changed parameters; returns the steps that ran, each of which writes a hash of what it read."""
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    monkeypatch.chdir(tmp_path)
    ran: list[str] = []

    def main(command: list[str]) -> int:
        step, *rest = command
        given = dict(itertools.pairwise(rest))
        out = Path(given["--out"]) if "--out" in given else Path(given["--json"])
        ran.append(f"{step} {out.stem}")
        inputs = [Path(word) for word in rest if Path(word).exists() and Path(word) != out]
        read = b"".join(
            p.read_bytes() for folder in inputs for p in sorted([folder, *folder.rglob("*")]) if p.is_file()
        )
        mark = out / MARKS[step] if step in MARKS else out
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.write_text(sha256_bytes(f"{command}".encode() + read))
        return 0

    monkeypatch.setattr(prepare.cli, "main", main)
    monkeypatch.setattr(prepare, "_check_questions", lambda *_: None)

    def prepared(**changes: object) -> list[str]:
        params = yaml.safe_load((ROOT / "params.yaml").read_text()) | {"corpora": ["code", "torch"]} | changes
        Path("params.yaml").write_text(yaml.safe_dump(params))
        ran.clear()
        assert prepare.prepare(Path("params.yaml"), Path("conf"), Path("data")) == 0
        return list(ran)

    return prepared


def test_only_what_changed_is_done_again(run: Run) -> None:
    first = ["acquire code", "filter code", "acquire torch", "filter torch", "tokenizer tokenizer"]
    assert run() == [*first, "shard code", "shard torch", "validate shards"]
    assert run() == []
    Path("conf/study/parity.yaml").write_text("question: another")
    assert run(teach_scale=0.15) == []
    # A new corpus changes the tokenizer, and so all shards, but no text of the others.
    new = ["acquire pandas", "filter pandas", "tokenizer tokenizer"]
    more = ["code", "pandas", "torch"]
    assert run(corpora=more) == [*new, "shard code", "shard pandas", "shard torch", "validate shards"]
    # The corpus is gone with its folders, and what others made of themselves stays.
    assert run() == ["tokenizer tokenizer", "shard code", "shard torch", "validate shards"]
    assert not Path("data/raw/pandas").exists()
    assert Path("data/raw/torch").exists()


def test_what_somebody_changed_or_removed_is_done_again(run: Run) -> None:
    run()
    Path("data/clean/code/provenance.json").write_text("changed")
    assert run() == ["filter code"]
    shutil.rmtree("data/shards/torch")
    assert run() == ["shard torch"]
    manifest = Path("conf/corpus/torch.yaml")
    manifest.write_text(manifest.read_text() + "# more\n")
    assert run()[:2] == ["acquire torch", "filter torch"]


def test_a_step_that_fails_ends_all_and_is_not_done(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    main, failing = prepare.cli.main, ["filter"]
    monkeypatch.setattr(prepare.cli, "main", lambda command: 2 if command[0] in failing else main(command))
    with pytest.raises(AssertionError):
        run()
    failing.clear()
    assert run()[0] == "filter code"


def test_text_without_questions_stops_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Five pieces of 16,000 bytes give one test document; the message's remedy is a key of conf/evaluate.yaml."""
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    draw = random.Random(0)
    words = ["".join(draw.choices("aeioulmnrst", k=draw.randint(2, 7))) for _ in range(900)]
    text = "\n\n".join(" ".join(draw.choices(words, k=40)) + "." for _ in range(400))
    (tmp_path / "book.txt").write_text(text)
    manifest = {
        "kind": "text",
        "files": [str(tmp_path / "book.txt")],
        "chunk_bytes": 16_000,
        "filter": {"near_duplicate": 0},
    }
    (tmp_path / "conf/corpus/mine.yaml").write_text(yaml.safe_dump(manifest))
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params |= {"corpora": ["mine"], "scale": "tiny", "evaluation": str(tmp_path / "conf/evaluation")}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    given = tmp_path / "params.yaml", tmp_path / "conf", tmp_path / "data"
    with pytest.raises(
        InputError, match=r"no corpus has 4 test documents of 144 tokens; .*`tasks` in conf/evaluate\.yaml"
    ):
        prepare.prepare(*given)
    assert capsys.readouterr().out.count("so no document is dropped") == 1
    (tmp_path / "conf/evaluate.yaml").write_text("tasks: [perplexity]\n")
    assert prepare.prepare(*given) == 0
