"""A release: one folder with everything that belongs to a checkpoint, which loads and scores wherever it is copied."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hope_data.errors import InputError
from hope_data.files import sha256_file
from hope_data.publishing import new_folder, write_atomic
from hope_eval import card, report
from hope_eval import results as schema
from hope_eval.commands import merge
from hope_eval.lm import Scorer
from hope_eval.models import Loaded, find_tokenizer, load

SUMS, SAMPLE, RESULTS, TRAINING = "SHA256SUMS", "sample.json", "results", "training.json"
WEIGHTS = ("model.safetensors", "config.json")
TOLERANCE = 1e-3  # relative, of the sample's nats: other machines round otherwise
TEXT = """A river that is fed by snow runs high in early summer and low in winter. The people who live beside it build
their houses on the second terrace, plant barley on the first, and leave the lowest meadow to the water.
for year in range(1, 11): print(year, "the water came to the third stone")
"""


@dataclass(frozen=True)
class Sources:
    """What a bundle is made of.

    Attributes:
        checkpoint: folder with the weights.
        results: packs of these weights; of tasks in several of them the last counts.
        logs: `log.jsonl` files, or folders of them.
        provenance: folder with CORPUS/provenance.json; what is absent is called unknown.
        tokenizer: its folder; None looks for the one that the checkpoint names.
    """

    checkpoint: Path
    results: Sequence[Path]
    logs: Sequence[Path] = ()
    provenance: Path | None = None
    tokenizer: Path | None = None


def package(given: Sources, out: Path) -> None:
    """Write the bundle in one piece: weights, configuration, tokenizer, pack, report, model card, sums.

    Raises:
        InputError: no results, results of other weights, a damaged checkpoint, or `out` holds other files.
    """
    loaded = load(given.checkpoint, given.tokenizer)
    pack = _pack(given.results, loaded.about.sha256)
    meta = json.loads((given.checkpoint / "meta.json").read_text(encoding="utf-8"))
    tokenizer = given.tokenizer or find_tokenizer(given.checkpoint, loaded.about.tokenizer_sha256)
    with new_folder(out, SUMS) as folder:
        for name in WEIGHTS:
            shutil.copy2(given.checkpoint / name, folder / name)
        meta["sha256"] = {name: sha256_file(folder / name) for name in WEIGHTS}
        _write(folder / "meta.json", meta)
        if (given.checkpoint / TRAINING).is_file():  # how it was trained; the optimiser's state stays behind
            training = json.loads((given.checkpoint / TRAINING).read_text(encoding="utf-8"))
            _write(folder / TRAINING, {"config": training["config"]})
        shutil.copytree(tokenizer, folder / "tokenizer")
        result = folder / RESULTS / f"{pack.checkpoint.run}.json"
        result.parent.mkdir()
        write_atomic(result, schema.dumps(pack).encode())
        report.write([result], given.logs, folder / "report.md", folder / "plots", [], folder / "report.html")
        _write(folder / SAMPLE, {"text": TEXT, "nats": _nats(loaded), "tolerance": TOLERANCE})
        corpora = card.corpora(meta.get("corpora", []), given.provenance)
        write_atomic(folder / "README.md", card.page(pack, meta, corpora).encode())
        write_atomic(folder / SUMS, _sums(folder).encode())


def verify(folder: Path) -> tuple[float, float]:
    """Check every file's hash, load, and score the sample text.

    Returns:
        The sample's nats here, and those written in the bundle.

    Raises:
        InputError: a missing, changed or surplus file, or another score.
    """
    try:
        listed = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise InputError(
            f"{folder / SUMS}: cannot be read; is {folder} a bundle of `hope-eval package`?"
        ) from None
    named = {}
    for number, line in enumerate(listed, 1):
        sha256, gap, name = line.partition("  ")
        if not gap or len(sha256) != 64 or Path(name).is_absolute() or ".." in Path(name).parts:
            raise InputError(
                f"{folder / SUMS}, line {number}: not a hash and a file of the bundle; get it again"
            )
        named[name] = sha256
    there = {str(path.relative_to(folder)) for path in _files(folder)}
    for name in sorted(named.keys() | there):
        if name not in there:
            raise InputError(f"{folder / name}: is missing; get the bundle again")
        if name not in named:
            raise InputError(f"{folder / name}: is not listed in {SUMS}; remove it")
        if sha256_file(folder / name) != named[name]:
            raise InputError(f"{folder / name}: does not match its hash in {SUMS}; get the bundle again")
    sample = json.loads((folder / SAMPLE).read_text(encoding="utf-8"))
    here, written = _nats(load(folder, folder / "tokenizer"), sample["text"]), float(sample["nats"])
    if abs(here - written) > sample["tolerance"] * abs(written):
        raise InputError(
            f"{folder}: the sample scores {here:.4f} nats here, {written:.4f} where it was packed; "
            "are hope-model's versions the same?"
        )
    return here, written


def _pack(paths: Sequence[Path], sha256: str) -> schema.Results:
    whole: schema.Results | None = None
    for path in paths:
        found = schema.load(path)
        if found.checkpoint.sha256 != sha256:
            raise InputError(f"{path}: holds results of other weights; evaluate this checkpoint")
        whole = merge(whole, found) if whole else found
    if whole is None:
        raise InputError("no results given; run `hope-eval run` or `hope-eval suite` first")
    return whole


def _nats(loaded: Loaded, text: str = TEXT) -> float:
    """Of the sample's tokens after the first."""
    ids = np.asarray(loaded.tokenizer.encode(text), dtype=np.int64)
    return float(-Scorer(loaded.model).token_logp([ids])[0].sum())


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / SUMS)


def _sums(folder: Path) -> str:
    """As `sha256sum -c` reads it."""
    return "".join(f"{sha256_file(path)}  {path.relative_to(folder)}\n" for path in _files(folder))


def _write(path: Path, record: dict[str, Any]) -> None:
    write_atomic(path, (json.dumps(record, indent=1) + "\n").encode())
