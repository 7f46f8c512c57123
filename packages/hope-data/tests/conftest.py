"""A small corpus, made by the real commands once per session."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from hope_data.cli import main

WORDS = """
the of and to in is that for it was on are as with they be at one have this from by hot word but what some we can out
other were all there when up use your how said an each she which do their time if will way about many then them write
would like so these her long make thing see him two has look more day could go come did"""


def _sentences(seed: int, count: int) -> str:
    """English-looking text that differs for every seed."""
    rng = random.Random(seed)
    lines = (
        " ".join(rng.choices(WORDS.split(), k=rng.randint(6, 14))).capitalize() + "." for _ in range(count)
    )
    return "\n".join(lines) + "\n"


def _write_jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def _make_corpus(root: Path, name: str, texts: list[str], manifest: str = "filter: {language: ''}") -> Path:
    """Acquire and filter; returns the clean folder."""
    source = _write_jsonl(root / f"{name}.jsonl", texts)
    path = root / f"{name}.yaml"
    path.write_text(f"kind: jsonl\nlicence: test\nfiles: ['{source}']\n{manifest}\n")
    assert main(["acquire", "--manifest", str(path), "--out", str(root / "raw" / name)]) == 0
    assert main(["filter", str(root / "raw" / name), "--out", str(root / "clean" / name)]) == 0
    return root / "clean" / name


@pytest.fixture(scope="session")
def sentences() -> Callable[[int, int], str]:
    """Text from (seed, lines)."""
    return _sentences


@pytest.fixture(scope="session")
def make_corpus() -> Callable[..., Path]:
    """Clean folder from (root, name, texts, more lines of the manifest)."""
    return _make_corpus


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with clean/, tokenizer/ and shards/ of corpora a (300 documents) and b (100)."""
    root = tmp_path_factory.mktemp("data")
    _make_corpus(root, "a", [_sentences(i, 12) for i in range(300)])
    _make_corpus(root, "b", [_sentences(1000 + i, 12) for i in range(100)])
    tokenizer = str(root / "tokenizer")
    assert main(["tokenizer", str(root / "clean"), "--out", tokenizer, "--vocab-size", "400"]) == 0
    for name in "ab":
        clean, out = str(root / "clean" / name), str(root / "shards" / name)
        assert main(["shard", clean, "--tokenizer", tokenizer, "--out", out]) == 0
    return root
