import gzip
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import zstandard

from hope_data import acquire, documents, hub, sources
from hope_data.config import Hub, Manifest
from hope_data.errors import InputError, Unfinished
from hope_data.files import sha256_bytes


def read(**settings: object) -> list[str]:
    return [d.text for d in sources.documents(Manifest(**settings))]  # type: ignore[arg-type]


def rows(*texts: str) -> bytes:
    return "".join(json.dumps({"text": t}) + "\n" for t in texts).encode()


def test_jsonl_plain_gz_and_zst_in_sorted_order(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_bytes(rows("1") + b"\n" + rows("2"))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(rows("3"), mtime=0))
    # Two frames, the second larger than any buffer.
    long = "x" * 300_000
    (tmp_path / "b.jsonl.zst").write_bytes(
        zstandard.compress(rows("4", "ü")) + zstandard.compress(rows(long))
    )
    assert read(kind="jsonl", files=[str(tmp_path)]) == ["3", "4", "ü", long, "1", "2"]
    assert read(kind="jsonl", files=[str(tmp_path / "*.gz")]) == ["3"]


def test_fields_strings_and_lists_are_joined(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"head": "H", "body": ["x", "y"]}\n')
    assert read(kind="jsonl", files=[str(path)], fields=["head", "body"], joiner="-") == ["H-x-y"]


def test_text_folder_separator_and_markup(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "b.md").write_bytes("\ufeffsecond\r\nfile\n".encode())
    (tmp_path / "a.txt").write_text("<doc id=1>\none\n</doc>\n<doc id=2>\ntwo\n</doc>\n")
    (tmp_path / "ignored.pdf").write_text("no")
    found = read(files=[str(tmp_path)], separator="^</doc>", drop_lines="^</?doc")
    assert found == ["one\n", "two\n", "second\nfile\n"]


def test_gutenberg_frame_is_cut(tmp_path: Path) -> None:
    book = "Chapter 1\n\nIt was a dark night.\n"
    for name, end in (
        ("a", "*** END OF THIS PROJECT GUTENBERG EBOOK X ***"),
        ("b", "End of Project Gutenberg's X"),
    ):
        head = "Licence\n\n*** START OF THIS PROJECT GUTENBERG EBOOK X ***\n"
        (tmp_path / f"{name}.txt").write_text(f"{head}\n{book}\n{end}\nMore licence\n")
    (tmp_path / "c.txt").write_text("A text about the end.\nEnd of Project Gutenberg is mentioned.\n")
    assert read(files=[str(tmp_path)])[:2] == [book, book]
    assert "mentioned" in read(files=[str(tmp_path)])[2]


def test_chunks_end_at_paragraphs_and_lose_nothing_but_blank_lines(tmp_path: Path) -> None:
    paragraphs = [f"Paragraph {i} " + "word " * 30 + "end." for i in range(40)]
    (tmp_path / "a.txt").write_text("\n\n".join(paragraphs) + "\n")
    chunks = read(files=[str(tmp_path)], chunk_bytes=1000)
    assert "\n\n".join(c.strip("\n") for c in chunks) == "\n\n".join(paragraphs)
    assert all(c.endswith("end.\n") for c in chunks)
    assert all(1000 <= len(c) < 1200 for c in chunks[:-1])


def test_parquet_and_local_hf_data_set(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pa.table({"text": ["a", "b"], "n": [1, 2]}), tmp_path / "test-00000-of-00001.parquet")
    assert read(kind="parquet", files=[str(tmp_path)]) == ["a", "b"]
    pytest.importorskip("datasets")
    # There is no train split: the only one there is serves.
    assert read(kind="hf", hub=Hub(path=str(tmp_path))) == ["a", "b"]
    with pytest.raises(InputError, match="no field 'content'"):
        read(kind="hf", hub=Hub(path=str(tmp_path)), fields=["content"])
    with pytest.raises(InputError, match="no field 'content' \\(it has text, n\\)"):
        read(kind="parquet", files=[str(tmp_path)], fields=["content"])


def test_unreachable_hub_names_the_alternatives(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(InputError, match=r"someone/something.*out of reach.*local folder.*installed-docs"):
        read(kind="hf", hub=Hub(path="someone/something"))


@pytest.mark.parametrize("chunk_bytes", [0, 90])
def test_the_commit_that_a_branch_meant_is_recorded_and_kept_to(
    chunk_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the hub's place stands one whose branch moves whenever asked; a run that goes on reads what it began with."""
    pa = pytest.importorskip("pyarrow")
    datasets = pytest.importorskip("datasets")
    from huggingface_hub import HfApi, constants
    from pyarrow import parquet

    (tmp_path / "d").mkdir()
    texts = [f"{i} " + "word " * 20 + "\n\n" + "word " * 20 + "\n" for i in range(100)]
    parquet.write_table(pa.table({"text": texts}), tmp_path / "d" / "train-0.parquet", row_group_size=10)
    real, asked, loaded, commits = datasets.load_dataset, [], [], iter("abcdef")

    def info(_: object, path: str, revision: str | None, timeout: float) -> SimpleNamespace:
        asked.append((path, revision))
        return SimpleNamespace(sha=next(commits) * 40, timeout=timeout)

    def load(path: str, name: str | None, revision: str, **more: object) -> object:
        loaded.append((path, revision))
        return real(str(tmp_path / "d"), name, **more)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "_probe", lambda _: None)
    monkeypatch.setattr(HfApi, "dataset_info", info)
    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda *_, revision: ["train"])
    manifest = tmp_path / "m.yaml"
    manifest.write_text(f"kind: hf\nhub: {{path: some/set, revision: main}}\nchunk_bytes: {chunk_bytes}\n")
    monkeypatch.setattr(acquire, "PART_BYTES", 5_000)
    seal = acquire.Work.seal

    def stop_after_two(self: object, step: str, i: int, found: dict[str, object]) -> None:
        seal(self, step, i, found)  # type: ignore[arg-type]
        if i == 1:
            raise Unfinished("the network is gone")

    with monkeypatch.context() as patch:
        patch.setattr(acquire.Work, "seal", stop_after_two)
        with pytest.raises(Unfinished):
            acquire.acquire(manifest, "", tmp_path / "o")
    record = acquire.acquire(manifest, "", tmp_path / "o")
    assert asked == [("some/set", "main")]
    assert loaded == [("some/set", "a" * 40)] * 2
    assert (record["manifest"]["hub"]["revision"], record["commit"]) == ("main", "a" * 40)
    found = list(documents.read(tmp_path / "o"))
    assert len(found) == (200 if chunk_bytes else 100)
    assert {d.meta["revision"] for d in found} == {"a" * 40}


def test_a_full_commit_and_a_cache_without_the_hub_ask_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.resolve("some/set", "0123456789abcdef" * 2 + "01234567") == "0123456789abcdef" * 2 + "01234567"
    assert hub.resolve("some/set", "main") == ""


def test_files_of_a_local_data_set_are_hashed(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "d" / "data").mkdir(parents=True)
    (tmp_path / "d" / "data" / "train.jsonl").write_bytes(rows("a", "b", "c"))
    (tmp_path / "m.yaml").write_text(f"kind: hf\nhub: {{path: '{tmp_path / 'd'}'}}\n")
    record = acquire.acquire(tmp_path / "m.yaml", "", tmp_path / "o")
    assert record["sources"] == {"data/train.jsonl": sha256_bytes(rows("a", "b", "c"))}
    assert record["commit"] == ""


def bad_json(folder: Path) -> str:
    (folder / "a.jsonl").write_bytes(rows("fine", "fine") + b"{oops\n")
    return r"a\.jsonl, line 3: is no JSON"


def bad_utf8(folder: Path) -> str:
    (folder / "a.jsonl").write_bytes(rows("fine") + b'{"text": "\xff"}\n')
    return r"a\.jsonl, line 2: is no UTF-8"


def no_object(folder: Path) -> str:
    (folder / "a.jsonl").write_text("[1]\n")
    return r"a\.jsonl, line 1: is no JSON object"


def no_field(folder: Path) -> str:
    (folder / "a.jsonl").write_text('{"body": "x"}\n')
    return r"a\.jsonl, line 1: no field 'text' \(it has body\); set `fields`"


def no_text(folder: Path) -> str:
    (folder / "a.jsonl").write_text('{"text": 3}\n')
    return r"a\.jsonl, line 1: field 'text' is no text"


def cut_gz(folder: Path) -> str:
    whole = gzip.compress(rows(*(str(i) * 50 for i in range(1000))), mtime=0)
    (folder / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    return r"a\.jsonl\.gz, line \d+: compressed file is cut off"


def cut_zst(folder: Path) -> str:
    # Cut within the checksum: every line is there, and still the file is not whole.
    whole = zstandard.ZstdCompressor(write_checksum=True).compress(rows(*(str(i) * 50 for i in range(1000))))
    (folder / "a.jsonl.zst").write_bytes(whole[:-2])
    return r"a\.jsonl\.zst, line \d+: .*cut off"


def no_gz(folder: Path) -> str:
    (folder / "a.jsonl.gz").write_text("plain text")
    return r"a\.jsonl\.gz, line 1: compressed file"


def nothing(folder: Path) -> str:
    return "no jsonl file here"


@pytest.mark.parametrize(
    "make", [bad_json, bad_utf8, no_object, no_field, no_text, cut_gz, cut_zst, no_gz, nothing]
)
def test_bad_jsonl_names_file_and_line(make: object, tmp_path: Path) -> None:
    message = make(tmp_path)  # type: ignore[operator]
    with pytest.raises(InputError, match=message):
        read(kind="jsonl", files=[str(tmp_path)])


def test_text_that_is_no_utf8(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"fine\ncaf\xe9\n")
    with pytest.raises(InputError, match=r"a\.txt, line 2: is no UTF-8"):
        read(files=[str(tmp_path)])
