"""From a manifest to a folder of raw documents with their provenance."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from hope_data import sources
from hope_data.config import Limits, Manifest
from hope_data.documents import PROVENANCE, Document, Writer
from hope_data.errors import InputError
from hope_data.files import dump_sealed, new_folder, sha256_bytes, sha256_file
from hope_data.manifest import load_manifest
from hope_data.progress import track


def _limited(rows: Iterator[Document], limits: Limits) -> Iterator[Document]:
    n = size = 0
    for row in rows:
        yield row
        n, size = n + 1, size + len(row.text.encode(errors="surrogatepass"))
        if 0 < limits.documents <= n or 0 < limits.bytes <= size:
            return


def acquire(manifest_path: Path, scale: str, out: Path) -> dict[str, Any]:
    """Fetch a corpus.

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
    limits = manifest.at(scale)
    packages: dict[str, dict[str, Any]] = {}
    with new_folder(out, PROVENANCE) as folder:
        writer = Writer(folder)
        for row in track(
            _limited(sources.documents(manifest), limits), limits.bytes, f"acquire {manifest_path.stem}"
        ):
            text = row.text.encode("utf-8", "replace")
            meta = {"source": manifest_path.stem, "licence": manifest.licence, **row.meta}
            writer.write(replace(row, text=text.decode(), meta={**meta, "sha256": sha256_bytes(text)}))
            if "package" in row.meta:
                packages[row.meta["package"]] = {k: row.meta[k] for k in ("version", "licence")}
        record = {
            **writer.close(),
            "corpus": manifest_path.stem,
            "scale": scale,
            # File names stand in `sources`, with hashes; where the folder lay on this machine is nobody's business.
            "manifest": {key: value for key, value in manifest.to_dict().items() if key != "files"},
            "packages": packages,
            "sources": _source_hashes(manifest),
        }
        if not record["documents"]:
            raise InputError(f"{manifest_path}: the corpus is empty; its source holds no document")
        (folder / PROVENANCE).write_bytes(dump_sealed(record))
    return record


def _source_hashes(manifest: Manifest) -> dict[str, str]:
    if manifest.kind in ("installed-docs", "hf"):
        return {}
    return {name: sha256_file(path) for path, name in sources.find(manifest.files, manifest.kind)}
