"""Data whose hash differs from its record is never read, by whatever command; seals spare only what nobody touched."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hope_data import seals
from hope_data.errors import InputError
from hope_data.files import dump_sealed, load_sealed, sha256_file
from hope_data.loader import Loader, LoaderConfig, eval_windows
from hope_data.shards import Shard, Split
from hope_data.splits import SPLITS
from hope_data.validate import validate

FLIPS = int(os.environ.get("HOPE_FLIPS", "40"))


@pytest.fixture
def shards(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the shards of b, and a cache folder of our own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Path(shutil.copytree(data / "shards" / "b", tmp_path / "shards" / "b"))


def flip(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def test_no_changed_byte_is_read(shards: Path) -> None:
    draw = random.Random(0)
    for _ in range(FLIPS):
        path = draw.choice(sorted(shards.glob("*.bin")))
        original = path.read_bytes()
        flip(path, draw)
        split = path.name.split(".")[0]
        for read in (
            lambda split=split: Split.open(shards, split),
            lambda split=split: Loader(LoaderConfig(str(shards.parent), length=16), split, seed=0),
            lambda split=split: eval_windows(shards, 16, 4, split),
        ):
            with pytest.raises(InputError, match=path.name):
                read()
        path.write_bytes(original)
    Loader(LoaderConfig(str(shards.parent), length=16), "train", seed=0)


@pytest.fixture
def sealed(shards: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Opens the train split in what is like another process each time; returns the shards that were read."""
    monkeypatch.setattr(seals, "_SMALL", 0)
    read: list[Shard] = []
    check = Shard.check

    def counted(self: Shard, *args: Any, **kwargs: Any) -> None:
        read.append(self)
        check(self, *args, **kwargs)

    monkeypatch.setattr(Shard, "check", counted)

    def open_again() -> int:
        seals._checked.clear()
        before = len(read)
        Split.open(shards, "train")
        return len(read) - before

    return open_again


def test_a_seal_spares_reading_what_nobody_touched(
    sealed: Callable[[], int], shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [sealed(), sealed()] == [1, 1]  # just made: it may change within the same tick of the clock
    monkeypatch.setattr(seals, "_SETTLED", -10.0)
    assert [sealed(), sealed()] == [1, 0]
    Split.open(shards, "train", reread=True)
    (seal,) = (tmp_path / "cache" / "hope-data" / "seals").iterdir()
    assert seal.stat().st_mode & 0o777 == 0o600
    assert seal.parent.stat().st_mode & 0o077 == 0
    assert sorted(p.name for p in shards.iterdir()) == sorted(
        p.name for p in shards.iterdir() if p.name[0] != "."
    )
    path, times = shards / "train.bin", (shards / "train.bin").stat()
    flip(path, random.Random(1))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as if nothing had been written
    with pytest.raises(InputError, match=r"train\.bin: is damaged"):
        sealed()


def test_a_seal_that_others_could_have_written_counts_for_nothing(
    sealed: Callable[[], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seals, "_SETTLED", -10.0)
    assert [sealed(), sealed()] == [1, 0]
    folder = tmp_path / "cache" / "hope-data" / "seals"
    (seal,) = folder.iterdir()
    for place, mode in ((seal, 0o620), (folder, 0o777)):
        before = place.stat().st_mode
        place.chmod(mode)
        assert sealed() == 1
        place.chmod(before)
    seal.write_text(seal.read_text().replace("1", "2", 1))
    assert [sealed(), sealed()] == [1, 0]


def test_no_home_and_no_room_for_a_seal_are_no_error(
    sealed: Callable[[], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seals, "_SETTLED", -10.0)
    (tmp_path / "cache").write_text("a file where a folder should be")
    assert [sealed(), sealed()] == [1, 1]


def test_validate_reads_everything_and_seals_it(
    sealed: Callable[[], int], shards: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seals, "_SETTLED", -10.0)
    validate(shards, tokenizer_folder=data / "tokenizer")
    assert sealed() == 0
    flip(shards / "val.docs.bin", random.Random(0))
    with pytest.raises(InputError, match=r"val\.docs\.bin"):
        validate(shards)


def forged(shards: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the index and seal it again."""
    index = load_sealed(shards / "index.json", "")
    change(index)
    (shards / "index.json").write_bytes(dump_sealed(index))


def test_a_token_outside_the_vocabulary_is_one_line(shards: Path) -> None:
    path = shards / "train.bin"
    tokens = np.memmap(path, "<u2", "r+", 32)
    tokens[7] = 65_535
    tokens.flush()
    forged(shards, lambda index: index["splits"]["train"]["files"].update({"train.bin": sha256_file(path)}))
    with pytest.raises(InputError, match=r"train\.bin: token 65535 is outside the vocabulary of 400"):
        Split.open(shards, "train")


def test_an_index_without_hashes_is_refused(shards: Path) -> None:
    forged(shards, lambda index: index["splits"]["train"]["files"].pop("train.bin"))
    with pytest.raises(InputError, match=r"train\.bin"):
        Split.open(shards, "train")
    forged(shards, lambda index: index["splits"]["train"].pop("files"))
    with pytest.raises(InputError, match=r"index\.json: has no splits\.train\.files"):
        Split.open(shards, "train")


def places(value: Any, where: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every key of nested dictionaries."""
    inner = [p for k, v in value.items() for p in places(v, (*where, k))] if isinstance(value, dict) else []
    return [where, *inner] if where else inner


def test_wrong_types_in_an_index_are_one_line(shards: Path) -> None:
    index = load_sealed(shards / "index.json", "")
    needed = [p for p in places(index) if p[0] != "provenance"]
    assert len(needed) > 20
    for place in needed:
        for wrong in (None, -1, 10**30, 1e400, "x", [], {}, [[1]], True):
            changed = json.loads(json.dumps(index))
            inner = changed
            for key in place[:-1]:
                inner = inner[key]
            inner[place[-1]] = wrong
            (shards / "index.json").write_bytes(dump_sealed(changed))
            messages = []
            for name in SPLITS:
                try:
                    Split.open(shards, name)
                except InputError as error:
                    messages.append(str(error))
            of_split = place[0] == "splits" and len(place) > 1
            accepted = place in {("corpus",), ("tokenizer_sha256",)} and wrong == "x"
            assert not any("\n" in message for message in messages)
            assert len(messages) >= (0 if accepted else 1 if of_split else 3), (place, wrong)


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b'{"a":' * 400 + b"1" + b"}" * 400, b'{"seal": "\\ud800"}', b"7"]
)
def test_nested_json_is_one_line(content: bytes, shards: Path) -> None:
    (shards / "index.json").write_bytes(content)
    with pytest.raises(InputError, match=r"index\.json: is damaged") as error:
        Split.open(shards, "train")
    assert "\n" not in str(error.value)
