import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hope_data import documents, overlap, sharding
from hope_data.bpb import bits_per_byte
from hope_data.cli import main
from hope_data.errors import InputError
from hope_data.files import dump_sealed, load_sealed, sha256_file
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
    assert len({a["sha256"], b["sha256"]}) == 2
    assert a["sha256"] == sha256_file(data / "shards" / "a" / "index.json")
    assert total["bytes_per_token"] == pytest.approx(total["bytes"] / total["tokens"])


def test_every_flipped_byte_is_named(data: Path, tmp_path: Path) -> None:
    """Any one changed byte of shards, index or tokenizer stops validate, which names the file."""
    work = tmp_path / "w"
    shutil.copytree(data / "shards" / "b", work / "shards" / "b")
    shutil.copytree(data / "tokenizer", work / "tokenizer")
    files = sorted(p for p in work.rglob("*") if p.is_file())
    rng = random.Random(0)
    # 1,000 were run once for the record: HOPE_FLIPS=1000 pytest -k flipped
    for _ in range(int(os.environ.get("HOPE_FLIPS", "100"))):
        path = rng.choice(files)
        original = path.read_bytes()
        damaged = bytearray(original)
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=path.name.replace(".json", ".(json|model)")):
            validate(work / "shards", tokenizer_folder=work / "tokenizer")
        path.write_bytes(original)
    validate(work / "shards", tokenizer_folder=work / "tokenizer")


def naive_runs(split: Split) -> dict[tuple[int, ...], int]:
    """Every run of 16 tokens within a document, counted."""
    found: dict[tuple[int, ...], int] = {}
    for i in range(split.n_documents):
        tokens = split.document(i).tolist()
        for k in range(len(tokens) - 15):
            run = tuple(tokens[k : k + 16])
            found[run] = found.get(run, 0) + 1
    return found


def test_bytes_that_disagree_with_the_tokens_are_named_with_a_remedy(data: Path, tmp_path: Path) -> None:
    """Lengths moved from one document to the next, and every hash made to fit."""
    folder = shutil.copytree(data / "shards" / "b", tmp_path / "shards" / "b")
    path = folder / "train.docs.bin"
    items = np.frombuffer(path.read_bytes()[32:], "<i8").reshape(-1, 2).copy()
    before = items[:2, 1].tolist()
    items[:2, 1] += [3, -3]
    path.write_bytes(path.read_bytes()[:32] + items.tobytes())
    index = load_sealed(folder / "index.json", "")
    index["splits"]["train"]["files"][path.name] = sha256_file(path)
    (folder / "index.json").write_bytes(dump_sealed(index))
    said = (
        rf"train\.bin: document 0 has {before[0]} bytes by its tokens, {before[0] + 3} by train\.docs\.bin; "
        "run `hope-data shard` for it again"
    )
    with pytest.raises(InputError, match=said):
        validate(tmp_path / "shards", tokenizer_folder=data / "tokenizer")


def test_overlap_agrees_with_counting_every_run(
    data: Path, tmp_path: Path, make_corpus: Callable[..., Path], sentences: Callable[[int, int], str]
) -> None:
    """c holds 120 of a's 300 documents (as trained on), some text of its own, and one text three times over."""
    texts = [sentences(i, 12) + f"End of {i}.\n" for i in range(120)] + [
        sentences(5000 + i, 12) for i in range(120)
    ]
    texts += [sentences(7000, 60) + sentences(7001 + i, 4) for i in range(9)]
    clean = make_corpus(tmp_path, "c", texts, "filter: {language: '', near_duplicate: 0}")
    sharding.shard(clean, data / "tokenizer", tmp_path / "c", workers=1)
    splits = {
        name: {s: Split.open(folder, s) for s in SPLITS}
        for name, folder in (("a", data / "shards" / "a"), ("c", tmp_path / "c"))
    }
    table = overlap.table(splits)
    runs = {name: naive_runs(found["train"]) for name, found in splits.items()}
    for one, other in (("a", "c"), ("c", "a")):
        cell = table["between"][one][other]
        exact = len(runs[one].keys() & runs[other].keys()) / len(runs[one])
        assert 0.2 < exact < 0.6
        assert cell["se"] == pytest.approx((cell["share"] * (1 - cell["share"]) / cell["n"]) ** 0.5)
        # A sixteenth is looked at. Neighbours share their fate, so allow more than their independence would.
        assert cell["n"] == pytest.approx(len(runs[one]) / 16, rel=0.15)
        assert cell["share"] == pytest.approx(exact, abs=0.08)
    repeated = sum(n > 1 for n in runs["c"].values()) / len(runs["c"])
    assert table["between"]["c"]["c"]["share"] == pytest.approx(repeated, abs=0.03)
    assert repeated > 0.01
    held_out = {run for s in ("val", "test") for run in naive_runs(splits["c"][s])}
    leaked = len(held_out & (runs["a"].keys() | runs["c"].keys())) / len(held_out)
    assert table["held_out"]["c"]["share"] == pytest.approx(leaked, abs=0.15)


def test_an_index_that_leads_elsewhere_is_refused(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data / "shards" / "b", tmp_path / "b")
    index = load_sealed(tmp_path / "b" / "index.json", "")
    files = index["splits"]["val"]["files"]
    files["../../a/val.docs.bin"] = files.pop("val.docs.bin")
    (tmp_path / "b" / "index.json").write_bytes(dump_sealed(index))
    with pytest.raises(InputError, match="which leaves its folder"):
        Split.open(tmp_path / "b", "val")


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
