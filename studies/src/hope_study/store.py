"""The records of studies on disk: `STUDY.jsonl`, one training a line, sorted, so that git merges and diffs them.

Several runners may share a folder: a line is added under the file's lock, to what the file holds at that moment.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from hope_data.files import read_bytes
from hope_data.publishing import exclusive, write_atomic
from hope_model.errors import InputError
from hope_study.records import Record

Records = dict[tuple[str, str], Record]  # by arm and run


class Store:
    """A folder of records.

    Args:
        folder: of the files; need not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: dict[str, tuple[tuple[int, int, int], Records]] = {}

    def path(self, study: str) -> Path:
        """File of a study's records."""
        return self.folder / f"{study}.jsonl"

    def studies(self) -> list[str]:
        """Names of the studies that have records."""
        return sorted(path.stem for path in self.folder.glob("*.jsonl"))

    def records(self, study: str) -> Records:
        """A study's records, read again where the file has changed.

        Raises:
            InputError: a line that is not a sealed record, or a training that stands twice; names file and line.
        """
        path = self.path(study)
        try:
            status = path.stat()
        except FileNotFoundError:
            return {}
        version = (status.st_mtime_ns, status.st_size, status.st_ino)
        if study not in self._read or self._read[study][0] != version:
            self._read[study] = version, _load(path)
        return self._read[study][1]

    def all(self) -> Iterator[Record]:
        """Every record of every study."""
        for study in self.studies():
            yield from self.records(study).values()

    def add(self, record: Record) -> None:
        """Keep a record, in the place of an earlier one of the same training."""
        path = self.path(record.study)
        with exclusive(path, wait=True):
            records = self.records(record.study) | {(record.arm, record.run): record}
            # The others' lines stay as they are to the byte, however numbers were written then.
            lines = _lines(path) | {(record.arm, record.run): record.to_line()}
            order = sorted(records, key=lambda key: records[key].order)
            write_atomic(path, "".join(f"{lines[key]}\n" for key in order).encode())


def _lines(path: Path) -> dict[tuple[str, str], str]:
    """The lines of a file that `records` has read; none where there is no file."""
    lines = read_bytes(path).decode().splitlines() if path.exists() else []
    return {(values["arm"], values["run"]): line for line in lines for values in [json.loads(line)]}


def _load(path: Path) -> Records:
    records: Records = {}
    try:
        lines = read_bytes(path).decode().splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 ({error.reason}); restore the file from git") from None
    for number, line in enumerate(lines, 1):
        source = f"{path}, line {number}"
        record = Record.from_line(line, source)
        if record.study != path.stem:
            raise InputError(f"{source}: a record of study '{record.study}'; move the line to its file")
        key = (record.arm, record.run)
        if key in records:
            raise InputError(f"{source}: {record.arm}/{record.run} stands twice; keep one of the lines")
        records[key] = record
    return records
