"""The filter stage: repair, judge, count every reason, and fix each document's split."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hope_data import documents, rules
from hope_data.config import FilterConfig
from hope_data.dedup import Exact
from hope_data.documents import PROVENANCE, Document, Writer
from hope_data.errors import InputError
from hope_data.files import dump_sealed, new_folder, sha256_bytes
from hope_data.progress import track
from hope_data.splits import SplitRule

_KEPT_PER_REASON = 5
_EXCERPT = 500
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def repair(text: str) -> str:
    """Undo wrong decodings, compose characters (NFC), unify line ends, drop control characters."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text.isascii():
        text = "\n".join(line if line.isascii() else _repair_line(line) for line in text.split("\n"))
    return _CONTROL.sub("", text)


def _repair_line(line: str) -> str:
    import ftfy  # noqa: PLC0415  (most text is ASCII and needs none of it)

    fixed = ftfy.fix_text(line, uncurl_quotes=False, unescape_html=False, fix_latin_ligatures=False)
    return unicodedata.normalize("NFC", fixed)


def rules_of(config: FilterConfig) -> list[rules.Rule]:
    """Every rule in its order, cheap ones first; a near-duplicate rule has its place after the exact one."""
    chosen: list[rules.Rule] = [rules.length(config), Exact(), rules.letters(config)]
    chosen += [rules.symbols(config), rules.repetition(config)]
    return [*chosen, rules.language(config)] if config.language else chosen


class _Sieve:
    """Passes what every rule takes; counts the rest by reason and keeps the first few of each."""

    def __init__(self, chosen: list[rules.Rule]):
        self.rules = chosen
        self.dropped: Counter[str] = Counter()
        self.dropped_bytes: Counter[str] = Counter()
        self.samples: dict[str, list[dict[str, str]]] = {}

    def keep(self, rows: Iterator[Document]) -> Iterator[Document]:
        for row in rows:
            verdict = next((v for rule in self.rules if (v := rule(row)) is not True), None)
            if verdict is None:
                yield row
                continue
            _, reason = verdict
            self.dropped[reason] += 1
            self.dropped_bytes[reason] += len(row.text.encode())
            kept = self.samples.setdefault(reason, [])
            if len(kept) < _KEPT_PER_REASON:
                kept.append({"id": row.id, "text": row.text[:_EXCERPT]})


def _repaired(rows: Iterator[Document], changed: Counter[str]) -> Iterator[Document]:
    for row in rows:
        text = repair(row.text)
        if text == row.text:
            yield row
            continue
        changed["documents"] += 1
        yield replace(row, text=text, meta={**row.meta, "sha256": sha256_bytes(text.encode())})


def _thresholds(path: Path) -> FilterConfig:
    from hope_data.manifest import load_manifest  # noqa: PLC0415  (OmegaConf takes its time)

    return load_manifest(path).filter


def run(raw: Path, out: Path, manifest: Path | None = None) -> dict[str, Any]:
    """Filter a raw corpus.

    Args:
        raw: folder of `hope-data acquire`.
        out: folder to write: documents, and a provenance with counts, samples of what was dropped, and the
            split rule.
        manifest: take thresholds from this file instead of those recorded when the corpus was acquired.

    Returns:
        The new provenance without the raw one: documents, bytes, kept share, dropped counts by reason.

    Raises:
        InputError: an unfit input, or nothing is left.
    """
    source = documents.provenance(raw)
    recorded = source["manifest"]
    config = _thresholds(manifest) if manifest else FilterConfig(**recorded["filter"])
    sieve, changed = _Sieve(rules_of(config)), Counter[str]()
    lowest, highest = "~", ""
    with new_folder(out, PROVENANCE) as folder:
        writer = Writer(folder)
        rows = track(documents.read(raw), source["bytes"], f"filter {source['corpus']}")
        for row in sieve.keep(_repaired(rows, changed)):
            writer.write(row)
            lowest, highest = min(lowest, row.meta["sha256"]), max(highest, row.meta["sha256"])
        record = {
            **writer.close(),
            "corpus": source["corpus"],
            "repaired": changed["documents"],
            "dropped": dict(sieve.dropped),
            "dropped_bytes": dict(sieve.dropped_bytes),
            "raw_documents": source["documents"],
            "raw_bytes": source["bytes"],
            "filter": asdict(config),
            "split": asdict(SplitRule(recorded["holdout"], recorded["holdout"], lowest, highest)),
        }
        if not record["documents"]:
            reasons = ", ".join(f"{reason} {n}" for reason, n in sieve.dropped.most_common(3))
            raise InputError(
                f"{raw}: every document was dropped ({reasons}); loosen `filter` in the manifest"
            )
        (folder / PROVENANCE).write_bytes(dump_sealed({**record, "raw": source, "samples": sieve.samples}))
    return record
