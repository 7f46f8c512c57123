"""Hugging Face data sets by name, or the same from a local folder."""

import os
from collections.abc import Iterator
from typing import Any

from hope_data.config import Manifest
from hope_data.documents import Document, text_of
from hope_data.errors import InputError

_OFFLINE = (
    "without the hub: set `hub.path` to a local folder with the data set's parquet files, or use kind "
    "parquet/jsonl/text, or scale smoke with the installed-docs corpora"
)


def documents(manifest: Manifest) -> Iterator[Document]:
    """Yield the rows of a data set in its own order.

    Raises:
        InputError: `datasets` is not installed, the data set is out of reach, or a field is missing.
    """
    try:
        import datasets  # noqa: PLC0415
        from httpx import HTTPError  # noqa: PLC0415
    except ImportError:
        raise InputError("kind hf needs the datasets library: pip install 'hope-data[hf]'") from None
    hub = manifest.hub
    datasets.disable_progress_bars()
    options: dict[str, Any] = {"name": hub.name or None, "revision": hub.revision or None}
    options = {key: value for key, value in options.items() if value}
    path = os.path.expanduser(hub.path)  # noqa: PTH111
    try:
        splits = datasets.get_dataset_split_names(path, options.pop("name", None), **options)
        split = hub.split if hub.split in splits else splits[0]
        rows = datasets.load_dataset(path, hub.name or None, split=split, streaming=hub.streaming, **options)
        for number, row in enumerate(rows):
            where = f"{hub.path} [{split}], row {number}"
            text = text_of(row, manifest.fields, manifest.joiner, where)
            yield Document(text, f"{split}:{number}", {"split": split, "revision": hub.revision})
    except InputError:
        raise
    except (OSError, ValueError, HTTPError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"data set {hub.path}: {type(error).__name__}: {reason}; {_OFFLINE}") from None
