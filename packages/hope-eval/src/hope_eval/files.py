"""Reading files of others: bounded, strict, one line where they do not fit."""

import json
from pathlib import Path
from typing import Any

from hope_data import compressed
from hope_data.errors import InputError

# Of one text, unpacked. The longest that an evaluation reads whole, DBpedia's training rows, has 174 MB.
LONGEST_TEXT = 256 << 20


def read_text(path: Path, remedy: str = "fetch it again") -> str:
    """Read a UTF-8 text, plain or packed with gzip or zstd.

    Raises:
        InputError: missing, torn, not UTF-8, or longer than `LONGEST_TEXT` bytes once unpacked.
    """
    parts, size = [], 0
    for number, line in compressed.lines(path):
        size += len(line)
        if size > LONGEST_TEXT:
            raise InputError(
                f"{path}: holds over {LONGEST_TEXT >> 20} MiB of text; cut it into several files"
            )
        try:
            parts.append(line.decode())
        except UnicodeDecodeError as error:
            raise InputError(f"{path}, line {number}: not UTF-8 ({error.reason}); {remedy}") from None
    return "".join(parts)


def find(folder: Path, file: str) -> Path:
    """Return the path of a file in a folder, packed with gzip or not.

    Raises:
        InputError: neither is there.
    """
    for path in (folder / file, folder / f"{file}.gz"):
        if path.is_file():
            return path
    raise InputError(f"{folder / file}: no such file, nor .gz; put it there or leave the task out of --tasks")


def parse_json(path: Path, text: str, remedy: str) -> Any:
    """Return what a file's JSON holds.

    Raises:
        InputError: no JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise InputError(f"{path}: its JSON is nested too deeply; {remedy}") from None
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({str(error)[:100]}); {remedy}") from None


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """Read a file that holds a JSON object.

    Raises:
        InputError: missing, no JSON, or no object.
    """
    record = parse_json(path, read_text(path, remedy), remedy)
    if not isinstance(record, dict):
        raise InputError(f"{path}: holds no JSON object; {remedy}")
    return record
