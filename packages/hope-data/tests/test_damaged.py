"""Source files that are damaged, nested or blown up: what is read is right, or one line says what is wrong."""

import gzip
import json
import os
import random
import time
from pathlib import Path

import pytest
import zstandard

from hope_data import sources
from hope_data.config import Manifest
from hope_data.errors import InputError

FLIPS = int(os.environ.get("HOPE_FLIPS", "40"))
TEXTS = [f"Document {n}: " + "the boats came home late. " * 5 for n in range(200)]


def read(path: Path, kind: str, **settings: object) -> list[str]:
    return [d.text for d in sources.documents(Manifest(kind=kind, files=[str(path)], **settings))]  # type: ignore[arg-type]


def parquet_bytes(path: Path) -> bytes:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pa.table({"text": TEXTS, "n": list(range(len(TEXTS)))})
    parquet.write_table(table, path, row_group_size=50, write_page_checksum=True)
    return path.read_bytes()


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.txt.gz", "a.parquet"])
def test_damaged_files_are_one_line(name: str, tmp_path: Path) -> None:
    path, kind = tmp_path / name, {"jsonl": "jsonl", "txt": "text", "parquet": "parquet"}[name.split(".")[1]]
    if kind == "parquet":
        content = parquet_bytes(path)
    else:
        lines = "".join(
            json.dumps({"text": text}) + "\n" if kind == "jsonl" else f"{text}\n" for text in TEXTS
        )
        pack = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor(write_checksum=True).compress}
        content = pack.get(path.suffix, bytes)(lines.encode())
    path.write_bytes(content)
    right, draw, refused = read(path, kind), random.Random(0), 0
    for k in range(FLIPS):
        damaged = bytearray(content)
        if not k:
            damaged = damaged if path.suffix == ".jsonl" else bytearray()
        elif k % 4:
            damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
        else:
            del damaged[draw.randrange(len(damaged)) :]
        path.write_bytes(damaged)
        try:
            found = read(path, kind)
        except InputError as error:
            message = str(error)
            assert "\n" not in message
            assert path.name in message
            refused += 1
        else:
            # A header's spare bits, or a letter of plain text, which nothing vouches for.
            assert found == right or path.suffix == ".jsonl"
    assert refused >= FLIPS // 4


def test_the_line_that_is_wrong_is_named_wherever_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for wrong in (
        "{oops",
        "[" * 100_000,
        '{"a":' * 50_000,
        "9" * 5000,
        '{"text": NaN}',
        '{"text": null}',
        '"x"',
        "\x00",
    ):
        lines = ['{"text": "fine"}'] * 1000
        lines[500] = wrong
        path.write_text("\n".join(lines) + "\n")
        with pytest.raises(InputError, match=r"a\.jsonl, line 501: ") as error:
            read(path, "jsonl")
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 400


def test_a_bomb_is_noticed_long_before_its_end(tmp_path: Path) -> None:
    """Five gigabytes in a few megabytes, in gzip, zstd and parquet: refused after 64 MiB."""
    line = b'{"text": "' + b"x" * 99_990 + b'"}\n'
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(line * 500, mtime=0) * 100)
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(line * 500) * 100)
    for name in ("a.jsonl.gz", "a.jsonl.zst"):
        begin = time.process_time()
        with pytest.raises(
            InputError, match=rf"{name}, line \d+: unpacks to over 300 times its size"
        ) as error:
            for _ in sources.documents(Manifest(kind="jsonl", files=[str(tmp_path / name)])):
                pass
        assert int(str(error.value).split("line ")[1].split(":")[0]) < 1500
        assert time.process_time() - begin < 10


def test_a_parquet_bomb_is_noticed(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    same = pa.DictionaryArray.from_arrays(pa.array([0] * 5000, pa.int32()), pa.array(["x" * (1 << 20)]))
    parquet.write_table(pa.table({"text": same}), tmp_path / "a.parquet", compression="zstd")
    with pytest.raises(InputError, match=r"a\.parquet, row \d\d: unpacks to over 300 times its size"):
        for _ in sources.documents(Manifest(kind="parquet", files=[str(tmp_path / "a.parquet")])):
            pass


def test_a_document_without_end_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    with (tmp_path / "a.txt").open("w") as file:
        for _ in range(70):
            file.write(("x" * 1023 + "\n") * 1024)
    with pytest.raises(InputError, match=r"a\.txt: a document of over 64 MiB; set `chunk_bytes`"):
        read(tmp_path / "a.txt", "text")
    assert len(read(tmp_path / "a.txt", "text", chunk_bytes=1 << 20)) == 35
