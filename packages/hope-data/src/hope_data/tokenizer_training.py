"""Learning a tokenizer: the text it learns from, its coverage of each corpus, and a guard against a worse one."""

import io
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import sentencepiece

from hope_data import documents
from hope_data.errors import InputError
from hope_data.files import dump_sealed, load_sealed, read_bytes
from hope_data.hf_tokenizer import SPACE
from hope_data.publishing import new_folder
from hope_data.splits import SplitRule
from hope_data.tokenizer import META, MODEL, Tokenizer

# Its own sign for the unknown: it would skip a line that has one.
_UNKNOWN = "\u2585"
_LINE = 2000
# What sentencepiece says of a vocabulary that does not fit, with the nearest that might.
_TOO_LARGE, _TOO_SMALL = re.compile(r"Please set it to a value <= (\d+)"), re.compile(r"\d+ vs (\d+)")
_TRIES = 30


@dataclass(frozen=True)
class _Sample:
    train: list[str]
    held_out: list[str]


def _sample(folder: Path, train_bytes: int, held_out_bytes: int) -> _Sample:
    """About so many bytes of a corpus's train and val documents, picked by content hash from all of it."""
    record = documents.provenance(folder, "clean")
    rule = SplitRule.from_dict(record["split"])
    sample = _Sample([], [])
    wanted = {"train": (sample.train, train_bytes), "val": (sample.held_out, held_out_bytes)}
    room = {"train": train_bytes, "val": held_out_bytes}
    for document in documents.read(folder):
        sha256 = document.meta["sha256"]
        split = rule.of(sha256)
        if split not in wanted or room[split] <= 0:
            continue
        texts, size = wanted[split]
        share = size / max(1.0, record["bytes"] * (rule.val if split == "val" else 1 - rule.val - rule.test))
        # Other digits of the hash than those that decide the split.
        if not texts or int(sha256[16:32], 16) / 2**64 < share:
            texts.append(document.text)
            room[split] -= len(document.text.encode())
    return sample


def _lines(texts: Iterable[str]) -> Iterator[str]:
    # A newline is a token of its own, so that nothing is lost by training on lines.
    for text in texts:
        for line in text.replace(SPACE, "").replace(_UNKNOWN, "\n").split("\n"):
            yield from (line[i : i + _LINE] for i in range(0, len(line), _LINE))


class _Unfit(InputError):
    """A vocabulary that a text cannot fill, or that cannot hold its characters.

    Attributes:
        nearest: one that might fit, 0 if none is known.
    """

    def __init__(self, vocab_size: int, reason: str):
        match = _TOO_LARGE.search(reason) or _TOO_SMALL.search(reason)
        self.nearest = int(match[1]) if match else 0
        why = "there is none to learn from" if "sentences_.empty" in reason else reason
        super().__init__(f"tokenizer: a vocabulary of {vocab_size} does not fit this text ({why})")


def _fit(texts: list[str], vocab_size: int, threads: int) -> bytes:
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(texts),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            byte_fallback=True,
            split_digits=True,
            user_defined_symbols=["\n"],
            # Text may have no space, or so few that it would get no token of its own.
            required_chars=SPACE,
            unk_id=0,
            eos_id=1,
            bos_id=-1,
            pad_id=-1,
            max_sentence_length=4 * _LINE,
            # Three candidates a token: on documentation this gave 2 % more bytes per token than 24, in half the time.
            seed_sentencepiece_size=3 * vocab_size,
            num_threads=threads,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _Unfit(vocab_size, str(error).strip().splitlines()[-1]) from None
    return model.getvalue()


def _with_remedy(error: _Unfit, vocab_size: int, learn: Callable[[int], object]) -> InputError:
    """The error with the nearest vocabulary that fits: what sentencepiece names depends on the size asked for."""
    nearest = error.nearest
    for _ in range(_TRIES):
        if not nearest:
            break
        try:
            learn(nearest)
        except _Unfit as another:
            nearest = another.nearest
            continue
        kind = "large" if nearest < vocab_size else "small"
        return InputError(
            f"tokenizer: a vocabulary of {vocab_size} is too {kind} for this text; {nearest} fits: set it to that "
            "(--vocab-size, or model.vocab_size in conf/scale)"
        )
    return InputError(f"{error}; give it more text")


def coverage(tokenizer: Tokenizer, texts: list[str]) -> dict[str, float]:
    """How well a tokenizer covers texts.

    Returns:
        bytes_per_token, tokens_per_word (words end at white space), fallback_share (tokens that are single
        raw bytes), single_token_words (share of distinct words), and the sample's bytes and documents.
    """
    ids = np.array([i for row in tokenizer.encode_batch(texts) for i in row], np.int64)
    words = sorted({word for text in texts for word in text.split()})
    n_bytes = sum(len(text.encode()) for text in texts)
    whole = sum(len(row) == 1 for row in tokenizer.encode_batch([" " + word for word in words]))
    return {
        "bytes_per_token": n_bytes / max(1, len(ids)),
        "tokens_per_word": len(ids) / max(1, sum(len(text.split()) for text in texts)),
        "fallback_share": float(tokenizer.is_fallback[ids].mean()) if len(ids) else 0.0,
        "single_token_words": whole / max(1, len(words)),
        "bytes": n_bytes,
        "documents": len(texts),
    }


@dataclass(frozen=True)
class Guard:
    """Coverage that a new tokenizer must keep up with.

    Attributes:
        source: file it comes from.
        bytes_per_token: of each corpus.
        worse: share by which a corpus may fall behind.
    """

    source: Path
    bytes_per_token: dict[str, float]
    worse: float

    @classmethod
    def load(cls, path: Path, worse: float) -> Self:
        """Read the coverage that `hope-data tokenizer --json` or a tokenizer's own `tokenizer.json` records.

        Raises:
            InputError: no such file, or none of that kind.
        """
        try:
            record = json.loads(read_bytes(path))
            if "seal" in record:
                record = load_sealed(path, "name another file with --guard")
            known = {name: float(c["bytes_per_token"]) for name, c in record["coverage"].items()}
            if all(0 < number < math.inf for number in known.values()):
                return cls(path, known, worse)
            raise ValueError
        except InputError:
            raise
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}; --guard takes what `--json` wrote") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise InputError(f"{path}: holds no coverage; --guard takes what `--json` wrote") from None

    def furthest_behind(self, coverage: dict[str, dict[str, float]]) -> tuple[str, float]:
        """Of the corpora that both know, the one that lost most, and the share of its bytes per token that is lost.

        With no corpus in common, ("", 0).
        """
        lost = {
            name: 1 - coverage[name]["bytes_per_token"] / before
            for name, before in self.bytes_per_token.items()
            if name in coverage
        }
        return max(lost.items(), key=lambda item: item[1], default=("", 0.0))

    def check(self, coverage: dict[str, dict[str, float]]) -> None:
        """Raise InputError if a corpus that both know has too few bytes per token."""
        name, lost = self.furthest_behind(coverage)
        if not lost <= self.worse:
            raise InputError(
                f"tokenizer: {name} has {coverage[name]['bytes_per_token']:.3f} bytes per token, {lost:.1%} less than "
                f"the {self.bytes_per_token[name]:.3f} of {self.source} (at most {self.worse:.1%} allowed); look at "
                "its text, or raise --worse (coverage_loss in params.yaml)"
            )


def train(
    folders: dict[str, Path],
    out: Path,
    vocab_size: int,
    sample_bytes: int = 0,
    threads: int = 2,
    weights: dict[str, float] | None = None,
    guard: Guard | None = None,
) -> dict[str, Any]:
    """Train a tokenizer on the train documents of clean corpora and write its folder.

    Every corpus gives bytes by its weight, if it has them. Held-out documents never train it; they measure its
    coverage. The result depends on the text and the arguments, not on the machine.

    Args:
        folders: corpus name to folder of `hope-data filter`.
        out: folder to write.
        vocab_size: tokens, specials and the 256 bytes included.
        sample_bytes: text to learn from, all corpora together; 0 for 750 bytes per token of the vocabulary.
        threads: of sentencepiece; part of the recipe because it orders floating-point sums.
        weights: share of each corpus in that text, any positive scale; empty: all alike.
        guard: coverage it must keep up with, else nothing is written.

    Returns:
        What `tokenizer.json` holds: settings, sha256 and coverage per corpus.

    Raises:
        InputError: no corpus, an unfit one, a vocabulary that does not fit the text, or coverage that worsened.
    """
    if not folders:
        raise InputError("tokenizer: no clean corpus given; run `hope-data filter` first")
    given = weights or dict.fromkeys(folders, 1.0)
    if sorted(given) != sorted(folders) or not all(1e-6 <= weight <= 1e6 for weight in given.values()):
        raise InputError(
            f"tokenizer: weights {given} must name {', '.join(folders)}, each between 0.000001 and 1000000"
        )

    def learn(size: int) -> tuple[dict[str, _Sample], bytes]:
        unit = (sample_bytes or 750 * size) / sum(given.values())
        samples = {
            name: _sample(folder, int(unit * given[name]), 200_000) for name, folder in folders.items()
        }
        return samples, _fit([text for sample in samples.values() for text in sample.train], size, threads)

    try:
        # Of one token sentencepiece does not say that it is too few.
        samples, model = learn(max(vocab_size, 2))
    except _Unfit as error:
        raise _with_remedy(error, vocab_size, learn) from None
    tokenizer = Tokenizer(model)
    coverages = {name: coverage(tokenizer, sample.held_out) for name, sample in samples.items()}
    if guard:
        guard.check(coverages)
    meta = {
        "sha256": tokenizer.sha256,
        "vocab_size": vocab_size,
        "threads": threads,
        "weights": given,
        "sample_bytes": {n: sum(len(t.encode()) for t in s.train) for n, s in samples.items()},
        "coverage": coverages,
        "sentencepiece": sentencepiece.__version__,
    }
    with new_folder(out, META) as folder:
        (folder / MODEL).write_bytes(model)
        (folder / META).write_bytes(dump_sealed(meta))
    return meta
