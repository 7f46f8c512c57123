import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hope_data import documents, sharding
from hope_data.bpb import bits_per_byte
from hope_data.cli import main
from hope_data.errors import InputError
from hope_data.shards import Split, token_type
from hope_data.splits import SPLITS, SplitRule
from hope_data.tokenizer import Tokenizer
from hope_data.validate import validate


def test_documents_come_back_whole_in_their_splits(data: Path) -> None:
    tok = Tokenizer.load(data / "tokenizer")
    rule = SplitRule.from_dict(documents.provenance(data / "clean" / "a")["split"])
    total = 0
    for name in SPLITS:
        split = Split.open(data / "shards" / "a", name, tok)
        texts = [d.text for d in documents.read(data / "clean" / "a") if rule.of(d.meta["sha256"]) == name]
        assert split.n_documents == len(texts) > 0
        assert [tok.decode(split.document(i)) for i in range(len(texts))] == texts
        assert [split.document_bytes(i) for i in range(len(texts))] == [len(t.encode()) for t in texts]
        assert split.n_bytes == sum(len(t.encode()) for t in texts)
        assert split.n_tokens == sum(len(tok.encode(t)) + 1 for t in texts) == len(split.tokens)
        assert split.tokens.dtype == np.uint16
        total += len(texts)
    assert total == 300


def test_token_type_at_its_edge() -> None:
    assert token_type(65_536).itemsize == 2
    assert token_type(65_537).itemsize == 4


def test_split_shares_and_copies() -> None:
    rule = SplitRule(val=0.1, test=0.2)
    rng = random.Random(0)
    counts = dict.fromkeys(SPLITS, 0)
    for _ in range(20_000):
        counts[rule.of(f"{rng.getrandbits(256):064x}")] += 1
    # Five standard errors of a share of 20,000 draws are 0.014 at most.
    assert counts["val"] / 20_000 == pytest.approx(0.1, abs=0.014)
    assert counts["test"] / 20_000 == pytest.approx(0.2, abs=0.014)
    assert SplitRule(lowest="f" * 63 + "0").of("f" * 63 + "0") == "val"
    assert SplitRule(highest="5" * 64).of("5" * 64) == "test"


def test_a_corpus_of_three_documents_fills_every_split(
    data: Path, tmp_path: Path, make_corpus: Callable[..., Path], sentences: Callable[[int, int], str]
) -> None:
    clean = make_corpus(tmp_path, "c", [sentences(i, 5) for i in range(3)])
    index = sharding.shard(clean, data / "tokenizer", tmp_path / "s", workers=1)
    assert [index["splits"][name]["documents"] for name in SPLITS] == [1, 1, 1]


def test_a_corpus_of_two_documents_is_refused(
    data: Path, tmp_path: Path, make_corpus: Callable[..., Path], sentences: Callable[[int, int], str]
) -> None:
    clean = make_corpus(tmp_path, "c", [sentences(i, 5) for i in range(2)])
    with pytest.raises(InputError, match="no document for the train split"):
        sharding.shard(clean, data / "tokenizer", tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_same_input_same_bytes(data: Path, tmp_path: Path) -> None:
    sharding.shard(data / "clean" / "b", data / "tokenizer", tmp_path / "b", workers=1)
    for path in (data / "shards" / "b").iterdir():
        assert (tmp_path / "b" / path.name).read_bytes() == path.read_bytes()


def test_another_tokenizer_is_refused(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "t"
    assert main(["tokenizer", str(data / "clean"), "--out", str(other), "--vocab-size", "350"]) == 0
    with pytest.raises(InputError, match="were made with tokenizer"):
        Split.open(data / "shards" / "a", "val", Tokenizer.load(other))
    capsys.readouterr()
    assert main(["validate", str(data / "shards"), "--tokenizer", str(other)]) == 2
    assert "run `hope-data shard` with this tokenizer" in capsys.readouterr().err


def test_validate_counts_the_mixture(data: Path) -> None:
    record = validate(data / "shards", tokenizer_folder=data / "tokenizer")
    a, b, total = record["corpora"]["a"], record["corpora"]["b"], record["total"]
    assert (a["documents"], b["documents"], total["documents"]) == (300, 100, 400)
    assert a["share"] + b["share"] == pytest.approx(1)
    assert a["share"] == pytest.approx(a["train_tokens"] / (a["train_tokens"] + b["train_tokens"]))
    assert a["tokens"] == sum(a[f"{name}_tokens"] for name in SPLITS)
    assert total["bytes_per_token"] == pytest.approx(total["bytes"] / total["tokens"])


def test_every_flipped_byte_is_named(data: Path, tmp_path: Path) -> None:
    """Any one changed byte of shards, index or tokenizer stops validate, which names the file."""
    work = tmp_path / "w"
    shutil.copytree(data / "shards" / "b", work / "shards" / "b")
    shutil.copytree(data / "tokenizer", work / "tokenizer")
    files = sorted(p for p in work.rglob("*") if p.is_file())
    rng = random.Random(0)
    for _ in range(150):
        path = rng.choice(files)
        original = path.read_bytes()
        damaged = bytearray(original)
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=path.name.replace(".json", ".(json|model)")):
            validate(work / "shards", tokenizer_folder=work / "tokenizer")
        path.write_bytes(original)
    validate(work / "shards", tokenizer_folder=work / "tokenizer")


def test_opening_notices_a_cut_file(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data / "shards" / "b", tmp_path / "b")
    path = tmp_path / "b" / "val.bin"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(InputError, match=r"val\.bin"):
        Split.open(tmp_path / "b", "val")
    with pytest.raises(InputError, match="must be one of train, val, test"):
        Split.open(tmp_path / "b", "dev")


def test_bits_per_byte() -> None:
    assert bits_per_byte(8 * np.log(2), 4) == pytest.approx(2.0)
    with pytest.raises(InputError):
        bits_per_byte(1.0, 0)
