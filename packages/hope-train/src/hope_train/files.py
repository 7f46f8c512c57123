"""Folders that are whole or not there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from hope_data.publishing import fsync


def swap_in(folder: Path, target: Path) -> None:
    """Put a finished folder in the place of another.

    Between its two renames a kill leaves `target` away and its predecessor beside it; `recover` mends that.
    """
    old = _old(target)
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    folder.rename(target)
    fsync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def recover(target: Path) -> None:
    """Undo a `swap_in` that was killed half-way."""
    if _old(target).exists() and not target.exists():
        _old(target).rename(target)


def keep(folder: Path, shelf: Path, name: str, most: int) -> None:
    """Put a folder's files, by hard links, on a shelf of folders; `most` of them stay, 0 for all."""
    target, temporary = shelf / name, shelf / f".{name}"
    for path in (target, temporary):
        shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(folder, temporary, copy_function=_link)
    temporary.rename(target)
    fsync(shelf)
    kept = sorted(path for path in shelf.iterdir() if not path.name.startswith("."))
    for path in kept[:-most] if most else []:
        shutil.rmtree(path)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _old(target: Path) -> Path:
    return target.with_name(target.name + ".old")
