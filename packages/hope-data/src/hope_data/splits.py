"""Train, val or test: decided by a document's content alone, before anything is learned from it."""

from dataclasses import dataclass
from typing import Any, Self

from hope_data.errors import InputError

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class SplitRule:
    """Val takes the lowest content hashes, test the highest, each at least one document.

    The same text falls into the same split in every corpus, so that a copy never leaks from train to test.

    Attributes:
        val: share of documents held out for validation.
        test: share of documents held out for testing.
        lowest: sha256 of the corpus's document with the lowest hash ("" if not known).
        highest: the same for the highest.
    """

    val: float = 0.04
    test: float = 0.04
    lowest: str = ""
    highest: str = ""

    def of(self, sha256: str) -> str:
        """Split of the document with this content hash."""
        place = int(sha256[:16], 16) / 2**64
        if place < self.val or sha256 == self.lowest:
            return "val"
        if place >= 1 - self.test or sha256 == self.highest:
            return "test"
        return "train"

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Self:
        """The rule as a clean corpus's provenance records it."""
        try:
            rule = cls(**record)
            shares, ends = (rule.val, rule.test), (rule.lowest, rule.highest)
            if all(0 <= share <= 0.5 for share in shares) and all(isinstance(end, str) for end in ends):
                return rule
        except TypeError:
            pass
        raise InputError(f"split rule {record}: unknown form; run `hope-data filter` again")
