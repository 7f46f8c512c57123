"""Hugging Face data sets by name, or the same from a local folder."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hope_data.config import Manifest
from hope_data.documents import Document, text_of
from hope_data.errors import InputError, Unfinished

_OFFLINE = (
    "without the hub: set `hub.path` to a local folder with its parquet files, use kind parquet, jsonl or text, "
    "set HF_HUB_OFFLINE=1 if it is in the cache, or take the installed-docs corpora"
)
_UNPINNED = (
    "no `hub.revision`, so a later run may get other rows; pin the commit that the data set's page shows"
)


class Rows(Iterator[Document]):
    """The rows of a data set in its own order, from the beginning or from a saved state.

    Args:
        manifest: names the data set in `hub`.
        state: of an earlier run, to go on there.
        commit: that an earlier run read; "" asks the hub.

    Attributes:
        commit: what `hub.revision` means on the hub; "" of a local folder.

    Raises:
        InputError: `datasets` is not installed, the data set is out of reach, or a field is missing.
    """

    def __init__(self, manifest: Manifest, state: dict[str, Any] | None = None, commit: str = ""):
        try:
            import datasets  # noqa: PLC0415
        except ImportError:
            raise InputError("kind hf needs the datasets library: pip install 'hope-data[hf]'") from None
        self._manifest, hub = manifest, manifest.hub
        self._number = state["number"] if state else 0
        _quiet()
        path = str(Path(hub.path).expanduser())
        self.commit = commit
        if not Path(path).exists():
            _probe(hub.path)
            if not hub.revision:
                logging.getLogger(__name__).warning("warning: %s: %s", hub.path, _UNPINNED)
            self.commit = self.commit or resolve(hub.path, hub.revision)
        # The commit, not the branch it was asked by: that may move between two parts.
        revision = self.commit or hub.revision
        options = {"revision": revision} if revision else {}
        with _named(hub.path):
            splits = datasets.get_dataset_split_names(path, hub.name or None, **options)
            self._split = hub.split if hub.split in splits else splits[0]
            rows = datasets.load_dataset(
                path, hub.name or None, split=self._split, streaming=hub.streaming, **options
            )
            if state and hub.streaming:
                rows.load_state_dict(state["rows"])
            elif state:
                rows = rows.skip(self._number)
            self._data, self._rows = rows, iter(rows)

    def __next__(self) -> Document:
        hub = self._manifest.hub
        with _named(hub.path):
            row = next(self._rows)
        where = f"{hub.path} [{self._split}], row {self._number}"
        text = text_of(row, self._manifest.fields, self._manifest.joiner, where)
        name = f"{self._split}:{self._number}"
        self._number += 1
        return Document(text, name, {"split": self._split, "revision": self.commit or hub.revision})

    def state(self) -> dict[str, Any]:
        """Where it stands, plain JSON."""
        rows = self._data.state_dict() if self._manifest.hub.streaming else None
        return {"number": self._number, "rows": rows, "commit": self.commit}


def resolve(path: str, revision: str) -> str:
    """The commit that a revision of a data set means now, "" if that cannot be told (cache without the hub).

    Raises:
        Unfinished: there is no such data set or revision, or it may not be read.
    """
    from huggingface_hub import HfApi, constants  # noqa: PLC0415

    if re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    if constants.HF_HUB_OFFLINE:
        return ""
    with _named(path):
        return HfApi().dataset_info(path, revision=revision or None, timeout=30).sha or ""


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Turn what a far-away data set can raise into one line; what was fetched before is kept."""
    import datasets  # noqa: PLC0415
    from httpx import HTTPError, InvalidURL  # noqa: PLC0415

    try:
        yield
    except (OSError, ValueError, HTTPError, InvalidURL, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())[:200]
        raise Unfinished(f"data set {name}: {type(error).__name__}: {reason}; {_OFFLINE}") from None


def _quiet() -> None:
    """No progress bars and no retry messages between us and our one line."""
    import datasets  # noqa: PLC0415

    datasets.disable_progress_bars()
    for name in ("datasets", "huggingface_hub", "fsspec", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _probe(name: str) -> None:
    """Find out in seconds, not after a row of retries, that the hub is out of reach."""
    import httpx  # noqa: PLC0415
    from huggingface_hub import constants  # noqa: PLC0415

    if constants.HF_HUB_OFFLINE:
        return
    try:
        httpx.head(constants.ENDPOINT, timeout=10)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Unfinished(
            f"data set {name}: {constants.ENDPOINT} is out of reach ({error}); {_OFFLINE}"
        ) from None
