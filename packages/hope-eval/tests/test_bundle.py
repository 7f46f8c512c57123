"""A release holds all that belongs to a checkpoint, notices every change, and refuses what does not fit."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from hope_data.errors import InputError
from hope_eval import results as schema
from hope_eval.cli import main
from hope_eval.release import bundle


@pytest.fixture(scope="module")
def pack(corpora: Path, checkpoint_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bits per byte of the untrained model."""
    path = tmp_path_factory.mktemp("pack") / "tiny.json"
    where = ["--shards", corpora / "shards", "--tokenizer", corpora / "tokenizer", "--tasks", "perplexity"]
    assert main([str(x) for x in ["run", "--checkpoint", checkpoint_folder, *where, "--json", path]]) == 0
    return path


@pytest.fixture(scope="module")
def release(
    corpora: Path, checkpoint_folder: Path, pack: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("releases") / "tiny"
    assert package(checkpoint_folder, pack, out, corpora) == 0
    return out


def package(checkpoint: Path, pack: Path, out: Path, corpora: Path) -> int:
    given = ["--checkpoint", checkpoint, "--tokenizer", corpora / "tokenizer", "--results", pack]
    return main([str(x) for x in ["package", *given, "--provenance", corpora / "raw", "--out", out]])


def test_it_holds_everything_and_scores_the_same(
    release: Path, corpora: Path, pack: Path, tmp_path: Path
) -> None:
    there = {str(path.relative_to(release)) for path in release.rglob("*") if path.is_file()}
    assert there >= {
        "model.safetensors",
        "config.json",
        "meta.json",
        "tokenizer/tokenizer.model",
        "results/tiny.json",
    }
    assert there >= {"README.md", "report.md", "report.html", "sample.json", "SHA256SUMS"}
    subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=release, check=True)
    moved = tmp_path / "elsewhere"  # its tokenizer must come with it
    shutil.copytree(release, moved)
    here, written = bundle.verify(moved)
    assert here == written
    told = ["--checkpoint", moved, "--tokenizer", moved / "tokenizer", "--shards", corpora / "shards"]
    again = tmp_path / "again.json"
    assert main([str(x) for x in ["run", *told, "--tasks", "perplexity", "--json", again]]) == 0
    before, after = (schema.load(path).tasks[0].metrics for path in (pack, again))
    assert before == after


def test_the_card_says_what_the_files_say(release: Path, pack: Path) -> None:
    card = (release / "README.md").read_text()
    front = card.split("---")[1]
    assert 'model_name: "tiny"' in front
    assert "license: other" in front
    assert 'corpora: ["left", "right"]' in front
    found = schema.load(pack).tasks[0].find("bits_per_byte")
    assert found is not None
    assert f"{found.value:.3f} ± {found.stderr:.3f}" in card
    assert "seen 96 tokens" in card
    assert "| left" in card
    assert "d" * 40 in card
    assert all(line.startswith("|") for line in card.split("## Results")[1].split("\n\n")[2].splitlines())


@pytest.mark.parametrize(
    "name", ["model.safetensors", "README.md", "tokenizer/tokenizer.model", "sample.json"]
)
def test_a_changed_byte_is_named(release: Path, tmp_path: Path, name: str) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(release, damaged)
    data = bytearray((damaged / name).read_bytes())
    data[len(data) // 2] ^= 1
    (damaged / name).write_bytes(bytes(data))
    with pytest.raises(InputError, match=f"{name}: does not match its hash"):
        bundle.verify(damaged)


def test_missing_surplus_and_foreign_files_are_named(release: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(release, copy)
    (copy / "extra.bin").write_bytes(b"x")
    with pytest.raises(InputError, match=r"extra\.bin: is not listed"):
        bundle.verify(copy)
    (copy / "extra.bin").unlink()
    (copy / "config.json").unlink()
    with pytest.raises(InputError, match=r"config\.json: is missing"):
        bundle.verify(copy)
    (copy / "SHA256SUMS").write_text(f"{'0' * 64}  ../model.safetensors\n")
    with pytest.raises(InputError, match="line 1: not a hash and a file of the bundle"):
        bundle.verify(copy)
    with pytest.raises(InputError, match=r"is .* a bundle"):
        bundle.verify(tmp_path)


def test_another_score_is_an_error(release: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(release, copy)
    sample = json.loads((copy / "sample.json").read_text())
    (copy / "sample.json").write_text(json.dumps({**sample, "nats": sample["nats"] * 1.01}))
    sums = bundle._sums(copy)
    (copy / "SHA256SUMS").write_text(sums)
    with pytest.raises(InputError, match="the sample scores"):
        bundle.verify(copy)


def test_other_weights_results_and_other_peoples_files_are_refused(
    checkpoint_folder: Path,
    corpora: Path,
    pack: Path,
    edited: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = tmp_path / "other.json"
    shutil.copy(pack, other)
    edited(other, lambda record: record["checkpoint"].update(sha256="0" * 64))
    assert package(checkpoint_folder, other, tmp_path / "out", corpora) == 2
    assert "results of other weights" in capsys.readouterr().err
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    assert package(checkpoint_folder, pack, mine, corpora) == 2
    assert "was not written by this command" in capsys.readouterr().err
    assert [path.name for path in mine.iterdir()] == ["thesis.txt"]
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".*"))


def test_a_run_named_as_a_path_writes_nothing_outside(
    checkpoint_folder: Path,
    corpora: Path,
    pack: Path,
    edited: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = tmp_path / "results" / "other.json"
    other.parent.mkdir()
    shutil.copy(pack, other)
    for run in ("../../x", "..", "/etc/x", "a/b", ".hidden", "a\nb"):
        edited(other, lambda record, run=run: record["checkpoint"].update(run=run))
        assert package(checkpoint_folder, other, tmp_path / "out" / "release", corpora) == 2
        said = capsys.readouterr().err
        assert "a name is of letters" in said
        assert said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nats": float("nan")}, "nats is nan, not a number above 0"),
        ({"nats": True}, "nats is True, not a number above 0"),
        ({"tolerance": float("nan")}, "tolerance is nan, not a number above 0 and at most 0.01"),
        ({"tolerance": -1.0}, "tolerance is -1.0, not a number"),
        ({"tolerance": 1e9}, "tolerance is 1000000000.0, not a number"),
        ({"text": 3}, "text is no text of 1 to"),
        ({"text": "x" * 200_000}, "text is no text of 1 to"),
    ],
)
def test_a_sample_that_proves_nothing_is_refused(
    release: Path, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(release, copy)
    sample = json.loads((copy / "sample.json").read_text())
    (copy / "sample.json").write_text(json.dumps({**sample, **change}))
    (copy / "SHA256SUMS").write_text(bundle._sums(copy))
    with pytest.raises(InputError, match=message):
        bundle.verify(copy)


def test_links_and_names_that_leave_the_bundle_are_refused(release: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(release, copy)
    for target in (copy / "config.json", tmp_path, Path("config.json"), tmp_path / "nowhere"):
        link = copy / "results" / "link"
        link.symlink_to(target)
        with pytest.raises(InputError, match="link: is no plain file; a bundle holds no links"):
            bundle.verify(copy)
        link.unlink()
    sums = (copy / "SHA256SUMS").read_text()
    for name in ("/etc/passwd", "results/../../x", "./config.json", "a//b", "c:x", r"a\b", "", "SHA256SUMS"):
        (copy / "SHA256SUMS").write_text(f"{sums}{'0' * 64}  {name}\n")
        with pytest.raises(InputError, match="not a hash and a file of the bundle"):
            bundle.verify(copy)
    (copy / "SHA256SUMS").write_text(f"{sums}{'0' * 64}  Config.json\n")
    with pytest.raises(
        InputError, match=r"config\.json and Config\.json are one file where case does not count"
    ):
        bundle.verify(copy)
    for line in ("0" * 63 + "  x", "G" * 64 + "  x", "0" * 64 + " x"):
        (copy / "SHA256SUMS").write_text(f"{line}\n{sums}")
        with pytest.raises(InputError, match="line 1: not a hash and a file"):
            bundle.verify(copy)
