from pathlib import Path

import pytest

from hope_data import bench, documents
from hope_data.cli import main
from hope_data.shards import Split
from hope_data.tokenizer import Tokenizer
from hope_data.validate import validate


def test_every_figure_is_there_and_the_ones_without_a_clock_hold(data: Path, tmp_path: Path) -> None:
    record = bench.run(
        data / "clean" / "a", data / "tokenizer", megabytes=0.2, gigabytes=0.002, count=200, workers=1,
        repeats=1, folder=tmp_path,
    )  # fmt: skip
    found = record["near_duplicates"]
    assert (found["distinct"], found["planted"], found["ours"]["false"]) == (200, 20, 0)
    assert found["ours"]["recall"] >= 0.9
    assert record["text_mb"] == pytest.approx(0.2, rel=0.1)
    assert record["tokenise"]["ratio"] == pytest.approx(
        record["tokenise"]["shard_mb_per_s"] / record["tokenise"]["bare_mb_per_s"]
    )
    table = bench.table(record)
    for word in ("tokenise and shard", "peak memory", "near duplicates", "recall", "loader", "validate"):
        assert word in table
    assert not list(tmp_path.iterdir())


def test_made_shards_are_valid_and_made_text_is_real(data: Path, tmp_path: Path) -> None:
    bench.large(data / "tokenizer", tmp_path / "s" / "x", 0.0005, 0)
    record = validate(tmp_path / "s", tokenizer_folder=data / "tokenizer")
    assert record["total"]["tokens"] == 250_000 + 200_000
    tokens = Split.open(tmp_path / "s" / "x", "train").tokens
    assert int(tokens[:].max()) < Tokenizer.load(data / "tokenizer").vocab_size
    texts = bench._texts(data / "clean" / "a")
    bench.corpus(texts, 0.02, tmp_path / "c", 0)
    lines = {line for text in texts for line in text.splitlines()}
    assert all(line in lines for d in documents.read(tmp_path / "c") for line in d.text.splitlines())


def test_engine_options_are_checked(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["filter", str(data / "raw" / "b"), "--out", str(tmp_path / "b")]
    assert main([*command, "--slurm", "partition=x"]) == 2
    assert "takes no --slurm options" in capsys.readouterr().err
    assert main([*command, "--engine", "slurm", "--slurm", "partition"]) == 2
    assert "must be KEY=VALUE" in capsys.readouterr().err
