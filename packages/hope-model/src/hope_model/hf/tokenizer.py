"""The tokenizer of hope-data as one of transformers."""

from pathlib import Path
from typing import Any, ClassVar, Self

import sentencepiece
import transformers

from hope_model.hf import record

VOCABULARY = "tokenizer.model"
# Sentencepiece writes a space as this character; one that stands in the text itself goes through as bytes.
_SPACE = "\u2581"


class HopeTokenizer(transformers.PreTrainedTokenizer):  # type: ignore[misc]
    """The sentencepiece tokenizer of hope-data, id for id; no token is added by itself, none is written as text."""

    vocab_files_names: ClassVar = {"vocab_file": VOCABULARY}
    model_input_names: ClassVar = ["input_ids", "attention_mask"]

    def __init__(self, vocab_file: str, **kwargs: Any) -> None:
        self.vocab_file = vocab_file
        self._sp = sentencepiece.SentencePieceProcessor(model_file=vocab_file)
        for name, token in (("eos_token", self._sp.eos_id()), ("unk_token", self._sp.unk_id())):
            kwargs.setdefault(name, self._sp.id_to_piece(token))
        # `</s>` in a text (HTML has it) is four characters, as in training, and does not end the text.
        kwargs.setdefault("split_special_tokens", True)
        super().__init__(**kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Self:
        """Load as transformers does, after comparing the tokenizer's files with their recorded hashes.

        Raises:
            InputError: a file is missing or was changed.
        """
        record.check(Path(str(pretrained_model_name_or_path)), (VOCABULARY, "tokenizer_config.json"))
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)  # type: ignore[no-any-return]

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> tuple[str, ...]:
        """Save as transformers does, and record the hashes of what was written."""
        written: tuple[str, ...] = super().save_pretrained(save_directory, *args, **kwargs)
        names = [Path(path).name for path in written if path and Path(path).is_file()]
        record.add(Path(save_directory), names)
        return written

    @property
    def vocab_size(self) -> int:
        return int(self._sp.vocab_size())

    @property
    def lossless(self) -> bool:
        """Whether there is a token for a space; for all else there are bytes."""
        return not self._sp.is_unknown(self._sp.piece_to_id(_SPACE))

    def get_vocab(self) -> dict[str, int]:
        return {self._sp.id_to_piece(n): n for n in range(self.vocab_size)}

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        first, *rest = text.split(_SPACE)
        pieces: list[str] = self._sp.encode(first, out_type=str)
        for part in rest:
            pieces += [*(f"<0x{byte:02X}>" for byte in _SPACE.encode()), *self._sp.encode(part, out_type=str)]
        return pieces

    def _convert_token_to_id(self, token: str) -> int:
        return int(self._sp.piece_to_id(token))

    def _convert_id_to_token(self, index: int) -> str:
        # Ids of a vocabulary that was resized beyond the tokenizer's are no text, as in transformers' own.
        return str(self._sp.id_to_piece(index)) if index < self.vocab_size else ""

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Text of pieces; bytes are joined before they are decoded."""
        parts = []
        for token in tokens:
            index = self._sp.piece_to_id(token)
            if self._sp.is_byte(index):
                parts.append(bytes([int(token[3:5], 16)]))
            else:
                parts.append(token.replace(_SPACE, " ").encode())
        return b"".join(parts).decode("utf-8", errors="replace")

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        """Copy the sentencepiece model."""
        name = f"{filename_prefix}-{VOCABULARY}" if filename_prefix else VOCABULARY
        path = Path(save_directory) / name
        path.write_bytes(Path(self.vocab_file).read_bytes())
        return (str(path),)
