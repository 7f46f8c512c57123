"""Texts of files: whole books to read, or haystacks that hide something."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from hope_data.errors import InputError
from hope_eval.files import read_text
from hope_eval.scoring.scorer import Tokens
from hope_eval.scoring.tokenizers import TextTokenizer
from hope_eval.tasks.base import Task

MARKS = ("*** START OF", "*** END OF")


class TextTask(Task):
    """A task over whole texts of files, which are read when it is made; see `load_texts`."""

    text: Sequence[Path] | None

    def __post_init__(self) -> None:
        """Refuse unreadable texts."""
        _ = self.texts

    @cached_property
    def texts(self) -> dict[str, str]:
        """Texts by name."""
        return load_texts(self.text or ())


def load_texts(paths: Sequence[Path]) -> dict[str, str]:
    """Return texts by file name, without Project Gutenberg's header and footer.

    Raises:
        InputError: a file that is missing, empty, too long or not UTF-8, or two of one name.
    """
    texts: dict[str, str] = {}
    for path in (
        file for given in paths for file in (sorted(given.iterdir()) if given.is_dir() else [given])
    ):
        if not path.is_file() or path.suffix not in (".txt", ".gz"):
            raise InputError(f"{path}: not a .txt or .txt.gz file; name the texts one by one")
        text = _body(read_text(path))
        if not text.strip():
            raise InputError(f"{path}: holds no text; leave it out")
        name = path.name.removesuffix(".gz").removesuffix(".txt")
        if name in texts:
            raise InputError(f"{path}: another text is called {name}, too; rename one of them")
        texts[name] = text
    if paths and not texts:
        raise InputError(f"{paths[0]}: no .txt file here; name others with --text")
    return texts


def tokens_of(tokenizer: TextTokenizer, text: str) -> Tokens:
    """Return a text's tokens after what the model expects at a text's start."""
    lines = [tokenizer.encode(line, special=False) for line in text.splitlines(keepends=True)]
    begin = tokenizer.encode("") or [tokenizer.eos_id]
    return np.array([*begin, *(i for line in lines for i in line)], np.int64)


def haystack(tokenizer: TextTokenizer, texts: Mapping[str, str]) -> Tokens:
    """Return the tokens of all texts, one after another."""
    parts = [tokens_of(tokenizer, text)[1:] for text in texts.values()]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def _body(text: str) -> str:
    lines = text.splitlines(keepends=True)
    begin = next((n + 1 for n, line in enumerate(lines) if line.startswith(MARKS[0])), 0)
    end = next((n for n, line in enumerate(lines) if line.startswith(MARKS[1])), len(lines))
    return "".join(lines[begin:end])
