"""Duplicates: exact ones here; a near-duplicate rule (MinHash) is one more rule in the same list."""

from hope_data.documents import Document
from hope_data.files import sha256_bytes
from hope_data.rules import Verdict


class Exact:
    """Drops a text that has come before; memory grows by some hundred bytes per document kept."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def __call__(self, document: Document) -> Verdict:
        """Judge by the hash of the text without white space at its ends."""
        key = bytes.fromhex(sha256_bytes(document.text.strip().encode())[:32])
        if key in self._seen:
            return False, "duplicate"
        self._seen.add(key)
        return True
