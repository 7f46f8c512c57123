import json
import os
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from hope_data import documents
from hope_data.cli import main
from hope_data.config import Manifest
from hope_data.errors import InputError
from hope_data.loader import LoaderConfig
from hope_data.manifest import load_manifest
from hope_data.tokenizer_training import Guard

CONF = Path(__file__).parents[3] / "conf" / "corpus"
SHARED = Path(os.environ.get("HOPE_SHARED_DATA", Path(__file__).parents[4] / "shared" / "data"))


def hope_data(*args: object) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-c",
        "import sys; from hope_data.cli import main; sys.exit(main())",
        *map(str, args),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def refused(*args: object) -> str:
    """The one line on stderr of a command that must fail as promised."""
    done = hope_data(*args)
    assert done.returncode == 2
    assert done.stdout == ""
    line, end = done.stderr.split("\n", 1)
    assert end == ""
    assert line.startswith("error: ")
    return line


def manifest(folder: Path, text: str) -> Path:
    path = folder / "m.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: jsonl\nfiles: [x]\nfild: y\n", "key 'fild'"),
        ("kind: jsonl\nfiles: [x]\nfilter: {min_char: 3}\n", "key 'filter.min_char'"),
        ("kind: jsonl\nfiles: [x]\nfilter: {min_chars: few}\n", "key 'filter.min_chars'"),
        ("kind: jsonl\nfiles: [x]\nscales: {tiny: {byte: 3}}\n", "key 'scales.tiny.byte'"),
        ("kind: jsonls\nfiles: [x]\n", "'jsonls' must be one of installed-docs, jsonl"),
        ("kind: jsonl\n", "key 'files': kind jsonl needs it"),
        ("kind: [\n", "is no YAML"),
        ("- a\n", "is no mapping"),
        ("kind: text\nfiles: [x]\nholdout: 0.7\n", "key 'holdout'"),
        ("kind: text\nfiles: {a: b}\n", "key 'files': Cannot merge DictConfig with ListConfig"),
        (
            "kind: text\nfiles: [x]\nscales: [smoke]\n",
            "key 'scales': Cannot merge DictConfig with ListConfig",
        ),
        ("kind: text\nfiles: [x]\nfilter: 7\n", "key 'filter': Merge error: int is not a subclass"),
        ("kind: text\nfiles: [x]\nseparator: '('\n", "key 'separator'"),
        ("kind: text\nfiles: ['${oc.env:HOPE_NO_SUCH_VARIABLE}']\n", "HOPE_NO_SUCH_VARIABLE"),
    ],
)
def test_bad_manifest_names_file_and_key(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["acquire", "--manifest", str(manifest(tmp_path, text)), "--out", str(tmp_path / "o")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "m.yaml" in error
    assert message in error


def test_bad_input_is_one_line_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    good.write_text('{"text": "x"}\n')
    bad.write_text('{"text": "x"}\n' * 3 + "nonsense\n")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    out = tmp_path / "out" / "o"
    for name, message in (
        ("missing", "missing.jsonl: no such file or folder"),
        ("bad", "line 4: is no JSON"),
        ("empty", "corpus is empty"),
    ):
        path = manifest(tmp_path, f"kind: jsonl\nfiles: ['{tmp_path / name}.jsonl']\n")
        assert message in refused("acquire", "--manifest", path, "--out", out)
        assert not out.parent.exists() or not list(out.parent.iterdir())
    for message, command in (
        ("no-such.yaml", ["acquire", "--manifest", "no-such.yaml", "--out", "o"]),
        ("run `hope-data acquire`", ["filter", str(tmp_path), "--out", "o"]),
        ("no clean corpus here", ["tokenizer", str(tmp_path), "--out", "o"]),
        (
            "train one with `hope-data tok",
            ["shard", str(tmp_path), "--tokenizer", str(tmp_path), "--out", "o"],
        ),
        ("no shards here", ["validate", str(tmp_path)]),
    ):
        assert main(command) == 2
        assert message in capsys.readouterr().err


def test_other_peoples_files_are_never_replaced(data: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    message = refused("filter", data / "raw" / "a", "--out", tmp_path / "mine")
    assert "was not written by this command" in message
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_failure_keeps_the_older_output(data: Path, tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text('{"text": "x"}\n')
    path = manifest(tmp_path, f"kind: jsonl\nfiles: ['{source}']\n")
    assert main(["acquire", "--manifest", str(path), "--out", str(tmp_path / "o")]) == 0
    before = {p.name: p.read_bytes() for p in (tmp_path / "o").iterdir()}
    source.write_text('{"text": "x"}\n{')
    assert main(["acquire", "--manifest", str(path), "--out", str(tmp_path / "o")]) == 2
    assert {p.name: p.read_bytes() for p in (tmp_path / "o").iterdir()} == before


def test_damaged_documents_are_named(data: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(data / "clean" / "b", tmp_path / "b")
    part = tmp_path / "b" / "part-00000.jsonl.zst"
    part.write_bytes(part.read_bytes()[:-40])
    with pytest.raises(InputError, match=r"part-00000\.jsonl\.zst"):
        list(documents.read(tmp_path / "b"))


def test_json_and_table(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "reports" / "data.json"
    assert main(["validate", str(data / "shards"), "--corpora", "a", "--json", str(path)]) == 0
    table = capsys.readouterr().out.splitlines()
    record = json.loads(path.read_text())
    assert list(record["corpora"]) == ["a"]
    assert table[1].split()[:3] == ["a", "300", str(record["corpora"]["a"]["tokens"])]
    assert main(["look", str(data / "clean" / "a"), "--count", "2"]) == 0
    assert capsys.readouterr().out.count("a.jsonl:") == 2


def test_closed_pipe_and_full_disk_are_no_traceback(data: Path) -> None:
    script = "import sys; from hope_data.cli import main; sys.exit(main())"
    look = f"'{sys.executable}' -c '{script}' look {data / 'clean' / 'a'} --count 99 --width 9999"
    assert subprocess.run(f"{look} | head -1", shell=True, capture_output=True, check=True).stderr == b""  # noqa: S602
    if Path("/dev/full").exists():
        done = subprocess.run(f"{look} > /dev/full", shell=True, capture_output=True, text=True, check=False)  # noqa: S602
        assert done.returncode == 2
        assert done.stderr.startswith("error: ")
        assert "Traceback" not in done.stderr


def test_help_teaches() -> None:
    done = hope_data("--help")
    assert done.returncode == 0
    for step in ("acquire", "filter", "tokenizer", "shard", "validate", "look", "bench"):
        assert f"hope-data {step}" in done.stdout
        assert f"example:\n  hope-data {step}" in hope_data(step, "--help").stdout


def test_limits_and_scales(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text('{"text": "0123456789"}\n' * 50)
    text = f"kind: jsonl\nfiles: ['{source}']\nlimits: {{documents: 7}}\nscales: {{tiny: {{bytes: 25}}}}\n"
    (tmp_path / "conf" / "scale").mkdir(parents=True)
    (tmp_path / "conf" / "corpus").mkdir()
    (tmp_path / "conf" / "scale" / "other.yaml").touch()
    documents_limit, bytes_limit = "7 documents; raise `limits`", "25 bytes; raise `scales.tiny`"
    for scale, count, said in (
        ("", 7, documents_limit),
        ("tiny", 3, bytes_limit),
        ("other", 7, documents_limit),
    ):
        out = tmp_path / f"o{scale}"
        command = [
            "acquire",
            "--manifest",
            str(manifest(tmp_path / "conf" / "corpus", text)),
            "--scale",
            scale,
            "--out",
            str(out),
        ]
        assert main(command) == 0
        assert documents.provenance(out)["documents"] == count
        assert f"stopped at the limit of {said} in the manifest for more" in capsys.readouterr().out
    assert main([*command[:3], "--scale", "smok", "--out", str(out)]) == 2
    assert (
        capsys.readouterr().err == "error: --scale smok: there is no such scale; choose one of other, tiny\n"
    )


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda p: p.stem)
def test_manifests_of_this_project_are_valid(path: Path) -> None:
    found = load_manifest(path)
    assert found.licence != "unknown" or path.stem == "mine"
    assert found.source


@pytest.mark.parametrize("path", sorted((CONF.parent / "coverage").glob("*.json")), ids=lambda p: p.stem)
def test_coverage_of_this_project_is_of_its_corpora_and_scales(path: Path) -> None:
    guard = Guard.load(path, 0.02)
    assert (CONF.parent / "scale" / f"{path.stem}.yaml").is_file()
    assert {*guard.bytes_per_token} <= {p.stem for p in CONF.glob("*.yaml")}
    assert all(2 < n < 6 for n in guard.bytes_per_token.values())


def keys(cls: Any, prefix: str = "") -> list[str]:
    out = []
    for f in fields(cls):
        value = f.default_factory() if callable(f.default_factory) else f.default
        out += keys(type(value), f"{prefix}{f.name}.") if is_dataclass(value) else [prefix + f.name]
    return out


def test_no_new_dials() -> None:
    """Every key that a user can set; think twice before adding one, then add it here and to docs/data.md."""
    assert " ".join(keys(Manifest)) == (
        "kind licence source content files fields joiner separator drop_lines chunk_bytes limits.documents "
        "limits.bytes scales holdout installed.packages installed.what installed.skip installed.file_bytes hub.path "
        "hub.name hub.split hub.revision hub.streaming filter.language filter.min_chars filter.max_chars "
        "filter.min_letters filter.max_symbols filter.max_bullets filter.max_duplicate_lines "
        "filter.max_top_trigram filter.max_word filter.near_duplicate filter.passage_lines"
    )
    assert " ".join(keys(LoaderConfig)) == "shards weights corpora batch_size length"


@pytest.mark.shared
@pytest.mark.skipif(not (SHARED / "corpus").is_dir(), reason=f"no real files at {SHARED} (HOPE_SHARED_DATA)")
@pytest.mark.parametrize(
    ("name", "kept", "phrase"),
    [
        ("wikipedia", 711, "Romania elected its members"),
        ("novels", 535, "Call me Ishmael"),
    ],
)
def test_real_files(
    name: str, kept: int, phrase: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOPE_SHARED_DATA", str(SHARED))
    raw, clean = tmp_path / "raw", tmp_path / "clean"
    assert main(["acquire", "--manifest", str(CONF / f"{name}.yaml"), "--out", str(raw)]) == 0
    assert main(["filter", str(raw), "--out", str(clean)]) == 0
    texts = [d.text for d in documents.read(clean)]
    assert len(texts) == kept
    assert any(phrase in text for text in texts)
    assert not any("<doc id=" in t or "PROJECT GUTENBERG EBOOK" in t.upper() for t in texts if name != "c4")
    assert str(SHARED) not in (raw / "provenance.json").read_text()
