"""Hugging Face data sets by name, or the same from a local folder."""

import logging
from collections.abc import Iterator
from pathlib import Path

from hope_data.config import Manifest
from hope_data.documents import Document, text_of
from hope_data.errors import InputError

_OFFLINE = (
    "without the hub: set `hub.path` to a local folder with its parquet files, use kind parquet, jsonl or text, "
    "set HF_HUB_OFFLINE=1 if it is in the cache, or take the installed-docs corpora"
)


def documents(manifest: Manifest) -> Iterator[Document]:
    """Yield the rows of a data set in its own order.

    Raises:
        InputError: `datasets` is not installed, the data set is out of reach, or a field is missing.
    """
    try:
        import datasets  # noqa: PLC0415
        from httpx import HTTPError, InvalidURL  # noqa: PLC0415
    except ImportError:
        raise InputError("kind hf needs the datasets library: pip install 'hope-data[hf]'") from None
    hub = manifest.hub
    _quiet()
    path = str(Path(hub.path).expanduser())
    if not Path(path).exists():
        _probe(hub.path)
    options = {"revision": hub.revision} if hub.revision else {}
    try:
        splits = datasets.get_dataset_split_names(path, hub.name or None, **options)
        split = hub.split if hub.split in splits else splits[0]
        rows = datasets.load_dataset(path, hub.name or None, split=split, streaming=hub.streaming, **options)
        for number, row in enumerate(rows):
            where = f"{hub.path} [{split}], row {number}"
            text = text_of(row, manifest.fields, manifest.joiner, where)
            yield Document(text, f"{split}:{number}", {"split": split, "revision": hub.revision})
    except InputError:
        raise
    except (OSError, ValueError, HTTPError, InvalidURL, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"data set {hub.path}: {type(error).__name__}: {reason}; {_OFFLINE}") from None


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
        raise InputError(
            f"data set {name}: {constants.ENDPOINT} is out of reach ({error}); {_OFFLINE}"
        ) from None
