"""Two of the same command at once: one output, whole; the loser is refused in one line or does it again."""

import os
import random
import re
import shutil
import sys
import time
from pathlib import Path

import pytest
from disturbed import Commands, Ended, folder_bytes

STEPS = ("acquire", "filter", "shard", "tokenizer", "validate", "look")


def arguments(step: str, data: Path, many: Path, out: Path) -> list[object]:
    return {
        "acquire": ["acquire", "--manifest", data / "a.yaml", "--out", out],
        "filter": ["filter", many / "raw" / "m", "--out", out, "--workers", "1"],
        "shard": ["shard", many / "clean" / "m", "--tokenizer", data / "tokenizer", "--out", out, "--workers", "1"],
        "tokenizer": ["tokenizer", data / "clean", "--vocab-size", 380, "--out", out],
        "validate": ["validate", data / "shards", "--json", out],
        "look": ["look", data / "clean" / "b", "--html", out],
    }[step]  # fmt: skip


def content(out: Path) -> dict[str, bytes]:
    return folder_bytes(out) if out.is_dir() else {out.name: out.read_bytes()}


def checked(pair: list[Ended], out: Path) -> int:
    """How many were refused."""
    refused = [ended for ended in pair if ended.code]
    assert len(refused) < 2, pair
    for ended in refused:
        assert ended.code == 2, ended
        assert ended.err.count("\n") == 1, ended
        # Between locking and noting its number, the first is "another process".
        assert re.match(
            rf"error: {re.escape(str(out))}: (process \d+|another process) is writing", ended.err
        ), ended
    return len(refused)


@pytest.mark.parametrize("pairs", [3, pytest.param(100, marks=pytest.mark.long)])
@pytest.mark.parametrize("step", STEPS)
def test_two_at_once_leave_one_whole_output(
    step: str, pairs: int, data: Path, many: Path, tmp_path: Path, commands: Commands
) -> None:
    out = tmp_path / "o" / "m"
    command, draw = arguments(step, data, many, out), random.Random(0)
    begin = time.monotonic()
    assert [ended.code for ended in commands.run(command)] == [0]
    seconds = time.monotonic() - begin
    expected, refused = content(out), 0
    for k in range(pairs):
        if k % 2:  # every other pair finds the finished output of an earlier run
            shutil.rmtree(out.parent)
        # At the same moment, and in the end while the first renames its folder.
        delay = draw.choice([0, draw.uniform(0, seconds), draw.uniform(0.8, 1.05) * seconds])
        refused += checked(commands.run(command, command, delay=delay if k else 0), out)
        assert content(out) == expected
        assert os.listdir(out.parent) == [out.name]  # noqa: PTH208
    sys.stdout.write(f"{step}: {pairs} pairs, {refused} refused\n")
