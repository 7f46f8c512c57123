"""What tasks ask of a tokenizer, whether it is ours or one of transformers."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from hope_data.errors import InputError
from hope_data.tokenizer import Tokenizer


class TextTokenizer(Protocol):
    """What text tasks need of a tokenizer."""

    eos_id: int
    vocab_size: int

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids; `special` puts before them what the model expects at a text's start."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids."""


class HopeTokenizer:
    """Ours: texts begin after end-of-text, as documents do in training."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.inner = self.data = tokenizer
        self.eos_id, self.vocab_size = tokenizer.eos_id, tokenizer.vocab_size

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        ids = self.inner.encode(text)
        return [self.eos_id, *ids] if special else ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text; end-of-text has none."""
        return self.inner.decode(ids)


class HFTokenizer:
    """A tokenizer of transformers with its own habits.

    Raises:
        InputError: the folder holds none, or one without an end of text.
    """

    def __init__(self, folder: Path) -> None:
        try:
            import transformers  # noqa: PLC0415 (optional, and slow to import)
        except ImportError:
            raise InputError(
                f"{folder} is a tokenizer of transformers; pip install 'hope-eval[lm-eval]' to read it"
            ) from None
        try:
            self.inner: Any = transformers.AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # noqa: BLE001 (of a damaged folder, from three libraries)
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{folder}: its tokenizer cannot be loaded ({reason}); save it again") from None
        if self.inner.eos_token_id is None:
            raise InputError(f"{folder}: the tokenizer has no end-of-text token; set eos_token")
        self.folder = folder
        self.eos_id, self.vocab_size = int(self.inner.eos_token_id), len(self.inner)

    @cached_property
    def data(self) -> Tokenizer:
        """The same as shards are made with."""
        return Tokenizer.load(self.folder)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids; `special` leaves it to the tokenizer's own default, unless the text begins with its token."""
        begun = text.startswith(str(self.inner.bos_token or self.inner.eos_token))
        options = {} if special and not begun else {"add_special_tokens": False}
        return list(self.inner.encode(text, **options))

    def decode(self, ids: Sequence[int]) -> str:
        """Text without special tokens."""
        return str(self.inner.decode(list(ids), skip_special_tokens=True))
