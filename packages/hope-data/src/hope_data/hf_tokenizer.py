"""Tokenizers of Hugging Face, for converted models: ids, and the bytes of every token. Needs hope-data[hf]."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hope_data.errors import InputError

CONFIG = "tokenizer_config.json"
# Sentencepiece writes a space as this character.
SPACE = "\u2581"


class Pieces:
    """A byte-level or sentencepiece tokenizer from `tokenizer.json`; special tokens are text where a text has them.

    Attributes:
        bytes: what each token stands for; nothing for special ones.
        eos_id: end of text.
        begin_id: what stands before a text: begin-of-text where there is one.
    """

    def __init__(self, path: Path, content: bytes) -> None:
        try:
            import tokenizers  # noqa: PLC0415 (optional)
        except ImportError:
            raise InputError(f"{path} is a tokenizer of Hugging Face; pip install 'hope-data[hf]'") from None
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        try:
            self._inner = tokenizers.Tokenizer.from_buffer(content)
            values: dict[str, Any] = json.loads(content)
        except Exception as error:  # noqa: BLE001 (tokenizers raises nothing narrower)
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{path}: is no tokenizer of Hugging Face ({reason})") from None
        self._inner.encode_special_tokens = True
        self._inner.no_padding()
        self._inner.no_truncation()
        vocabulary = self._inner.get_vocab(with_added_tokens=True)
        self.bytes = _pieces(path, values, vocabulary)
        self.eos_id, self.begin_id = _special(path.parent, vocabulary)

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of several texts, without special tokens."""
        try:
            rows = self._inner.encode_batch_fast(texts, add_special_tokens=False)
        except (UnicodeEncodeError, TypeError):  # of a lone surrogate
            raise InputError("text is not valid Unicode; repair it with `hope-data filter`") from None
        return [list(row.ids) for row in rows]


def _pieces(path: Path, values: dict[str, Any], vocabulary: dict[str, int]) -> list[bytes]:
    """Bytes of every token; none of special ones."""
    kinds = set(_kinds(values.get("decoder")))
    table = {character: byte for byte, character in _characters()}
    if "ByteLevel" not in kinds and not kinds & {"Metaspace", "Replace"}:
        raise InputError(
            f"{path}: its decoder ({', '.join(sorted(kinds)) or 'none'}) is neither byte-level nor sentencepiece's"
        )
    pieces = [b""] * (max(vocabulary.values()) + 1)
    for piece, number in vocabulary.items():
        if "ByteLevel" in kinds:
            pieces[number] = bytes(table.get(character, 0) for character in piece)
        elif len(piece) == 6 and piece.startswith("<0x"):
            pieces[number] = bytes([int(piece[3:5], 16)])
        else:
            pieces[number] = piece.replace(SPACE, " ").encode()
    for token in values.get("added_tokens", []):
        pieces[token["id"]] = b"" if token.get("special") else token["content"].encode()
    return pieces


def _kinds(decoder: Any) -> Iterator[str]:
    if isinstance(decoder, dict):
        yield str(decoder.get("type"))
        for part in decoder.get("decoders", []):
            yield from _kinds(part)


def _characters() -> Iterator[tuple[int, str]]:
    """The character that byte-level tokenizers write for each byte (GPT-2's table): itself where it can be seen."""
    shift = 0
    for byte in range(256):
        seen = 33 <= byte <= 126 or 161 <= byte <= 172 or byte >= 174
        yield byte, chr(byte if seen else 256 + shift)
        shift += not seen


def _special(folder: Path, vocabulary: dict[str, int]) -> tuple[int, int]:
    """Ids of end-of-text, and of what stands before a text: begin-of-text where there is one."""
    path = folder / CONFIG
    try:
        values = json.loads(path.read_bytes())
        tokens = [values.get(key) for key in ("eos_token", "bos_token")]
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; save the tokenizer again") from None
    except (ValueError, AttributeError, RecursionError):
        raise InputError(f"{path}: holds no JSON object; save the tokenizer again") from None
    texts = [token.get("content") if isinstance(token, dict) else token for token in tokens]
    ids = [vocabulary.get(str(text)) for text in texts]
    if ids[0] is None:
        raise InputError(f"{path}: the tokenizer has no end-of-text token; set eos_token")
    return ids[0], ids[0] if ids[1] is None else ids[1]
