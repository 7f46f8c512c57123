"""Hashes of the files of an exported folder, in the format of `sha256sum`: whoever loads the folder checks them."""

import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from hope_model.errors import InputError
from hope_model.files import read_bytes, sha256, write_atomic

RECORD = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  ([^/\0]+)")


def add(folder: Path, names: Iterable[str]) -> None:
    """Write the hashes of files that were just written; those of other files stay."""
    hashes: dict[str, str] = {}
    with suppress(InputError):  # a damaged record is replaced
        hashes |= _read(folder)
    hashes |= {name: sha256(folder / name) for name in names}
    lines = [f"{value}  {name}\n" for name, value in sorted(hashes.items()) if (folder / name).is_file()]
    write_atomic(folder / RECORD, "".join(lines).encode())


def check(folder: Path, suffixes: tuple[str, ...] = ("",)) -> None:
    """Compare files with their hashes; a folder without a record passes.

    Args:
        folder: of an export, or of `save_pretrained`.
        suffixes: only files whose names end so.

    Raises:
        InputError: a file is missing or changed, or the record is damaged.
    """
    for name, expected in _read(folder).items():
        if not name.endswith(suffixes):
            continue
        if not (folder / name).is_file():
            raise InputError(f"{folder / name} is missing; export the checkpoint again")
        if sha256(folder / name) != expected:
            raise InputError(
                f"{folder / name} does not match its hash in {RECORD}: damaged or changed after saving; "
                f"export the checkpoint again, or delete {RECORD} if the change is yours"
            )


def _read(folder: Path) -> dict[str, str]:
    """File name to hash; empty without a record."""
    path = folder / RECORD
    if not path.is_file():
        return {}
    lines = read_bytes(path).decode(errors="replace").splitlines()
    matches = [_LINE.fullmatch(line) for line in lines]
    if not lines or not all(matches):
        raise InputError(f"{path} is damaged; export the checkpoint again")
    return {match[2]: match[1] for match in matches if match}
