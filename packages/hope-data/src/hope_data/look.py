"""A look at a corpus: sample documents and samples of what was dropped."""

from itertools import islice
from pathlib import Path
from typing import Any

from hope_data import documents
from hope_data.errors import harmless


def look(folder: Path, count: int = 3, width: int = 600) -> str:
    """Text for people about a raw or clean corpus.

    Args:
        folder: of `hope-data acquire` or `filter`.
        count: documents to show, evenly spaced over the corpus.
        width: characters of each.

    Raises:
        InputError: no such corpus, or a damaged one.
    """
    record = documents.provenance(folder)
    step = max(1, record["documents"] // max(1, count))
    out = [f"{record['corpus']}: {record['documents']} documents, {record['bytes'] / 1e6:.2f} MB"]
    for row in islice(documents.read(folder), 0, step * count, step):
        out += [f"\n── {row.id}  ({row.meta.get('licence', '')})", row.text[:width].rstrip()]
    for reason, n in sorted(record.get("dropped", {}).items(), key=lambda item: -item[1]):
        out.append(f"\n── dropped: {reason}, {n} of {record['raw_documents']}")
        out += _samples(record, reason, count)
    if gone := record.get("cut", {}).get("documents"):
        out.append(f"\n── cut: passages that an earlier document has, of {gone} documents")
        out += _samples(record, "cut", count)
    return harmless("\n".join(out), keep="\n\t")


def _samples(record: dict[str, Any], reason: str, count: int) -> list[str]:
    return [
        f"{s['id']}: {s['details'] + ': ' if 'details' in s else ''}{' '.join(s['text'].split())[:150]}"
        for s in record["samples"][reason][:count]
    ]
