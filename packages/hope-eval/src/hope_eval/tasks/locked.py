"""Test documents that are locked away until a final table opens them: a list of hashes that git keeps.

What is looked at again and again is slowly fitted to, by choosing what to report. So half of the test documents that
the usual settings never score are listed here, and `--documents` scores them alone.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from hope_data.errors import InputError
from hope_data.files import read_bytes, sha256_bytes
from hope_eval.tasks import perplexity
from hope_eval.tasks.base import Context


@dataclass(frozen=True)
class Locked:
    """The list.

    Attributes:
        tokenizer_sha256: of the tokens that are hashed.
        documents: hash of each.
    """

    tokenizer_sha256: str
    documents: frozenset[str]

    @staticmethod
    def read(path: Path) -> "Locked":
        """Read what `hope-eval lock` wrote.

        Raises:
            InputError: no such file, or not such a list.
        """
        try:
            values = json.loads(read_bytes(path))
            name, listed = values["tokenizer_sha256"], values["documents"]
            if not isinstance(name, str) or not all(isinstance(one, str) for one in listed):
                raise TypeError("documents is no list of hashes")
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            reason = getattr(error, "strerror", None) or f"not written by hope-eval lock ({error})"
            raise InputError(f"{path}: {reason}") from None
        return Locked(name, frozenset(listed))

    def dumps(self) -> bytes:
        """As `read` reads it; a hash a line."""
        values = {"tokenizer_sha256": self.tokenizer_sha256, "documents": sorted(self.documents)}
        return (json.dumps(values, indent=0) + "\n").encode()

    @property
    def sha256(self) -> str:
        """Name of the list, for results."""
        return sha256_bytes(self.dumps())


def unused(context: Context, usual: perplexity.Settings | None = None) -> Locked:
    """Choose half of the test documents that these settings of `perplexity`, its default ones, do not score."""
    usual = replace(usual or perplexity.Settings(), length=context.length)
    listed: set[str] = set()
    for domain in context.domains:
        split = context.split(domain)
        scored = {number for number, _ in perplexity.chosen(context, domain, usual)}
        rest = [perplexity.digest(split, n) for n in range(split.n_documents) if n not in scored]
        listed |= set(sorted(rest)[: len(rest) // 2])
    return Locked(context.tokenizer.sha256, frozenset(listed))
