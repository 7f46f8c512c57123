"""Checkpoints that stay beside the newest one, and folders that go without leaving a half."""

import os
import shutil
from pathlib import Path

from hope_data.publishing import exclusive, recover_folder, replace_folder, temporary_folder


def keep(folder: Path, shelf: Path, name: str, most: int) -> None:
    """Put a folder's files, by hard links, on a shelf of folders.

    Args:
        folder: what to keep.
        shelf: where.
        name: of the new folder.
        most: folders to keep, this one and those that sort before it; 0 for all.
    """
    target = shelf / name
    with exclusive(target), temporary_folder(target) as temporary:
        recover_folder(target)
        shutil.copytree(folder, temporary, copy_function=_link, dirs_exist_ok=True)
        replace_folder(temporary, target)
    kept = sorted(path for path in shelf.iterdir() if not path.name.startswith(".") and path.name <= name)
    for path in kept[:-most] if most else []:
        remove(path)


def remove(folder: Path) -> None:
    """Remove a folder; a kill in between leaves it whole or away."""
    with temporary_folder(folder) as rubbish:
        folder.rename(rubbish / folder.name)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
