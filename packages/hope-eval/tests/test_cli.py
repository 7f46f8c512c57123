"""The console script on real folders: what it writes, and what it says when it cannot."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hope_data.commands import parser_of
from hope_eval import results as schema
from hope_eval.cli import _told_apart, main
from hope_eval.commands import COMMANDS
from hope_eval.suite import Sizes, pieces

TINY = ("--length", "48", "--limit", "6")


def run(corpora: Path, out: Path, *extra: str, **changes: Path) -> int:
    folders = {
        "checkpoint": corpora / "runs" / "tiny" / "checkpoint",
        "shards": corpora / "shards",
        "tokenizer": corpora / "tokenizer",
    }
    flags = [text for name, path in {**folders, **changes}.items() for text in (f"--{name}", str(path))]
    return main(["run", *flags, "--json", str(out), *TINY, *extra])


@pytest.mark.usefixtures("checkpoint_folder")
def test_run_writes_a_result_that_carries_where_it_came_from(
    corpora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, metrics = tmp_path / "new" / "tiny.json", tmp_path / "metrics.json"
    assert run(corpora, out, "--metrics", str(metrics)) == 0
    result = schema.load(out)
    names = [
        "perplexity",
        *(f"perplexity_{part}" for part in ("position", "target", "source")),
        "choice",
        "passkey",
    ]
    assert [task.task for task in result.tasks] == names
    about = result.checkpoint
    assert (about.run, about.variant, about.seed, about.tokens) == ("tiny", "hope", 7, 96)
    assert about.config_sha256 == "c" * 64
    assert (
        about.sha256
        == json.loads((corpora / "runs" / "tiny" / "checkpoint" / "meta.json").read_text())["sha256"][
            "model.safetensors"
        ]
    )
    assert json.loads(metrics.read_text()) == schema.headline(result)
    bits = result.tasks[0].find("bits_per_byte")
    assert bits is not None
    assert bits.n == 12
    assert f"Bits per byte: {bits.value:.3f} ± {bits.stderr:.3f} (n 12)" in capsys.readouterr().out


@pytest.mark.usefixtures("checkpoint_folder")
def test_batches_change_no_number(corpora: Path, tmp_path: Path) -> None:
    for name, size in (("one", "1"), ("many", "4096")):
        assert run(corpora, tmp_path / f"{name}.json", "--batch-tokens", size) == 0
    one, many = (schema.load(tmp_path / f"{name}.json") for name in ("one", "many"))
    for a, b in zip(one.tasks, many.tasks, strict=True):
        assert a.items_sha256 == b.items_sha256
        for name, values in a.items.scores.items():
            np.testing.assert_allclose(values, b.items.scores[name], rtol=2e-6)


@pytest.mark.usefixtures("checkpoint_folder")
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("checkpoint", "config.json is missing; is"),
        ("shards", "nowhere: no shards here; run `hope-data shard` first"),
        ("tokenizer", "train one with `hope-data tokenizer`"),
        ("task", "unknown task 'reading'; choose among perplexity, choice, passkey"),
        ("none", "unknown task ''; choose among"),
        ("domain", "shards: no shards of corpus middle; there are left, right"),
        ("length", "meta.json: length is '0', not a whole number of at least 1"),
        ("corpora", "meta.json: corpora is no list of names"),
        ("model", "its tokenizer is 000000000000 (320 tokens), but"),
        ("weights", "does not match the hash"),
    ],
)
def test_unfit_input_is_one_line_and_leaves_nothing(
    corpora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str, message: str
) -> None:
    copy = tmp_path / "checkpoint"
    shutil.copytree(corpora / "runs" / "tiny" / "checkpoint", copy)
    meta = copy / "meta.json"
    extra: list[str] = []
    changes: dict[str, Path] = {"checkpoint": copy}
    if fault in ("checkpoint", "shards", "tokenizer"):
        changes[fault] = tmp_path / "nowhere"
    elif fault == "task":
        extra = ["--tasks", "perplexity,reading"]
    elif fault == "none":
        extra = ["--tasks", ","]
    elif fault == "domain":
        extra = ["--domains", "middle"]
    elif fault == "model":
        rewrite(meta, tokenizer_sha256="0" * 64)
    elif fault in ("length", "corpora"):
        rewrite(meta, **{fault: 0})
    else:
        (copy / "model.safetensors").write_bytes(b"torn")
    assert run(corpora, tmp_path / "out" / "x.json", *extra, **changes) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert message in said.err
    assert not (tmp_path / "out").exists()


def rewrite(meta: Path, **changes: object) -> None:
    """Change a sidecar, its own hash taken out."""
    values = json.loads(meta.read_text())
    del values["sha256"]["meta.json"]
    meta.write_text(json.dumps({**values, **changes}))


def test_console_script_teaches() -> None:
    script = Path(sys.executable).with_name("hope-eval")
    done = subprocess.run([script, "--help"], capture_output=True, text=True, check=True)
    assert "hope-eval run --checkpoint runs/hope/checkpoint" in done.stdout
    wrong = subprocess.run([script, "run"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert "--checkpoint" in wrong.stderr


def test_compare_prints_paired_differences(
    synthetic: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = synthetic("good", 2.0, 0.6), synthetic("bad", 2.1, 0.3)
    out = tmp_path / "difference.json"
    assert main(["compare", str(a), str(b), "--json", str(out)]) == 0
    rows = {(row["metric"], row["group"]): row for row in json.loads(out.read_text())}
    row = rows["bits_per_byte", "all"]
    assert row["difference"]["high"] < 0
    assert "verdict" not in row
    assert row["difference"]["value"] == pytest.approx(row["a"] - row["b"])
    assert row["difference"]["value"] == pytest.approx(-0.1, abs=0.01)
    assert rows["choice_accuracy", "all"]["difference"]["low"] > 0
    assert rows["passkey_exact", "all"]["difference"]["value"] == 0
    assert ("unigram_bits_per_byte", "all") not in rows
    text = capsys.readouterr().out
    assert f"{row['difference']['value']:.3f} ± {row['difference']['stderr']:.3f}" in text


def test_a_reader_that_has_seen_enough_is_no_error(synthetic: Callable[..., Path]) -> None:
    a, b = synthetic("good", 2.0, 0.6), synthetic("bad", 2.1, 0.3)
    code = f"import sys; from hope_eval.cli import main; sys.exit(main(['compare', {str(a)!r}, {str(b)!r}]))"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as started:
        assert started.stdout
        assert started.stderr
        started.stdout.close()
        assert started.stderr.read() == b""
    assert started.returncode == 0


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (("results/hope/0.json", "results/titans/0.json"), ("hope/0", "titans/0")),
        (("hope/0.json", "hope/1.json"), ("hope/0", "hope/1")),
        (
            ("one/results/hope/0.json", "two/results/hope/0.json"),
            ("one/results/hope/0", "two/results/hope/0"),
        ),
        (("good.json", "bad.json"), ("good", "bad")),
        (("good.json", "good.json"), ("good", "good")),
    ],
)
def test_columns_of_compare_name_run_and_seed(paths: tuple[str, str], names: tuple[str, str]) -> None:
    assert _told_apart(*map(Path, paths)) == names


def test_compare_refuses_other_items(
    synthetic: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = synthetic("a", 2.0, 0.5), synthetic("b", 2.0, 0.5, "other")
    assert main(["compare", str(a), str(b)]) == 2
    assert "perplexity: the two results are over different items" in capsys.readouterr().err


@pytest.mark.parametrize(("bounded", "writes"), [(True, True), (False, False), (True, False)])
def test_every_command_of_the_suite_is_understood(bounded: bool, writes: bool) -> None:
    parser = parser_of("hope-eval", "", "", COMMANDS)
    told = ["suite", "--checkpoint", "c", "--tokenizer", "t", "--shards", "s", "--json", "x.json"]
    least = pieces(parser.parse_args(told), Sizes(), bounded=bounded, writes=writes)
    told += ["--mirror", "m", "--text", "a.txt", "b.txt", "--babi", "qa1.txt", "--clinc150", "d"]
    whole = pieces(parser.parse_args(told), Sizes(), bounded=bounded, writes=writes)
    for command in (*least, *whole):
        assert parser.parse_args(command).add
    names = ["run", "zeroshot", "zeroshot", "needle", "babi", "books", "continual", "continual"]
    assert [command[0] for command in whole] == names + ["run"] * writes
    assert [command[0] for command in least] == ["run", "needle", "continual"] + ["run"] * writes
    assert ("memorize" in least[2]) == bounded
