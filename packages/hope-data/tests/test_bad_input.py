"""What people and networks really hand over: each is one line on stderr, exit code 2, and nothing half-written."""

import gzip
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard

from hope_data import compressed, decontaminate, documents
from hope_data.cli import main
from hope_data.errors import InputError
from hope_data.files import dump_sealed, load_sealed

PROSE = (
    "The harbour was quiet when the first boats came home, and nobody on the quay spoke for a long time. " * 4
)


def acquire(folder: Path, name: str, kind: str = "jsonl") -> int:
    (folder / "m.yaml").write_text(f"kind: {kind}\nfiles: ['{folder / name}']\nlicence: t\n")
    return main(["acquire", "--manifest", str(folder / "m.yaml"), "--out", str(folder / "out" / "o")])


def invalid_utf8(folder: Path) -> tuple[str, str, str]:
    (folder / "a.jsonl").write_bytes(b'{"text": "fine"}\n{"text": "\xff\xfe"}\n')
    return "a.jsonl", "jsonl", "line 2: is no UTF-8"


def no_text_field(folder: Path) -> tuple[str, str, str]:
    (folder / "a.jsonl").write_text('{"content": "x"}\n')
    return "a.jsonl", "jsonl", "no field 'text' (it has content); set `fields`"


def empty_file(folder: Path) -> tuple[str, str, str]:
    (folder / "a.txt").write_text("")
    return "a.txt", "text", "its source holds no document"


def empty_gz(folder: Path) -> tuple[str, str, str]:
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(b"", mtime=0))
    return "a.jsonl.gz", "jsonl", "its source holds no document"


def long_line(folder: Path) -> tuple[str, str, str]:
    """200 MB without an end of line, packed so that the test need not write them."""
    with zstandard.open(folder / "a.jsonl.zst", "wb") as file:
        file.write(b'{"text": "short"}\n{"text": "')
        for _ in range(200):
            file.write(b"x" * (1 << 20))
    return "a.jsonl.zst", "jsonl", "line 2: longer than 64 MiB; cut it"


def bomb(folder: Path) -> tuple[str, str, str]:
    """Ordinary lines, 400 MB of them in a few kB."""
    with zstandard.open(folder / "a.jsonl.zst", "wb") as file:
        for _ in range(400):
            file.write((b'{"text": "' + b"x" * 99_990 + b'"}\n') * 10)
    return "a.jsonl.zst", "jsonl", "times its size (a decompression bomb?)"


def bomb_of_empty_lines(folder: Path) -> tuple[str, str, str]:
    """Lists of lines take memory, however short they are: 64 MB for these."""
    (folder / "a.txt.gz").write_bytes(gzip.compress(b"\n" * (8 << 20), mtime=0))
    return "a.txt.gz", "text", "times its size (a decompression bomb?)"


def cut_gz(folder: Path) -> tuple[str, str, str]:
    whole = gzip.compress(
        b"".join(json.dumps({"text": f"{i} {PROSE}"}).encode() + b"\n" for i in range(500)), mtime=0
    )
    (folder / "a.jsonl.gz").write_bytes(whole[: len(whole) * 2 // 3])
    return "a.jsonl.gz", "jsonl", "compressed file is cut off"


def cut_zst(folder: Path) -> tuple[str, str, str]:
    whole = zstandard.compress(b'{"text": "x"}\n' * 5000)
    (folder / "a.jsonl.zst").write_bytes(whole[:-3])
    return "a.jsonl.zst", "jsonl", "compressed file is cut off"


@pytest.mark.parametrize(
    "make",
    [
        invalid_utf8,
        no_text_field,
        empty_file,
        empty_gz,
        long_line,
        bomb,
        bomb_of_empty_lines,
        cut_gz,
        cut_zst,
    ],
)
def test_is_one_line_and_leaves_nothing(
    make: object, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compressed, "_HARMLESS", 32 << 20)  # 256 MiB are seconds
    name, kind, message = make(tmp_path)  # type: ignore[operator]
    assert acquire(tmp_path, name, kind) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert not list(tmp_path.glob("out/*"))


def test_a_bomb_takes_no_memory(tmp_path: Path) -> None:
    name, _, _ = long_line(tmp_path)
    script = (
        "import re, sys; from pathlib import Path; from hope_data.compressed import lines\n"
        "try: list(lines(Path(sys.argv[1])))\n"
        # Not getrusage: that counts what the parent held when it forked.
        "except ValueError: print(re.search(r'VmHWM:\\s*(\\d+)', Path('/proc/self/status').read_text())[1])"
    )
    done = subprocess.run([sys.executable, "-c", script, tmp_path / name], capture_output=True, check=True)
    assert int(done.stdout) < 300_000  # kB; the line alone has 200 MB, and a third of it is read


def test_nul_bytes_go_and_the_rest_stays(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": PROSE.replace("boats", "bo\0ats")}) + "\n")
    assert acquire(tmp_path, "a.jsonl") == 0
    raw, clean = str(tmp_path / "out" / "o"), tmp_path / "clean"
    assert main(["filter", raw, "--out", str(clean)]) == 0
    assert [d.text for d in documents.read(clean)] == [PROSE]


@pytest.mark.parametrize("settings", ["", "chunk_bytes: 300", "limits: {bytes: 10_000}"])
def test_a_lone_surrogate_is_replaced_and_counted(
    settings: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = json.dumps({"text": f"broken \ud800 \ud83d\ude00\n\n{PROSE}\n\n"})
    (tmp_path / "a.jsonl").write_text(f'{row}\n{{"text": "sound \U0001f600"}}\n')
    (tmp_path / "m.yaml").write_text(f"kind: jsonl\nfiles: ['{tmp_path / 'a.jsonl'}']\n{settings}\n")
    out = tmp_path / "o"
    assert main(["acquire", "--manifest", str(tmp_path / "m.yaml"), "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "documents (1 with invalid Unicode, replaced), " in said.out
    assert (said.out.count("\n"), said.err) == (1, "")
    texts = [d.text for d in documents.read(out)]
    assert texts[0].startswith("broken \ufffd \U0001f600\n")
    assert texts[-1].startswith("sound \U0001f600")


def test_a_file_name_that_is_no_unicode_goes_through_every_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(8):
        name = os.fsencode(folder) + b"/caf\xe9%d.txt" % i
        Path(os.fsdecode(name)).write_text(f"Number {i} of these. " + " ".join(PROSE.split()[i : i + 60]))
    (tmp_path / "m.yaml").write_text(
        f"kind: text\nfiles: ['{folder}']\nfilter: {{max_top_trigram: 0, near_duplicate: 0}}\n"
    )
    raw, clean = str(tmp_path / "raw"), str(tmp_path / "clean")
    assert main(["acquire", "--manifest", str(tmp_path / "m.yaml"), "--out", raw]) == 0
    assert main(["filter", raw, "--out", clean]) == 0
    assert main(["look", clean]) == 0
    assert main(["look", clean, "--html", str(tmp_path / "page")]) == 0
    assert sorted(documents.provenance(tmp_path / "raw")["sources"])[0] == "caf\\xe90.txt"
    assert main(["tokenizer", clean, "--out", str(tmp_path / "tok"), "--vocab-size", "292"]) == 0
    assert main(["shard", clean, "--tokenizer", str(tmp_path / "tok"), "--out", str(tmp_path / "s")]) == 0


def test_text_that_the_terminal_cannot_show_is_escaped(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "\U0001f600 caf\u00e9"}\n')
    assert acquire(tmp_path, "a.jsonl") == 0
    script = "import sys; from hope_data.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", script, "look", str(tmp_path / "out" / "o")],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\U0001f600 caf\\xe9" in done.stdout


def test_a_provenance_that_leads_elsewhere_is_refused(data: Path, tmp_path: Path) -> None:
    record = load_sealed(data / "clean" / "b" / "provenance.json", "")
    for name in ("../a/part-00000.jsonl.zst", "/etc/passwd", "..", ""):
        record["files"] = {name: "0" * 64}
        (tmp_path / "provenance.json").write_bytes(dump_sealed(record))
        with pytest.raises(InputError, match="which leaves its folder"):
            list(documents.read(tmp_path))


@pytest.mark.parametrize("step", ["acquire", "filter", "shard", "tokenizer"])
def test_a_full_disk_is_one_line_and_what_was_there_stays(step: str, data: Path, tmp_path: Path) -> None:
    """No file may grow beyond 1 kB, which fails like a full disk does; the output of an earlier run survives."""
    source = tmp_path / "s.jsonl"
    source.write_text("".join(json.dumps({"text": os.urandom(200).hex()}) + "\n" for _ in range(200)))
    (tmp_path / "m.yaml").write_text(f"kind: jsonl\nfiles: ['{source}']\n")
    out = tmp_path / "o" / "x"
    given = {
        "acquire": ["--manifest", tmp_path / "m.yaml"],
        "filter": [data / "raw" / "a"],
        "shard": [data / "clean" / "a", "--tokenizer", data / "tokenizer"],
        "tokenizer": [data / "clean", "--vocab-size", 400],
    }[step]
    command = [
        sys.executable,
        "-c",
        "import sys; from hope_data.cli import main; sys.exit(main(sys.argv[1:]))",
    ]
    command += [step, *map(str, given), "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True)
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))

    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=limit)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {out}: cannot be written (")
    assert done.stderr.count("\n") == 1
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    subprocess.run(command, check=True, capture_output=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in out.parent.iterdir()] == ["x"]


def test_a_corpus_of_the_other_kind_is_refused_and_kept(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw, clean = tmp_path / "raw" / "a", tmp_path / "clean" / "a"
    shutil.copytree(data / "raw" / "a", raw)
    shutil.copytree(data / "clean" / "a", clean)
    out, tokenizer = str(tmp_path / "o" / "a"), ["--tokenizer", str(data / "tokenizer")]
    for command, message in (
        (
            ["shard", str(raw), *tokenizer, "--out", out],
            f"{raw}: is a raw corpus where a clean one is needed",
        ),
        (["tokenizer", str(raw), "--out", out], f"{raw}: is a raw corpus where a clean one is needed"),
        (["filter", str(clean), "--out", out], f"{clean}: is a clean corpus where a raw one is needed"),
        (
            ["filter", str(raw), "--out", str(raw)],
            f"{raw}: holds a raw corpus, which a clean one shall not replace",
        ),
        (
            ["acquire", "--manifest", str(data / "a.yaml"), "--out", str(clean)],
            f"{clean}: holds a clean corpus, which",
        ),
        (
            ["bench", str(clean), *tokenizer, "--gigabytes", "1000000"],
            "bench: needs 1100000 GB of scratch space, of",
        ),
        (
            ["tokenizer", str(clean), "--weights", "a=nan", "--out", out],
            "--weights a=nan: must be NAME=NUMBER",
        ),
    ):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {message}")
        assert error.count("\n") == 1
    assert len(list(documents.read(raw))) == 300
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"coverage": {"a": {"bytes_per_token": 0}}}', '{"coverage": 3}']
)
def test_a_guard_that_holds_no_coverage_is_one_line(
    content: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "g.json").write_text(content)
    command = [
        "tokenizer",
        str(data / "clean"),
        "--guard",
        str(tmp_path / "g.json"),
        "--out",
        str(tmp_path / "o"),
    ]
    assert main(command) == 2
    assert (
        capsys.readouterr().err
        == f"error: {tmp_path}/g.json: holds no coverage; --guard takes what `--json` wrote\n"
    )


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"[" * 100_000, "is no JSON (maximum recursion depth exceeded"),
        (b'{"q": "caf\xe9"}', "is no UTF-8 (invalid continuation byte); convert it with iconv"),
        (b'{"q": ', "is no JSON (Expecting value: line 1 column 7 (char 6)); mend or remove the line"),
    ],
)
def test_bad_evaluation_text_is_one_line(
    line: bytes, says: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "e.jsonl").write_bytes(b'\n{"text": "fine"}\n' + line)
    raw, out = str(data / "raw" / "a"), str(tmp_path / "out")
    assert main(["filter", raw, "--out", out, "--evaluation", str(tmp_path / "e.jsonl")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path}/e.jsonl, line 3: {says}")
    assert error.count("\n") == 1


def test_suffixes_in_capitals_are_unpacked_and_looked_at(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    for name in ("A.TXT", "B.TXT.GZ"):
        raw = (PROSE + name).encode()
        (tmp_path / "source" / name).write_bytes(gzip.compress(raw, mtime=0) if "GZ" in name else raw)
    assert acquire(tmp_path, "source", "text") == 0
    texts = [row.text for row in documents.read(tmp_path / "out" / "o")]
    assert texts == [f"{PROSE}{name}\n" for name in ("A.TXT", "B.TXT.GZ")]
    assert [name for name, _ in decontaminate.find([tmp_path / "source"])] == ["A", "B"]


def test_what_a_command_reads_is_kept_and_no_corpus_hides_another(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw, clean, copy = str(data / "raw" / "b"), tmp_path / "clean" / "a", tmp_path / "copy" / "a"
    for folder in (clean, copy):
        shutil.copytree(data / "clean" / "a", folder)
    out = clean / ".." / "a"
    assert main(["filter", raw, "--against", str(clean), "--out", str(out)]) == 2
    assert (
        capsys.readouterr().err
        == f"error: {out}: is read by this command, and would be lost; name another --out\n"
    )
    assert len(list(documents.read(clean))) == 300
    assert main(["tokenizer", str(clean), str(copy), "--out", str(tmp_path / "t")]) == 2
    assert capsys.readouterr().err == f"error: {copy}: is named as {clean}; give one of them, or rename it\n"
