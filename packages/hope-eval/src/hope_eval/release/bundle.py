"""A release: one folder with everything that belongs to a checkpoint, which loads and scores wherever it is copied."""

import json
import re
import shutil
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from hope_data.errors import InputError
from hope_data.files import read_bytes, sha256_file
from hope_data.publishing import new_folder, write_atomic
from hope_eval import report
from hope_eval import results as schema
from hope_eval.files import read_json
from hope_eval.release import card
from hope_eval.scoring.load import Loaded, find_tokenizer, load
from hope_eval.scoring.scorer import Scorer
from hope_model import checkpoint

SUMS, SAMPLE, RESULTS, TRAINING = "SHA256SUMS", "sample.json", "results", "training.json"
WEIGHTS = ("model.safetensors", "config.json")
TOLERANCE = 1e-3  # relative, of the sample's nats: other machines round otherwise
MOST_TOLERANCE, LONGEST_SAMPLE = 1e-2, 100_000
LISTED = re.compile(r"([0-9a-f]{64}) [ *](.+)")
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
    meta = read_json(given.checkpoint / "meta.json", "save the checkpoint again")
    tokenizer = given.tokenizer or find_tokenizer(given.checkpoint, loaded.about.tokenizer_sha256)
    with new_folder(out, SUMS) as folder:
        for name in WEIGHTS:
            shutil.copy2(given.checkpoint / name, folder / name)
        meta["sha256"] = {name: sha256_file(folder / name) for name in WEIGHTS}
        meta["sha256"][checkpoint.META] = checkpoint.own_hash(meta)
        _write(folder / "meta.json", meta)
        if (given.checkpoint / TRAINING).is_file():  # how it was trained; the optimiser's state stays behind
            training = read_json(given.checkpoint / TRAINING, "move it away, or save the checkpoint again")
            _write(folder / TRAINING, {"config": training.get("config")})
        shutil.copytree(tokenizer, folder / "tokenizer")
        result = folder / RESULTS / f"{pack.checkpoint.run}.json"
        result.parent.mkdir()
        write_atomic(result, schema.sealed(pack))
        report.write([result], given.logs, folder / "report.md", folder / "plots", [], folder / "report.html")
        _write(folder / SAMPLE, {"text": TEXT, "nats": _nats(loaded), "tolerance": TOLERANCE})
        names = meta.get("corpora", [])
        corpora = card.corpora(names if isinstance(names, list) else [names], given.provenance)
        write_atomic(folder / "README.md", card.page(pack, meta, corpora).encode())
        write_atomic(folder / SUMS, _sums(folder).encode())


def verify(folder: Path) -> tuple[float, float]:
    """Check every file's hash, load, and score the sample text.

    Returns:
        The sample's nats here, and those written in the bundle.

    Raises:
        InputError: a missing, changed or surplus file, a link, a sample that cannot be, or another score.
    """
    named, there = _listed(folder), {path.relative_to(folder).as_posix() for path in _files(folder)}
    for name in sorted(named.keys() | there):
        if name not in there:
            raise InputError(f"{folder / name}: is missing; get the bundle again")
        if name not in named:
            raise InputError(f"{folder / name}: is not listed in {SUMS}; remove it")
        if sha256_file(folder / name) != named[name]:
            raise InputError(f"{folder / name}: does not match its hash in {SUMS}; get the bundle again")
    text, written, tolerance = _sample(folder / SAMPLE)
    here = _nats(load(folder, folder / "tokenizer"), text)
    if not abs(here - written) <= tolerance * abs(written):
        raise InputError(
            f"{folder}: the sample scores {here:.4f} nats here, {written:.4f} where it was packed; "
            "are hope-model's versions the same?"
        )
    return here, written


def _listed(folder: Path) -> dict[str, str]:
    """Hashes by file name."""
    try:
        lines = read_bytes(folder / SUMS).decode().splitlines()
    except (OSError, UnicodeDecodeError):
        raise InputError(
            f"{folder / SUMS}: cannot be read; is {folder} a bundle of `hope-eval package`?"
        ) from None
    named: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        entry = LISTED.fullmatch(line)
        if not entry or not _inside(entry[2]) or entry[2] in named:
            raise InputError(
                f"{folder / SUMS}, line {number}: not a hash and a file of the bundle; get it again"
            )
        named[entry[2]] = entry[1]
    alike = _alike(named)
    if alike:
        raise InputError(
            f"{folder / SUMS}: {alike[0]} and {alike[1]} are one file where case does not count; get the bundle again"
        )
    return named


def _inside(name: str) -> bool:
    """Whether a listed name stays in the bundle, on every kind of system."""
    parts = PurePosixPath(name).parts
    return name == "/".join(parts) and not {"..", "/", SUMS} & set(parts) and not re.search(r"[\\:]", name)


def _alike(names: Iterable[str]) -> tuple[str, str] | None:
    seen: dict[str, str] = {}
    for name in names:
        first = seen.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if first != name:
            return first, name
    return None


def _sample(path: Path) -> tuple[str, float, float]:
    """Text, nats and tolerance."""
    sample, remedy = read_json(path, "get the bundle again"), "get the bundle again"
    text = sample.get("text")
    if not isinstance(text, str) or not 0 < len(text) <= LONGEST_SAMPLE:
        raise InputError(f"{path}: text is no text of 1 to {LONGEST_SAMPLE} characters; {remedy}")
    numbers = []
    for key, most in (("nats", 1e9), ("tolerance", MOST_TOLERANCE)):
        number = sample.get(key)
        if type(number) not in (int, float) or not 0 < float(number or 0) <= most:
            raise InputError(
                f"{path}: {key} is {str(number)[:80]}, not a number above 0 and at most {most:g}; {remedy}"
            )
        numbers.append(float(number or 0))
    return text, numbers[0], numbers[1]


def _pack(paths: Sequence[Path], sha256: str) -> schema.Results:
    if not paths:
        raise InputError("no results given; run `hope-eval run` or `hope-eval suite` first")
    packs = [schema.load(path) for path in paths]
    for path, pack in zip(paths, packs, strict=True):
        if pack.checkpoint.sha256 != sha256:
            raise InputError(f"{path}: holds results of other weights; evaluate this checkpoint")
    return reduce(schema.merge, packs)


def _nats(loaded: Loaded, text: str = TEXT) -> float:
    """Of the sample's tokens after the first."""
    ids = np.asarray(loaded.tokenizer.encode(text), dtype=np.int64)
    return float(-Scorer(loaded.model).token_logp([ids])[0].sum())


def _files(folder: Path) -> list[Path]:
    """Every file but the sums; a link could lead anywhere, and a pipe would be waited for."""
    paths = sorted(folder.rglob("*"))
    for path in paths:
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise InputError(f"{path}: is no plain file; a bundle holds no links; get it again")
    return [path for path in paths if path.is_file() and path != folder / SUMS]


def _sums(folder: Path) -> str:
    """As `sha256sum -c` reads it."""
    return "".join(f"{sha256_file(path)}  {path.relative_to(folder).as_posix()}\n" for path in _files(folder))


def _write(path: Path, record: dict[str, Any]) -> None:
    write_atomic(path, (json.dumps(record, indent=1) + "\n").encode())
