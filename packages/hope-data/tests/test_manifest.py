"""Manifests of every kind of wrong: a run, or one line that names file and key."""

import json
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from hope_data.cli import main
from hope_data.config import Manifest
from hope_data.errors import InputError
from hope_data.manifest import load_manifest

PROSE = "The harbour was quiet when the first boats came home, and {0} of them lay deep in the water. " * 4


def keys(settings: Any, prefix: str = "") -> list[str]:
    """Every key of nested settings."""
    if not is_dataclass(settings):
        return [prefix.removesuffix(".")]
    return [k for f in fields(settings) for k in keys(getattr(settings, f.name), f"{prefix}{f.name}.")]


def nested(key: str, value: Any) -> dict[str, Any]:
    first, _, rest = key.partition(".")
    return {first: nested(rest, value) if rest else value}


def outcome(tmp_path: Path, content: str | bytes, capsys: pytest.CaptureFixture[str]) -> str:
    """Acquire and filter a small corpus by a manifest; "" for a run, else the one line."""
    manifest = tmp_path / "m.yaml"
    manifest.write_bytes(content if isinstance(content, bytes) else content.encode())
    for command in (
        ["acquire", "--manifest", str(manifest), "--out", str(tmp_path / "raw")],
        ["filter", str(tmp_path / "raw"), "--out", str(tmp_path / "clean")],
    ):
        code = main(command)
        error = capsys.readouterr().err
        if code:
            assert code == 2
            assert error.count("\n") == 1, error
            assert error.startswith("error: ")
            assert len(error) < 1000
            return error
        assert error == ""
    return ""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "s.jsonl"
    path.write_text(
        "".join(json.dumps({"text": PROSE.format(n) + "\n" + PROSE.format(-n)}) + "\n" for n in range(5))
    )
    return path


WRONG = (-1, 0, 10**30, float("nan"), float("inf"), "x", "", None, True, [], {}, [None], {"a": 1}, 0.5)


@pytest.mark.parametrize(
    "key", [*keys(Manifest()), "scales.tiny.bytes", "limits", "filter", "hub", "installed"]
)
def test_every_key_takes_a_value_or_says_what_it_takes(
    key: str, tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = {"kind": "jsonl", "files": [str(source)], "filter": {"passage_lines": 2}}
    refused = 0
    for value in WRONG:
        changed = nested(key, value)
        first = key.partition(".")[0]
        if isinstance(base.get(first), dict) and isinstance(changed[first], dict):
            changed[first] = {**base[first], **changed[first]}
        error = outcome(tmp_path, yaml.safe_dump({**base, **changed}), capsys)
        refused += bool(error)
        if "out of" in error or "wrong type" in error:
            assert "m.yaml" in error
    assert refused > 0


def test_numbers_have_their_range(tmp_path: Path, source: Path) -> None:
    for key, value, message in (
        ("chunk_bytes", -1, "'chunk_bytes': -1 must lie between 0 and 1000000000000000"),
        ("filter.near_duplicate", 1.5, "'filter.near_duplicate': 1.5 must lie between 0 and 1"),
        ("filter.max_word", float("nan"), "'filter.max_word': nan must lie between 0 and"),
        ("filter.passage_lines", 10**9, "'filter.passage_lines': 1000000000 must lie between 0 and 1000"),
        ("limits.documents", -5, "'limits.documents': -5 must"),
        ("scales.tiny.bytes", -5, "'scales.tiny.bytes': -5 must"),
        ("installed.file_bytes", -5, "'installed.file_bytes': -5 must"),
        ("holdout", 0.5, "'holdout': 0.5 must lie between 0 and 0.5"),
    ):
        path = tmp_path / "m.yaml"
        path.write_text(yaml.safe_dump({"kind": "jsonl", "files": [str(source)], **nested(key, value)}))
        with pytest.raises(InputError) as error:
            load_manifest(path)
        assert str(error.value).startswith(f"{path}: key {message}"), error.value


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(12)
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("kind: jsonl\nfield: [x]\n", "unknown key 'field'; known here: kind, licence, source, content, files,"),
        ("filter: {min_char: 3}\n", "unknown key 'filter.min_char'; known here: language, min_chars, max_chars,"),
        ("limits: {byte: 3}\n", "unknown key 'limits.byte'; known here: documents, bytes"),
        ("licence: caf\xe9\n".encode("latin-1"), "is no UTF-8 (invalid continuation byte); convert it with iconv"),
        (BOMB, "more than 10,000 entries, its aliases written out"),
        ("files: &a [*a]\n", "more than 10,000 entries, its aliases written out"),
        ("files: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        ("source: " + "x" * (1 << 20), "is longer than 1 MiB"),
        ("source: ${licence}${licence}\n", "'${licence}${licence}': only ${oc.env:NAME,default} is understood"),
        ("limits: {bytes: " + "9" * 5000 + "}\n", "is no YAML (Exceeds the limit"),
        ("source: 2024-13-45\n", "is no YAML (month must be in 1..12"),
        ("kind: text\nkind: text\n", "is no YAML ("),
        ("word\n", "unknown key 'word'; known here: kind,"),
        ("7\n", "is no mapping of keys to values"),
        ("", "key 'files': kind text needs it"),
        ("files: ['']\n", "key 'files': kind text needs it, without empty entries"),
        ("files: [a]\nfields: []\n", "key 'fields': kind text needs it"),
        ("files: [a]\nseparator: 'x{99999999999}'\n", "key 'separator': is no regular expression"),
        ("kind: installed-docs\ninstalled: {packages: [sys]}\n", "package sys is built into Python and has no source"),
        ("kind: installed-docs\ninstalled: {packages: ['numpy./../..']}\n", "'numpy./../..' is no name of a module"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(
    content: str | bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in outcome(tmp_path, content, capsys)


def test_aliases_and_variables_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOOKS", "/books")
    path = tmp_path / "m.yaml"
    path.write_bytes(
        b"\xef\xbb\xbffiles: ['${oc.env:BOOKS}/a', '${oc.env:NO_BOOKS,/b}']\n"
        b"limits: &l {bytes: 1_000_000}\nscales: {tiny: *l}\n"
    )
    found = load_manifest(path)
    assert found.files == ["/books/a", "/b"]
    assert found.scales == {"tiny": {"bytes": 1_000_000}}


@pytest.mark.parametrize("name", ["x$(touch F)", "-x", ".x", "a b", "a;b", "x" * 101, "\xe9", "a\n"])
def test_names_of_corpora_that_a_shell_could_run_are_refused(
    name: str, tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from hope_data.loader import Loader, LoaderConfig

    manifest = tmp_path / f"{name}.yaml"
    manifest.write_text("files: [x]\n")
    for command in (
        ["acquire", f"--manifest={manifest}", f"--out={tmp_path / 'o'}"],
        ["shard", str(data / "clean" / "b"), f"--tokenizer={data / 'tokenizer'}", f"--out={tmp_path / name}"],
        ["validate", str(data / "shards"), f"--corpora={name}"],
    ):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert "a name has at most 100 letters, digits, '_', '-' and '.'" in error
        assert error.count("\n") == 1
    for config in ({"corpora": [name]}, {"weights": {name: 1.0}}):
        with pytest.raises(InputError, match="a name has at most 100 letters"):
            Loader(LoaderConfig(str(data / "shards"), **config), "train", 0)  # type: ignore[arg-type]
    assert not (tmp_path / "F").exists()
