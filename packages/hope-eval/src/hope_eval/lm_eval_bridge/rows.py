"""Rows of JSON Lines files of others: what each field must hold is checked where the row is read."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from hope_data import compressed
from hope_data.errors import InputError

TEXT = "a text that is not empty"


class Row:
    """One row; a field that does not fit raises InputError with file, line, field and what was expected."""

    def __init__(self, path: Path, number: int, values: dict[str, Any], fields: Sequence[str]) -> None:
        self.values, self._place, self._fields = values, f"{path}, line {number}", fields

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def __getitem__(self, name: str) -> Any:
        if name not in self.values:
            raise InputError(f"{self._place}: no field '{name}'; the original has {', '.join(self._fields)}")
        return self.values[name]

    def refuse(self, name: str, expected: str, value: Any = None) -> NoReturn:
        """Raise InputError for a field, or for a part of it."""
        shown = json.dumps(self[name] if value is None else value)
        shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
        raise InputError(
            f"{self._place}, field '{name}': {shown} is not {expected}; mend it or fetch the file again"
        )

    def text(self, name: str) -> str:
        """A text that is not empty."""
        return self._text(name, self[name])

    def texts(self, name: str, count: int) -> list[str]:
        """A list of so many texts."""
        values = self[name]
        if not isinstance(values, list) or len(values) != count:
            self.refuse(name, f"a list of {count} texts")
        return [self._text(name, value) for value in values]

    def one_of(self, name: str, allowed: Sequence[str]) -> str:
        """One of the labels allowed, without white space around it; a number stands for its digits."""
        value = self[name]
        label = str(value).strip() if isinstance(value, str) or type(value) is int else None
        if label not in list(allowed):
            self.refuse(name, f"one of {', '.join(allowed)}")
        return label

    def choices(self, name: str, labels: Sequence[str] = ()) -> dict[str, list[str]]:
        """Texts and labels of two choices or more, `{"text": [...], "label": [...]}`, labels as given if any are."""
        value = self[name]
        keys = [key for key in value if key in ("text", "label")] if isinstance(value, dict) else []
        if len(keys) < 2 or not all(isinstance(value[key], list) and len(value[key]) > 1 for key in keys):
            self.refuse(name, "two choices or more as {'text': [...], 'label': [...]}")
        lists = {key: [self._text(name, entry) for entry in value[key]] for key in keys}
        given = lists["label"]
        if len(lists["text"]) != len(given) or len(set(given)) < len(given):
            self.refuse(name, "a label of its own for every text", given)
        if labels and given != list(labels):
            self.refuse(name, f"labelled {', '.join(labels)}", given)
        return lists

    def _text(self, name: str, value: Any) -> str:
        if not isinstance(value, str) or not value.strip():
            self.refuse(name, TEXT, value)
        try:
            value.encode()
        except UnicodeEncodeError:
            self.refuse(name, "valid Unicode: it holds a lone surrogate", value)
        return value


def read(path: Path, fields: Sequence[str]) -> Iterator[Row]:
    """Rows of a file, packed or not, blank lines left out.

    Args:
        path: JSON Lines.
        fields: what the original's rows have, for messages.

    Raises:
        InputError: unreadable, or a line that is no JSON object.
    """
    for number, line in compressed.lines(path):
        try:
            values = json.loads(line.decode()) if line.strip() else None
        except RecursionError:
            raise InputError(f"{path}, line {number}: nested too deeply; fetch the file again") from None
        except ValueError as error:  # no UTF-8 either
            reason = str(error)[:100]
            raise InputError(f"{path}, line {number}: not JSON ({reason}); fetch the file again") from None
        if not line.strip():
            continue
        if not isinstance(values, dict):
            raise InputError(
                f"{path}, line {number}: holds no JSON object; the original has {', '.join(fields)}"
            )
        yield Row(path, number, values, fields)
