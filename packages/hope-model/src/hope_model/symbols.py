"""A tokenizer for models of the synthetic task `needle`: a character a token, digits and the mark #.

#35 0727146 #       remember 35, read on, which digits stood behind the mark?
"""

import random
import string
from collections.abc import Sequence
from typing import Any

from hope_model.errors import InputError

MARK, SYMBOLS = "#", string.digits + string.ascii_lowercase


class Symbols:
    """The alphabet of one model; it has no token for the beginning or end of a text.

    Args:
        task: `task` of the checkpoint's meta.json, as hope_data.tasks has it.
        vocab_size: of the model; the last id is the mark.

    Attributes:
        digits: how many stand behind the mark.
        alphabet: characters by id, the mark last.

    Raises:
        InputError: another task, or too many symbols for a character each.
    """

    eos_token_id = bos_token_id = None

    def __init__(self, task: dict[str, Any], vocab_size: int) -> None:
        if task["name"] != "needle" or vocab_size > len(SYMBOLS) + 1:
            known = f"`needle` of at most {len(SYMBOLS)} symbols is read and written; `hope-eval task` measures all"
            raise InputError(f"the model was trained on the task {task['name']}, not on text; {known}")
        # meta.json has the dials that were set; 2 is the default of hope_data.tasks.Needle.
        self.digits, self.alphabet = int(task.get("digits", 2)), SYMBOLS[: vocab_size - 1] + MARK

    def __len__(self) -> int:
        return len(self.alphabet)

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Return an id for every character that is no white space."""
        del add_special_tokens
        if wrong := [c for c in text if not c.isspace() and c not in self.alphabet]:
            raise InputError(f"{wrong[0]!r}: this model reads the characters {self.alphabet} only")
        return [self.alphabet.index(c) for c in text if not c.isspace()]

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        """Return a character for every id."""
        return "".join(self.alphabet[i] for i in ids)

    def draw(self, draw: random.Random, count: int) -> str:
        """Return random digits."""
        return "".join(draw.choices(self.alphabet[:-1], k=count))
