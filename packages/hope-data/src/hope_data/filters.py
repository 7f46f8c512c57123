"""The filter stage: repair, judge, drop duplicates, count every reason, and fix each document's split.

Three steps. `judge` looks at each document alone, part by part, in as many processes as there are. The duplicates
are found among the signatures of what is left, in one process, and so are passages that come again. `keep` writes the
parts without them.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hope_data import decontaminate, dedup, documents, passages, rules
from hope_data.compressed import lines
from hope_data.config import FilterConfig
from hope_data.documents import INNER_LINE, PROVENANCE, Document, Writer
from hope_data.engines import processes
from hope_data.errors import InputError
from hope_data.files import dump_sealed, sha256_bytes, sha256_file
from hope_data.progress import track
from hope_data.repair import repair
from hope_data.splits import SplitRule
from hope_data.work import Engine, Work, open_work

_KEPT_PER_REASON = 5
_EXCERPT = 500


def rules_of(config: FilterConfig) -> list[rules.Rule]:
    """Every rule that looks at one document alone, cheap ones first."""
    chosen: list[rules.Rule] = [rules.length(config), rules.letters(config)]
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
            else:
                self.drop(verdict[1], row.id, row.text, *verdict[2:])

    def drop(self, reason: str, name: str, text: str, details: str = "") -> None:
        self.dropped[reason] += 1
        self.dropped_bytes[reason] += len(text.encode())
        self.sample(reason, name, text, details)

    def sample(self, reason: str, name: str, text: str, details: str = "") -> None:
        kept = self.samples.setdefault(reason, [])
        if len(kept) < _KEPT_PER_REASON:
            about = {"details": details} if details else {}
            kept.append({"id": name, **about, "text": text[:_EXCERPT]})

    def record(self) -> dict[str, Any]:
        return {
            "dropped": dict(self.dropped),
            "dropped_bytes": dict(self.dropped_bytes),
            "samples": self.samples,
        }


def _repaired(rows: Iterator[Document], changed: Counter[str]) -> Iterator[Document]:
    for row in rows:
        text = repair(row.text)
        if text == row.text:
            yield row
            continue
        changed["documents"] += 1
        yield replace(row, text=text, meta={**row.meta, "sha256": sha256_bytes(text.encode())})


@dataclass(frozen=True)
class _Judge:
    """Task: repair a raw part, judge its documents one by one, and sign those that pass."""

    raw: Path
    parts: list[str]
    code: bool
    config: FilterConfig
    evaluation: bool
    n_bytes: int

    def __call__(self, folder: Path, i: int) -> dict[str, Any]:
        chosen = rules_of(self.config) + ([decontaminate.rule(folder)] if self.evaluation else [])
        sieve, changed = _Sieve(chosen), Counter[str]()
        text, signed = f"judged-{i:05d}.jsonl.zst", f"judged-{i:05d}.npy"
        rows = track(documents.read_part(self.raw, self.parts[i]), self.n_bytes, f"filter {self.raw.name}")
        # Code may name broken text on purpose.
        passed = sieve.keep(rows if self.code else _repaired(rows, changed))
        writer, signatures = Writer(folder, 0, text), [np.empty(0, dedup.SIGNATURE)]
        repeated = [np.empty(0, passages.PASSAGE)]
        for batch in documents.batches(passed):
            if size := self.config.passage_lines:
                repeated.append(passages.table([row.text for row in batch], size, writer.documents))
            for row in batch:
                writer.write(row)
            signatures.append(self._sign(batch))
        writer.close()
        np.save(folder / signed, np.concatenate(signatures))
        files = [text, signed]
        if self.config.passage_lines:
            files.append(f"passages-{i:05d}.npy")
            np.save(folder / files[-1], np.concatenate(repeated))
        return {"files": files, "repaired": changed["documents"], **sieve.record()}

    def _sign(self, batch: list[Document]) -> dedup.Signatures:
        signed = np.zeros(len(batch), dedup.SIGNATURE)
        signed["sha256"] = [row.meta["sha256"] for row in batch]
        keys = [sha256_bytes(row.text.strip().encode())[:16] for row in batch]
        signed["key"] = [int(key, 16) for key in keys]
        signed["bytes"] = [len(row.text.encode()) for row in batch]
        if self.config.near_duplicate:
            signed["hashes"], signed["words"] = dedup.minhashes([row.text for row in batch])
        return signed


@dataclass(frozen=True)
class _Keep:
    """Task: copy a judged part without its duplicates, and without passages that an earlier document has."""

    verdicts: list[str]
    reasons: list[str]
    config: FilterConfig

    def __call__(self, folder: Path, i: int) -> dict[str, Any]:
        text, signed = f"part-{i:05d}.jsonl.zst", f"part-{i:05d}.signatures.npy"
        verdict = np.load(folder / self.verdicts[i])
        signatures = np.load(folder / f"judged-{i:05d}.npy")
        again = self._again(folder, i, len(verdict))
        sieve, candidates = _Sieve([]), lines(folder / f"judged-{i:05d}.jsonl.zst", INNER_LINE)
        kept = np.zeros(len(verdict), bool)
        cut = Counter[str]()
        writer: Writer | None = None
        for k, ((_, line), reason) in enumerate(zip(candidates, verdict, strict=True)):
            if reason or k in again:
                row = json.loads(line)
            if reason:
                sieve.drop(self.reasons[reason], row["id"], row["text"])
                continue
            if k in again:
                whole, row["text"] = (
                    row["text"],
                    passages.cut(row["text"], self.config.passage_lines, again[k]),
                )
                if len(row["text"]) < max(1, self.config.min_chars):
                    sieve.drop("repeated passages", row["id"], whole)
                    continue
                gone = int(signatures["bytes"][k]) - len(row["text"].encode())
                signatures["bytes"][k] -= gone
                row["meta"]["cut"] = gone
                cut.update(documents=1, bytes=gone)
                sieve.sample("cut", row["id"], passages.first(whole, self.config.passage_lines, again[k]))
                line = documents.line_of(Document(**row))
            kept[k] = True
            writer = writer or Writer(folder, 0, text)
            writer.write_line(line)
        if writer is None:
            return {"files": [], "cut": {}, **sieve.record()}
        writer.close()
        signatures = signatures[kept]
        np.save(folder / signed, signatures)
        shas = signatures["sha256"]
        return {
            "files": [text, signed],
            "sha256": [sha256_file(folder / text), sha256_file(folder / signed)],
            "documents": len(signatures),
            "bytes": int(signatures["bytes"].sum()),
            "lowest": min(shas).decode(),
            "highest": max(shas).decode(),
            "cut": dict(cut),
            **sieve.record(),
        }

    def _again(self, folder: Path, i: int, count: int) -> dict[int, Any]:
        """Marks of the passages that come again, of the documents that have any."""
        if not self.config.passage_lines:
            return {}
        owner = np.load(folder / f"passages-{i:05d}.npy")["document"]
        marks = np.split(np.load(folder / f"again-{i:05d}.npy"), np.searchsorted(owner, np.arange(1, count)))
        return {k: marked for k, marked in enumerate(marks) if marked.any()}


def _merged(results: list[dict[str, Any]]) -> dict[str, Any]:
    dropped, dropped_bytes = Counter[str](), Counter[str]()
    samples: dict[str, list[dict[str, str]]] = {}
    for result in results:
        dropped.update(result["dropped"])
        dropped_bytes.update(result["dropped_bytes"])
        for reason, kept in result["samples"].items():
            samples[reason] = (samples.get(reason, []) + kept)[:_KEPT_PER_REASON]
    return {"dropped": dict(dropped), "dropped_bytes": dict(dropped_bytes), "samples": samples}


def _thresholds(path: Path) -> FilterConfig:
    from hope_data.manifest import load_manifest  # noqa: PLC0415  (OmegaConf takes its time)

    return load_manifest(path).filter


def _signatures(folder: Path) -> list[Path]:
    names = documents.provenance(folder).get("signatures")
    if names is None:
        raise InputError(f"{folder}: has no signatures; run `hope-data filter` for it again")
    for name, promised in names.items():
        if not (folder / name).is_file() or sha256_file(folder / name) != promised:
            raise InputError(f"{folder / name}: is missing or damaged (sha256 differs); filter it again")
    return [folder / name for name in names]


def run(
    raw: Path,
    out: Path,
    manifest: Path | None = None,
    against: list[Path] | None = None,
    evaluation: list[Path] | None = None,
    workers: int = 1,
    engine: Engine = processes,
) -> dict[str, Any]:
    """Filter a raw corpus; an interrupted run goes on where it stood.

    Args:
        raw: folder of `hope-data acquire`.
        out: folder to write: documents, their signatures, and a provenance with counts, samples of what was
            dropped, and the split rule.
        manifest: take thresholds from this file instead of those recorded when the corpus was acquired.
        against: clean corpora; what they have already is dropped here.
        evaluation: files or folders of evaluation text; documents that hold some of it are dropped.
        workers: processes; the result does not depend on it.
        engine: what runs them.

    Returns:
        The new provenance without the raw one: documents, bytes, kept share, dropped counts by reason.

    Raises:
        InputError: an unfit input, or nothing is left.
    """
    source = documents.provenance(raw, "raw")
    documents.check_kind(out, "clean")
    if out.resolve() in {folder.resolve() for folder in against or []}:
        raise InputError(f"{out}: is read by this command, and would be lost; name another --out")
    config = _thresholds(manifest) if manifest else FilterConfig.recorded(source["manifest"]["filter"])
    others = {folder.resolve().name: _signatures(folder) for folder in against or []}
    about = {
        "filter": asdict(config),
        "against": {f.resolve().name: documents.provenance(f)["signatures"] for f in against or []},
        "evaluation": decontaminate.described(evaluation) if evaluation else {},
    }
    with open_work(out, PROVENANCE, {"step": "filter 2", "raw": source, **about}) as work:
        if evaluation:
            decontaminate.build(evaluation, work.folder)
        parts = list(source["files"])
        n_bytes = source["bytes"] if len(parts) == 1 else 0
        code = source["manifest"]["content"] == "code"
        judge = _Judge(raw, parts, code, config, bool(evaluation), n_bytes)
        judged = work.run("judge", judge, len(parts), workers, engine)
        keep = _unlike(work, len(parts), others, config)
        kept = work.run("keep", keep, len(parts), workers, engine)
        merged = _merged(judged + kept)
        record = _record(source, judged, kept)
        if not record["documents"]:
            reasons = ", ".join(f"{reason} {n}" for reason, n in Counter(merged["dropped"]).most_common(3))
            raise InputError(
                f"{raw}: every document was dropped ({reasons}); loosen `filter` in the manifest"
            )
        record |= {**about, "dropped": merged["dropped"], "dropped_bytes": merged["dropped_bytes"]}
        full = {**record, "raw": source, "samples": merged["samples"]}
        (work.folder / PROVENANCE).write_bytes(dump_sealed(full))
        work.finish([PROVENANCE, *record["files"], *record["signatures"]])
    return record


def _unlike(work: Work, count: int, others: dict[str, list[Path]], config: FilterConfig) -> _Keep:
    judged = [work.folder / f"judged-{i:05d}.npy" for i in range(count)]
    verdicts, reasons = dedup.judge(judged, others, config.near_duplicate, work.folder / "signatures.bin")
    names = [f"verdict-{i:05d}.npy" for i in range(count)]
    for name, verdict in zip(names, verdicts, strict=True):
        np.save(work.folder / name, verdict)
    if config.passage_lines:
        files = [work.folder / f"passages-{i:05d}.npy" for i in range(count)]
        again = passages.repeated(files, [verdict == 0 for verdict in verdicts])
        for i, marks in enumerate(again):
            np.save(work.folder / f"again-{i:05d}.npy", marks)
    return _Keep(names, reasons, config)


def _record(
    source: dict[str, Any], judged: list[dict[str, Any]], kept: list[dict[str, Any]]
) -> dict[str, Any]:
    full = [result for result in kept if result["files"]]
    holdout = source["manifest"]["holdout"]
    ends = [min((r["lowest"] for r in full), default=""), max((r["highest"] for r in full), default="")]
    return {
        "corpus": source["corpus"],
        "documents": sum(r["documents"] for r in full),
        "bytes": sum(r["bytes"] for r in full),
        "files": {r["files"][0]: r["sha256"][0] for r in full},
        "signatures": {r["files"][1]: r["sha256"][1] for r in full},
        "repaired": sum(r["repaired"] for r in judged),
        "cut": {key: sum(r["cut"].get(key, 0) for r in kept) for key in ("documents", "bytes")},
        "raw_documents": source["documents"],
        "raw_bytes": source["bytes"],
        "split": asdict(SplitRule(holdout, holdout, *ends)),
    }
