"""A lossless sentencepiece unigram tokenizer that knows how many bytes each token stands for."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import sentencepiece

from hope_data.errors import InputError
from hope_data.files import conform, load_sealed, read_bytes, sha256_bytes
from hope_data.hf_tokenizer import SPACE, Pieces

META = "tokenizer.json"
MODEL = "tokenizer.model"
# A capital, spaces, a tab, letters of one to four bytes, digits: what must come back as it was.
_PROBE = "A  b\tc\nd é ж 文 🙂 1234"


def is_foreign(folder: Path) -> bool:
    """Whether a folder holds a tokenizer of Hugging Face, whose file goes by the name of our record."""
    content = (folder / META).read_bytes() if (folder / META).is_file() else b""
    return b'"seal"' not in content and b'"added_tokens"' in content


class Tokenizer:
    """Text to token ids and back, without loss.

    Attributes:
        vocab_size: number of tokens.
        eos_id: end of text; ends every document of a shard.
        begin_id: what stands before a text: end of text, or begin of text where a tokenizer has one.
        token_bytes: int64 [vocab_size], UTF-8 bytes a token stands for (0 for the specials).
        is_fallback: bool [vocab_size], whether a token is one raw byte.
        sha256: hash of `tokenizer.model`.
        meta: what `tokenizer.json` says: how it was trained, and its coverage per corpus.
    """

    def __init__(self, model: bytes, meta: dict[str, Any] | None = None):
        try:
            self._sp = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError:
            raise InputError(
                "tokenizer.model: is no sentencepiece model; run `hope-data tokenizer` again"
            ) from None
        self.meta = meta or {}
        self.sha256 = sha256_bytes(model)
        self.vocab_size: int = self._sp.vocab_size()
        self.eos_id: int = self._sp.eos_id()
        self.begin_id = self.eos_id
        if self._sp.is_unknown(self._sp.piece_to_id(SPACE)):
            raise InputError(
                "tokenizer.model: has no token for a space, so text would not come back as it was; run `hope-data "
                "tokenizer` again, then `hope-data shard`"
            )
        self._pieces = [self._piece(i) for i in range(self.vocab_size)]
        self._space_ids = [self._sp.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]
        self.is_fallback: npt.NDArray[np.bool_] = np.array(
            [self._sp.is_byte(i) for i in range(self.vocab_size)]
        )
        self.token_bytes: npt.NDArray[np.int64] = np.array([len(piece) for piece in self._pieces], np.int64)

    def _piece(self, i: int) -> bytes:
        if self._sp.is_control(i) or self._sp.is_unknown(i):
            return b""
        piece: str = self._sp.id_to_piece(i)
        return bytes([int(piece[3:5], 16)]) if self._sp.is_byte(i) else piece.replace(SPACE, " ").encode()

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        """Open a tokenizer folder: one of ours, or one of Hugging Face with a `tokenizer.json`.

        Raises:
            InputError: missing, damaged, or a model that is not the one its `tokenizer.json` names.
        """
        folder = Path(folder)
        if is_foreign(folder):
            return _HuggingFace(folder / META)
        meta = load_sealed(folder / META, "train one with `hope-data tokenizer`")
        conform(folder / META, meta, {"sha256": str}, "run `hope-data tokenizer` again")
        try:
            model = read_bytes(folder / MODEL)
        except OSError as error:
            raise InputError(f"{folder / MODEL}: {error.strerror}; run `hope-data tokenizer` again") from None
        if sha256_bytes(model) != meta["sha256"]:
            raise InputError(
                f"{folder / MODEL}: is not the model that {META} names; run `hope-data tokenizer` again"
            )
        return cls(model, meta)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without end-of-text.

        Raises:
            InputError: the text holds a lone surrogate, which has no UTF-8 form.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: list[str], threads: int = 1) -> list[list[int]]:
        """Token ids of several texts; the same for any number of threads."""
        try:
            # A space character that stands in the text itself goes through as bytes.
            raw = [text.replace(SPACE, "").encode() for text in texts]
        except UnicodeEncodeError as error:
            raise InputError(
                f"text is not valid Unicode ({error.reason}); repair it with `hope-data filter`"
            ) from None
        ids: list[list[int]] = self._sp.encode(raw, num_threads=threads)
        for i, text in enumerate(texts):
            if SPACE in text:
                ids[i] = self._encode_marked(text)
        return ids

    def _encode_marked(self, text: str) -> list[int]:
        parts: list[list[int]] = [self._sp.encode(part) for part in text.split(SPACE)]
        first, *rest = parts
        return first + [i for part in rest for i in (*self._space_ids, *part)]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids; a cut UTF-8 sequence at either end becomes U+FFFD."""
        return b"".join(self._pieces[i] for i in ids).decode("utf-8", errors="replace")


class _HuggingFace(Tokenizer):
    """One that puts a space before every text counts a byte more for each document."""

    def __init__(self, path: Path) -> None:
        content = path.read_bytes()
        inner = Pieces(path, content)
        self.meta, self.sha256 = {}, sha256_bytes(content)
        self._encode, self._pieces, self.vocab_size = inner.encode, inner.bytes, len(inner.bytes)
        self.eos_id, self.begin_id = inner.eos_id, inner.begin_id
        self.token_bytes = np.array([len(piece) for piece in self._pieces], np.int64)
        self.is_fallback = np.array([len(x) == 1 and x[0] > 127 for x in self._pieces])
        if self.decode(self.encode(_PROBE)).removeprefix(" ") != _PROBE:
            raise InputError(f"{path}: text does not come back as it was, so its bytes cannot be counted")

    def encode_batch(self, texts: list[str], threads: int = 1) -> list[list[int]]:
        """Token ids of several texts, without special tokens."""
        del threads
        return self._encode(texts)
