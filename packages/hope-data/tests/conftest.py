"""A small corpus, made by the real commands once per session."""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from disturbed import Commands

from hope_data import acquire, documents, sharding
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


@pytest.fixture(scope="session")
def many(data: Path, tmp_path_factory: pytest.TempPathFactory, make_corpus: Callable[..., Path]) -> Path:
    """Folder with raw/, clean/ and shards/ of corpus m in six parts, and a tokenizer/."""
    parts = 6
    root = tmp_path_factory.mktemp("many")
    rng = random.Random(0)
    words = [f"{a}{b}" for a in ("mo", "ta", "ri", "ve", "su") for b in ("n", "lk", "st", "r", "ma", "do")]

    def lines(count: int) -> str:
        return "".join(" ".join(rng.choices(words, k=20)) + ".\n" for _ in range(count))

    said = [lines(3) for _ in range(9)]
    texts = [lines(20) + (rng.choice(said) if rng.random() < 0.2 else "") for _ in range(900)]
    texts = [texts[rng.randrange(i + 1)] if rng.random() < 0.1 else text for i, text in enumerate(texts)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(acquire, "PART_BYTES", sum(map(len, texts)) // parts + 1500)
        clean = make_corpus(root, "m", texts, "filter: {language: '', passage_lines: 3}")
    record = documents.provenance(clean)
    assert (len(record["files"]), record["dropped"].keys()) == (parts, {"duplicate"})
    assert record["cut"]["documents"] > 100
    shutil.copytree(data / "tokenizer", root / "tokenizer")
    sharding.shard(clean, root / "tokenizer", root / "shards" / "m", workers=1)
    return root


@pytest.fixture(scope="session")
def commands() -> Iterator[Commands]:
    """Runs of hope-data in processes that start at once."""
    modules = [
        f"hope_data.{n}" for n in ("acquire", "filters", "sharding", "tokenizer", "validate", "look_page")
    ]
    slow = [name for name in ("py3langid", "matplotlib") if find_spec(name)]
    slow += ["matplotlib.backends.backend_agg"] if "matplotlib" in slow else []
    with Commands("hope_data.cli:main", *modules, *slow) as running:
        yield running
