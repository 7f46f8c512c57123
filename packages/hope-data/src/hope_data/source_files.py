"""Which files a manifest means: paths as they stand, folders with all that lies in them, patterns."""

import glob
import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from hope_data.errors import InputError

_PACKED = ("", ".gz", ".zst")
_SUFFIXES = {
    "text": tuple(kind + packed for kind in (".txt", ".md", ".rst") for packed in _PACKED),
    "jsonl": tuple(".jsonl" + packed for packed in _PACKED),
    "parquet": (".parquet",),
}


class FileList(NamedTuple):
    """What the paths of a manifest lead to.

    Attributes:
        files: in their order, each with a name that no other has: its path inside its folder, and as much of the
            folder's own path as tells it from others.
        skipped: how many were left out, by reason.
    """

    files: list[tuple[Path, str]]
    skipped: Counter[str]


def find(patterns: list[str], kind: str) -> FileList:
    """Find the files of a manifest.

    Args:
        patterns: files, folders or glob patterns, `~` for the home; what exists under a name is taken literally.
        kind: `text`, `jsonl` or `parquet`; of a folder, files with its suffixes are taken, in upper or lower case.

    Raises:
        InputError: a pattern that finds nothing, or a folder that may not be read.
    """
    skipped, depths = Counter[str](), dict[Path, int]()
    for pattern in patterns:
        paths, inside = _expand(pattern, kind, skipped)
        # How many of the last parts of a path are its name.
        for path in paths:
            depths.setdefault(path, len(path.parts) - inside if inside else 1)
    once = _once(list(depths))
    if again := len(depths) - len(once):
        skipped["same file by another name"] += again
    return FileList(_named({path: depths[path] for path in once}), skipped)


def _expand(pattern: str, kind: str, skipped: Counter[str]) -> tuple[list[Path], int]:
    """Absolute paths of files that a pattern means, and how many parts of them are its folder's (0: no folder)."""
    try:
        path = Path(pattern).expanduser().absolute()
    except RuntimeError as error:
        raise InputError(f"{pattern}: {error}") from None
    if path.is_file():
        return [path], 0
    if path.is_dir():
        if files := _walk(path, _SUFFIXES[kind], skipped):
            return files, len(path.parts)
        there = f" among {skipped.total()} files" if skipped else ""
        raise InputError(
            f"{pattern}: no {kind} file here{there} (it has none that ends in {' '.join(_SUFFIXES[kind])}); "
            "correct `files` in the manifest"
        )
    # As much as exists is no pattern, whatever characters it holds.
    literal = path
    while not literal.exists():
        literal = literal.parent
    rest = str(path.relative_to(literal))
    matches = [literal / match for match in glob.glob(rest, root_dir=literal, recursive=True)]  # noqa: PTH207
    if folders := sum(match.is_dir() for match in matches) if "**" not in rest else 0:
        skipped["folder that a pattern without ** matches"] += folders
    if files := sorted(match for match in matches if match.is_file()):
        return files, 0
    hint = "; an environment variable is written ${oc.env:NAME}" if "$" in pattern else ""
    what = f"no {kind} file matches" if glob.has_magic(rest) else "no such file or folder"
    raise InputError(f"{pattern}: {what} (looked for {path}){hint}; correct `files` in the manifest")


def _walk(root: Path, suffixes: tuple[str, ...], skipped: Counter[str]) -> list[Path]:
    """Files with these suffixes in a folder and below, sorted; each folder once, however many links lead there."""
    files: list[Path] = []
    folders, links, seen = [root], list[Path](), set[tuple[int, int]]()
    while folders or links:
        # Links last: a folder is known by the path that has none.
        folder = folders.pop() if folders else links.pop(0)
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in seen:
                skipped["link to a folder that is read already"] += 1
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            raise InputError(f"{folder}: {error.strerror}; its files cannot be taken") from None
        for entry in entries:
            path = Path(entry.path)
            if path.is_dir():
                (links if entry.is_symlink() else folders).append(path)
            elif not path.is_file():
                skipped["broken link" if entry.is_symlink() else "no regular file"] += 1
            elif entry.name.lower().endswith(suffixes):
                files.append(path)
            else:
                skipped[_suffix(entry.name)] += 1
    return sorted(files)


def _suffix(name: str) -> str:
    suffix = Path(name).suffix.lower()
    return f"suffix {suffix}" if suffix[1:].isalnum() and len(suffix) < 12 else "another suffix"


def _once(paths: list[Path]) -> list[Path]:
    """Paths that lead to different files; of several to one, that without links, or the shortest."""
    best: dict[str, Path] = {}
    for path in paths:
        real = os.path.realpath(path)
        if real not in best or _rank(path, real) < _rank(best[real], real):
            best[real] = path
    chosen = set(best.values())
    return [path for path in paths if path in chosen]


def _rank(path: Path, real: str) -> tuple[bool, int, Path]:
    return str(path) != real, len(path.parts), path


def _named(parts: dict[Path, int]) -> list[tuple[Path, str]]:
    """Give each path its last so many parts as its name, and more where two would have the same."""
    while True:
        names = {path: _text(path.parts[-min(n, len(path.parts)) :]) for path, n in parts.items()}
        count = Counter(names.values())
        same = [path for path, name in names.items() if count[name] > 1 and parts[path] < len(path.parts)]
        if not same:
            return list(names.items())
        for path in same:
            parts[path] += 1


def _text(parts: tuple[str, ...]) -> str:
    # A name that is no UTF-8 is written with escapes.
    return os.fsencode("/".join(parts)).decode("utf-8", "backslashreplace")
