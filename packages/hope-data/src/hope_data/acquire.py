"""From a manifest to a folder of raw documents with their provenance."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path
from typing import Any

from hope_data import sources
from hope_data.config import Limits, Manifest
from hope_data.documents import PROVENANCE, Document, Writer, check_kind, utf8_length
from hope_data.errors import InputError
from hope_data.files import check_name, dump_sealed, sha256_bytes, sha256_file
from hope_data.manifest import check_scale, load_manifest
from hope_data.progress import track
from hope_data.repair import valid
from hope_data.source_files import FileList
from hope_data.work import Work, open_work

# Text per part: what is fetched again after an interruption, and what one process filters at a time.
PART_BYTES = 64 << 20
_LONGEST = 64 << 20


def _limited(rows: Iterator[Document], limits: Limits, n: int, size: int) -> Iterator[Document]:
    if 0 < limits.documents <= n or 0 < limits.bytes <= size:
        return
    for row in rows:
        yield row
        n, size = n + 1, size + utf8_length(row.text)
        if 0 < limits.documents <= n or 0 < limits.bytes <= size:
            return


class _Run:
    """One acquisition: parts that are finished, then the rest."""

    def __init__(self, name: str, manifest: Manifest, limits: Limits, work: Work, listed: FileList):
        self.name, self.manifest, self.limits, self.work, self.listed = name, manifest, limits, work, listed
        self.done: list[dict[str, Any]] = []
        for i in count():
            part = work.result("part", i, check=True)
            if part is None:
                break
            self.done.append(part)

    def total(self, key: str) -> int:
        return sum(part[key] for part in self.done)

    def fetch(self) -> None:
        """Fetch what is missing, sealing each part with the place where the source then stood."""
        if self.done and self.done[-1]["last"]:
            return
        source = sources.Source(self.manifest, self.done[-1]["state"] if self.done else None, self.listed)
        left = max(0, self.limits.bytes - self.total("bytes"))
        limited = _limited(source, self.limits, self.total("documents"), self.total("bytes"))
        rows = track(limited, left, f"acquire {self.name}")
        while self._part(source, rows):
            pass

    def _part(self, source: sources.Source, rows: Iterator[Document]) -> bool:
        """Write one part; whether there may be another."""
        i, packages = len(self.done), dict[str, dict[str, Any]]()
        writer: Writer | None = None
        invalid = 0
        for row in rows:
            writer = writer or Writer(self.work.folder, 0, f"part-{i:05d}.jsonl.zst")
            text = (mended := valid(row.text)).encode()
            invalid += mended != row.text
            if len(text) > _LONGEST:
                raise InputError(
                    f"document {row.id}: {len(text) >> 20} MiB of text; set `chunk_bytes` in the manifest to cut it"
                )
            meta = {"source": self.name, "licence": self.manifest.licence, **row.meta}
            writer.write(replace(row, text=mended, meta={**meta, "sha256": sha256_bytes(text)}))
            if "package" in row.meta:
                packages[row.meta["package"]] = {k: row.meta[k] for k in ("version", "licence")}
            if writer.bytes >= PART_BYTES:
                break
        last = writer is None or writer.bytes < PART_BYTES
        hashes: dict[str, str] = writer.close()["files"] if writer else {}
        part = {
            "documents": writer.documents if writer else 0,
            "bytes": writer.bytes if writer else 0,
            "invalid": invalid,
            "files": list(hashes),
            "hashes": hashes,
            "packages": packages,
            "state": source.state(),
            "skipped": dict(source.skipped),
            "last": last,
        }
        self.work.seal("part", i, part)
        self.done.append(part)
        return not last


def acquire(manifest_path: Path, scale: str, out: Path) -> dict[str, Any]:
    """Fetch a corpus; an interrupted run goes on after the last part that it finished.

    Args:
        manifest_path: YAML file; its stem names the corpus.
        scale: whose limits hold.
        out: folder to write.

    Returns:
        What `provenance.json` holds: documents, bytes, files with hashes, sources with hashes, manifest.

    Raises:
        InputError: an unfit manifest or source, or no document at all.
    """
    manifest = load_manifest(manifest_path)
    name = check_name("corpus", manifest_path.stem)
    check_kind(out, "raw")
    limits = manifest.at(check_scale(manifest_path, manifest, scale))
    listed = sources.files_of(manifest)
    hashes = _source_hashes(manifest, listed)
    job = {"step": "acquire 3", "manifest": manifest.to_dict(), "scale": scale, "sources": hashes}
    with open_work(out, PROVENANCE, job) as work:
        run = _Run(name, manifest, limits, work, listed)
        run.fetch()
        files = {name: sha for part in run.done for name, sha in part["hashes"].items()}
        record = {
            "documents": run.total("documents"),
            "bytes": run.total("bytes"),
            # Documents with surrogates that stand alone; U+FFFD took their place.
            "invalid": run.total("invalid"),
            "files": files,
            "corpus": name,
            "scale": scale,
            "limits": asdict(limits),
            "skipped": run.done[-1]["skipped"],
            # File names stand in `sources`, with hashes; where the folder lay on this machine is nobody's business.
            "manifest": {key: value for key, value in manifest.to_dict().items() if key != "files"},
            "packages": {k: v for part in run.done for k, v in part["packages"].items()},
            "sources": hashes,
            # `hub.revision` in the manifest is what was asked for; a branch or tag may mean another commit tomorrow.
            "commit": (run.done[-1]["state"]["hub"] or {}).get("commit", ""),
        }
        if not record["documents"]:
            raise InputError(f"{manifest_path}: the corpus is empty; its source holds no document")
        (work.folder / PROVENANCE).write_bytes(dump_sealed(record))
        work.finish([PROVENANCE, *files])
    return record


def remarks(record: dict[str, Any]) -> list[str]:
    """What a user should know of an acquisition: what was left out, where it stopped."""
    lines = []
    if record["skipped"]:
        counts = ", ".join(f"{reason} {n}" for reason, n in sorted(record["skipped"].items()))
        lines.append(f"files left out: {counts}")
    for key, limit in record["limits"].items():
        if 0 < limit <= record[key]:
            key_of_limit = "limits"
            if record["scale"] in record["manifest"]["scales"]:
                key_of_limit = f"scales.{record['scale']}"
            lines.append(
                f"stopped at the limit of {limit:,} {key}; raise `{key_of_limit}` in the manifest for more"
            )
    return lines


def _source_hashes(manifest: Manifest, listed: FileList) -> dict[str, str]:
    if manifest.kind == "hf" and (folder := Path(manifest.hub.path).expanduser()).is_dir():
        return {
            p.relative_to(folder).as_posix(): sha256_file(p) for p in sorted(folder.rglob("*")) if p.is_file()
        }
    return {name: sha256_file(path) for path, name in listed.files}
