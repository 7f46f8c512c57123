"""Domains that are learned one after another: what is read of each, and what is held out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hope_data.errors import InputError
from hope_data.shards import Split
from hope_data.tokenizer import Tokenizer
from hope_eval.scoring.scorer import Tokens
from hope_eval.scoring.tokenizers import TextTokenizer
from hope_eval.tasks.texts import tokens_of

LONGEST_DOCUMENT = 2048  # tokens of a held-out document


@dataclass(frozen=True)
class Domain:
    """What is read of a domain, and what is held out: documents in tokens, with their bytes."""

    name: str
    stream_T: Tokens
    held_out: list[tuple[Tokens, int]]


def of_texts(tokenizer: TextTokenizer, texts: Mapping[str, str], learned: int, held_out: int) -> list[Domain]:
    """Return a domain per text, whose last tenth is held out.

    Args:
        tokenizer: the model's.
        texts: by name.
        learned: most tokens read of each.
        held_out: most tokens measured of each.

    Raises:
        InputError: a text that is too short.
    """
    domains = []
    for name, text in texts.items():
        cut = text.rfind("\n", 0, len(text) * 9 // 10) + 1
        rest_T = tokens_of(tokenizer, text[cut:])[: held_out + 1]
        size = len(tokenizer.decode(rest_T[1:].tolist()).encode())
        if not cut or not size:
            raise InputError(f"{name}: too short for a domain; its last tenth is held out, in whole lines")
        domains.append(Domain(name, tokens_of(tokenizer, text[:cut])[:learned], [(rest_T, size)]))
    return domains


def of_shards(tokenizer: Tokenizer, folders: Sequence[Path], learned: int, held_out: int) -> list[Domain]:
    """Return a domain per corpus: its train split is read, its test split measured.

    Raises:
        InputError: a test split without text.
    """
    domains = []
    for folder in folders:
        train, test = (Split.open(folder, name, tokenizer) for name in ("train", "test"))
        documents = _documents(test, tokenizer, held_out)
        if not documents:
            raise InputError(f"{folder}: its test split holds no text; leave it out of --corpora")
        domains.append(Domain(folder.name, train.tokens[:learned].astype(np.int64), documents))
    return domains


def _documents(split: Split, tokenizer: Tokenizer, budget: int) -> list[tuple[Tokens, int]]:
    """Documents after what stands before a text, with their bytes, up to so many tokens in all."""
    documents, room = [], budget
    for number in range(split.n_documents):
        tokens_T = split.document(number)[: min(room, LONGEST_DOCUMENT)].astype(np.int64)
        size = int(tokenizer.token_bytes[tokens_T].sum())
        if size:
            documents.append((np.concatenate(([tokenizer.begin_id], tokens_T)), size))
            room -= len(tokens_T)
        if room <= 0:
            break
    return documents
