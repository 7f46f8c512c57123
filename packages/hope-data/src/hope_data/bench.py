"""Figures of this machine: every speed beside a reference measured in the same run, on the same text."""

import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from hope_data import dedup, documents, sharding
from hope_data.errors import InputError
from hope_data.files import dump_sealed, sha256_bytes, sha256_file
from hope_data.loader import Loader, LoaderConfig
from hope_data.shards import INDEX, header, token_type
from hope_data.splits import SPLITS
from hope_data.tokenizer import Tokenizer
from hope_data.validate import validate

_PART = 4 << 20
_SIMILARITY, _EDITED = 0.65, 0.05


def _seconds(work: Callable[[], Any], repeats: int) -> float:
    """Median wall-clock time of some calls."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def _texts(clean: Path) -> list[str]:
    return [document.text for document in documents.read(clean)]


def corpus(texts: list[str], megabytes: float, folder: Path, seed: int) -> int:
    """Write a clean corpus of so many MB, made of lines of real text in random order; returns its bytes."""
    rng = random.Random(seed)
    lines = [line for text in texts for line in text.splitlines() if line.strip()]
    folder.mkdir(parents=True)
    writer, lowest, highest = documents.Writer(folder, _PART), "~", ""
    while writer.bytes < megabytes * 1e6:
        text = "\n".join(rng.choices(lines, k=rng.randint(10, 80))) + "\n"
        sha256 = sha256_bytes(text.encode())
        writer.write(documents.Document(text, f"{writer.documents}", {"sha256": sha256}))
        lowest, highest = min(lowest, sha256), max(highest, sha256)
    split = {"val": 0.01, "test": 0.01, "lowest": lowest, "highest": highest}
    record = {**writer.close(), "corpus": folder.name, "split": split, "dropped": {}}
    (folder / documents.PROVENANCE).write_bytes(dump_sealed(record))
    return writer.bytes


def _bare(task: tuple[Path, str, Path]) -> int:
    """Bare sentencepiece over one part: no header, no offsets, no hashes, nothing written."""
    import sentencepiece  # noqa: PLC0415

    folder, name, model = task
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    rows, count = documents.read_part(folder, name), 0
    while batch := [row.text for row in islice(rows, 256)]:
        count += sum(map(len, processor.encode(batch, num_threads=1)))
    return count


def _bare_encode(clean: Path, tokenizer: Path, workers: int) -> int:
    tasks = [(clean, name, tokenizer / "tokenizer.model") for name in documents.provenance(clean)["files"]]
    if workers == 1:
        return sum(map(_bare, tasks))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return sum(pool.map(_bare, tasks))


def tokenise(clean: Path, tokenizer: Path, folder: Path, workers: int, repeats: int) -> dict[str, float]:
    """Tokenising and sharding against bare sentencepiece encode of the same parts."""
    n_bytes = documents.provenance(clean)["bytes"]
    bare = _seconds(lambda: _bare_encode(clean, tokenizer, workers), repeats)
    ours = _seconds(lambda: sharding.shard(clean, tokenizer, folder, workers), repeats)
    return {
        "bare_mb_per_s": n_bytes / bare / 1e6,
        "shard_mb_per_s": n_bytes / ours / 1e6,
        "ratio": bare / ours,
        "workers": workers,
    }


def memory(clean: Path, tokenizer: Path, out: Path) -> float:
    """Peak resident MB of a process that shards a corpus (Linux)."""
    # Not getrusage, whose peak a new process has from the one that started it.
    script = (
        "import re, sys; from pathlib import Path; from hope_data import sharding; "
        "sharding.shard(*map(Path, sys.argv[1:])); "
        "print(re.search(r'VmHWM:\\s*(\\d+)', Path('/proc/self/status').read_text())[1])"
    )
    command = [sys.executable, "-c", script, str(clean), str(tokenizer), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout) * 1024 / 1e6


def planted(texts: list[str], count: int, seed: int) -> tuple[list[str], int]:
    """Distinct documents, and copies of every tenth with 5 % of the words replaced, deleted or doubled.

    Documents are drawn word by word from the words of real text, so that no two are alike by chance.
    """
    rng = random.Random(seed)
    vocabulary = [word for text in texts[:500] for word in text.split()]
    distinct = [" ".join(rng.choices(vocabulary, k=rng.randint(60, 400))) for _ in range(count)]
    copies = []
    for original in distinct[: count // 10]:
        words = original.split()
        for i in rng.sample(range(len(words)), round(_EDITED * len(words))):
            words[i] = rng.choice([rng.choice(vocabulary), "", f"{words[i]} {words[i]}"])
        copies.append(" ".join(words))
    return distinct + copies, count


def _datatrove_dedup(texts: list[str], folder: Path) -> set[int]:
    """Positions of the texts that datatrove's MinHash steps drop, at its own settings.

    Words are split at white space: the tokenizer that datatrove takes for English is spaCy's, and slower.
    """
    try:
        import xxhash  # noqa: PLC0415
        from datatrove.data import Document as Row  # noqa: PLC0415
        from datatrove.pipeline import dedup  # noqa: PLC0415
        from datatrove.utils.word_tokenizers import WordTokenizer  # noqa: PLC0415
        from loguru import logger  # noqa: PLC0415
    except ImportError as error:
        raise InputError(f"the comparison needs {error.name}: pip install 'hope-data[bench]'") from None

    logger.disable("datatrove")

    class Words(WordTokenizer):  # type: ignore[misc]
        def word_tokenize(self, text: str) -> list[str]:
            return text.split()

        def sent_tokenize(self, text: str) -> list[str]:
            return [text]

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            return [(0, len(text))]

    config = dedup.MinhashConfig()
    rows = [Row(text, str(i)) for i, text in enumerate(texts)]
    signatures, buckets, clusters = (str(folder / name) for name in ("signatures", "buckets", "clusters"))
    signing = dedup.MinhashDedupSignature(signatures, config, Words())
    # Its own passes text where xxhash 4 takes bytes only.
    signing._hash_func = lambda shingle: xxhash.xxh64_intdigest(shingle.encode())
    signing.run(rows, 0, 1)
    for bucket in range(config.num_buckets):
        dedup.MinhashDedupBuckets(signatures, buckets, config=config).run(None, bucket, config.num_buckets)
    dedup.MinhashDedupCluster(buckets, clusters, config).run(None, 0, 1)
    kept = {int(row.id) for row in dedup.MinhashDedupFilter(clusters).run(rows, 0, 1)}
    return set(range(len(texts))) - kept


def near_duplicates(texts: list[str], count: int, folder: Path, repeats: int, seed: int) -> dict[str, Any]:
    """Documents per second against datatrove's MinHash steps, and what is found of planted copies."""
    every, distinct = planted(texts, count, seed)
    copies = len(every) - distinct

    def ours() -> set[int]:
        rows = np.zeros(len(every), dedup.SIGNATURE)
        for at in range(0, len(every), 500):
            batch = every[at : at + 500]
            rows["hashes"][at : at + 500], rows["words"][at : at + 500] = dedup.minhashes(batch)
        like = dedup.first_like(rows, _SIMILARITY)
        return set(np.flatnonzero(like != np.arange(len(every))).tolist())

    def score(dropped: set[int]) -> dict[str, float]:
        recall = sum(i >= distinct for i in dropped) / copies
        return {"recall": recall, "recall_se": (recall * (1 - recall) / copies) ** 0.5,
                "false": sum(i < distinct for i in dropped)}  # fmt: skip

    record = {"ours": score(ours()), "distinct": distinct, "planted": copies}
    seconds = _seconds(ours, repeats)
    record["documents_per_s"] = len(every) / seconds
    try:
        theirs: set[int] = set()
        reference = _seconds(lambda: theirs.update(_datatrove_dedup(every, folder)), 1)
        record |= {"datatrove": score(theirs), "datatrove_documents_per_s": len(every) / reference,
                  "ratio": reference / seconds}  # fmt: skip
    except InputError:
        record["datatrove"] = None
    return record


def loading(shards: Path, length: int, batch_size: int, repeats: int) -> dict[str, float]:
    """Tokens per second of the loader from page cache, against copying as many tokens from one array."""
    config = LoaderConfig(str(shards), batch_size=batch_size, length=length)
    loader = Loader(config, "train", seed=0)
    steps = max(1, 4_000_000 // (batch_size * length))
    for _ in range(steps):
        next(loader)
    seconds = _seconds(lambda: [next(loader) for _ in range(steps)], repeats)
    source = np.random.default_rng(0).integers(0, 60_000, batch_size * (length + 1)).astype(np.uint16)
    copy = _seconds(lambda: [source.astype(np.int64) for _ in range(steps)], repeats)
    tokens = steps * batch_size * length
    return {"tokens_per_s": tokens / seconds, "copy_tokens_per_s": tokens / copy, "ratio": copy / seconds,
            "length": length, "batch_size": batch_size}  # fmt: skip


def large(tokenizer: Path, out: Path, gigabytes: float, seed: int) -> None:
    """Write valid shards of random tokens, of which nobody has to tokenise a text."""
    known, rng = Tokenizer.load(tokenizer), np.random.default_rng(seed)
    dtype, n = token_type(known.vocab_size), 1000
    ordinary = np.flatnonzero(known.token_bytes)
    out.mkdir(parents=True)
    splits: dict[str, Any] = {}
    for name in SPLITS:
        count = int(gigabytes * 1e9 / dtype.itemsize / n) if name == "train" else 100
        block = rng.choice(ordinary, (min(count, 10_000), n)).astype(dtype)
        block[:, -1] = known.eos_id
        sizes = known.token_bytes[block].sum(axis=1)
        docs = np.stack([np.arange(1, count + 1) * n, np.resize(sizes, count)], axis=1).astype("<i8")
        (out / f"{name}.docs.bin").write_bytes(header(8, docs.size) + docs.tobytes())
        with (out / f"{name}.bin").open("wb") as file:
            file.write(header(dtype.itemsize, count * n))
            for at in range(0, count, len(block)):
                file.write(block[: count - at].tobytes())
        files = {f"{name}{end}": sha256_file(out / f"{name}{end}") for end in (".bin", ".docs.bin")}
        splits[name] = {
            "documents": count,
            "tokens": count * n,
            "bytes": int(docs[:, 1].sum()),
            "files": files,
        }
    index = {"corpus": out.name, "dtype": dtype.name, "vocab_size": known.vocab_size, "eos_id": known.eos_id,
             "tokenizer_sha256": known.sha256, "splits": splits, "provenance": {"dropped": {}}}  # fmt: skip
    (out / INDEX).write_bytes(dump_sealed(index))


def validating(shards: Path, tokenizer: Path, repeats: int) -> dict[str, float]:
    """Bytes per second of `validate` against hashing the same files."""
    files = list(shards.rglob("*.bin"))
    size = sum(path.stat().st_size for path in files)
    hashing = _seconds(lambda: [sha256_file(path) for path in files], repeats)
    checking = _seconds(lambda: validate(shards, tokenizer_folder=tokenizer), repeats)
    return {"gb": size / 1e9, "gb_per_s": size / checking / 1e9, "sha256_gb_per_s": size / hashing / 1e9,
            "ratio": hashing / checking}  # fmt: skip


@contextmanager
def _scratch(folder: Path | None) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(dir=folder, prefix="hope-data-bench-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def run(
    clean: Path,
    tokenizer: Path,
    megabytes: float = 20.0,
    gigabytes: float = 2.0,
    count: int = 10_000,
    workers: int = 2,
    repeats: int = 3,
    seed: int = 0,
    folder: Path | None = None,
) -> dict[str, Any]:
    """Measure everything once, on text made from a clean corpus.

    Args:
        clean: folder of `hope-data filter`, whose lines and words the test text is drawn from.
        tokenizer: folder of `hope-data tokenizer`.
        megabytes: of text to tokenise.
        gigabytes: of shards to load and validate.
        count: distinct documents for the duplicates.
        workers: processes of tokenising, ours and the reference alike.
        repeats: times are medians of so many.
        seed: of the text.
        folder: where to put the scratch files.

    Returns:
        {"tokenise", "memory", "near_duplicates", "loader", "validate"}, plain numbers.
    """
    needed = (gigabytes * 1e9 + megabytes * 4e6) * 1.1
    if needed > (free := shutil.disk_usage(folder or tempfile.gettempdir()).free):
        raise InputError(
            f"bench: needs {needed / 1e9:.0f} GB of scratch space, of which {free / 1e9:.0f} are free"
        )
    texts = _texts(clean)
    vocabulary = Tokenizer.load(tokenizer).vocab_size
    with _scratch(folder) as scratch:
        large(tokenizer, scratch / "large" / "bench", gigabytes, seed)
        size = corpus(texts, megabytes, scratch / "clean", seed)
        corpus(texts, megabytes / 10, scratch / "small", seed)
        shards = scratch / "shards" / "bench"
        record: dict[str, Any] = {
            "tokenise": tokenise(scratch / "clean", tokenizer, shards, workers, repeats),
            "memory": {
                "mb_at_tenth": memory(scratch / "small", tokenizer, scratch / "m1"),
                "mb": memory(scratch / "clean", tokenizer, scratch / "m2"),
            },
            "loader": loading(scratch / "large", 2048, 16, repeats),
            "validate": validating(scratch / "large", tokenizer, repeats),
            "near_duplicates": near_duplicates(texts, count, scratch / "datatrove", repeats, seed),
        }
    return {**record, "text_mb": size / 1e6, "vocab_size": vocabulary, "repeats": repeats, "seed": seed}


def table(record: dict[str, Any]) -> str:
    """The figures for people, one line each: what, ours, reference, ratio, what is asked for."""
    t, m, d, ld, v = (record[k] for k in ("tokenise", "memory", "near_duplicates", "loader", "validate"))
    rows = [
        ("tokenise and shard", f"{t['shard_mb_per_s']:.1f} MB/s", f"sentencepiece {t['bare_mb_per_s']:.1f} MB/s",
         f"{t['ratio']:.2f}", "0.8"),
        ("peak memory", f"{m['mb']:.0f} MB", f"of a tenth of the text {m['mb_at_tenth']:.0f} MB",
         f"{m['mb'] / m['mb_at_tenth']:.2f}", "600 MB"),
        ("near duplicates", f"{d['documents_per_s']:.0f} docs/s",
         f"datatrove {d['datatrove_documents_per_s']:.0f} docs/s" if d["datatrove"] else "datatrove not installed",
         f"{d['ratio']:.1f}" if d["datatrove"] else "", "1.0"),
        ("  recall, 5 % edited", f"{d['ours']['recall']:.3f} ± {d['ours']['recall_se']:.3f}",
         f"datatrove {d['datatrove']['recall']:.3f}" if d["datatrove"] else "", "", "0.95"),
        (f"  wrong of {d['distinct']}", f"{d['ours']['false']}",
         f"datatrove {d['datatrove']['false']}" if d["datatrove"] else "", "", "0"),
        ("loader", f"{ld['tokens_per_s'] / 1e6:.0f} M tokens/s",
         f"copying an array {ld['copy_tokens_per_s'] / 1e6:.0f} M/s", f"{ld['ratio']:.2f}", "20 M"),
        ("validate", f"{v['gb_per_s']:.2f} GB/s", f"sha256 {v['sha256_gb_per_s']:.2f} GB/s",
         f"{v['ratio']:.2f}", "1 GB/s"),
    ]  # fmt: skip
    head = ("what", "here", "beside it", "ratio", "wanted")
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(5)]
    return "\n".join(
        "  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in [head, *rows]
    )
