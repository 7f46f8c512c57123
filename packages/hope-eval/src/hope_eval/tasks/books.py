"""Loss by position over whole books: does a model still gain from what it read long ago?

Each text is read once from its beginning, state carried, in nats per token by position (0-255, 256-511, 512-1023,
... tokens) and in bits per byte of the whole.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hope_data.errors import InputError
from hope_eval.files import read_text
from hope_eval.results import Items, TaskResult, fingerprint, rounded
from hope_eval.scoring.load import TextTokenizer
from hope_eval.scoring.scorer import Scorer, Tokens
from hope_eval.tasks.base import Stopwatch

VERSION, FIRST = 1, 256
MARKS = ("*** START OF", "*** END OF")


def load_texts(paths: Sequence[Path]) -> dict[str, str]:
    """Texts by file name, without Project Gutenberg's header and footer.

    Raises:
        InputError: a file that is missing, empty, too long or not UTF-8, or two of one name.
    """
    made: dict[str, str] = {}
    for path in (
        file for given in paths for file in (sorted(given.iterdir()) if given.is_dir() else [given])
    ):
        if not path.is_file() or path.suffix not in (".txt", ".gz"):
            raise InputError(f"{path}: not a .txt or .txt.gz file; name the texts one by one")
        text = _body(read_text(path))
        if not text.strip():
            raise InputError(f"{path}: holds no text; leave it out")
        name = path.name.removesuffix(".gz").removesuffix(".txt")
        if name in made:
            raise InputError(f"{path}: another text is called {name}, too; rename one of them")
        made[name] = text
    if paths and not made:
        raise InputError(f"{paths[0]}: no .txt file here; name others with --text")
    return made


def tokens_of(tokenizer: TextTokenizer, text: str) -> Tokens:
    """A text after what the model expects at a text's start."""
    parts = [
        tokenizer.encode(tokenizer_line, special=False) for tokenizer_line in text.splitlines(keepends=True)
    ]
    begin = tokenizer.encode("") or [tokenizer.eos_id]
    return np.array([*begin, *(i for part in parts for i in part)], np.int64)


def run(scorer: Scorer, tokenizer: TextTokenizer, texts: dict[str, str], most: int = 0) -> list[TaskResult]:
    """Read every text once.

    Args:
        scorer: the model.
        tokenizer: its own.
        texts: by name.
        most: tokens of each text at most; 0: as many as the model allows.
    """
    limit = scorer.model.max_length
    if limit is not None and most > limit:
        raise InputError(f"--max-tokens {most}: attention of this model allows {limit}")
    watch = Stopwatch(scorer)
    whole_T = {
        name: tokens_of(tokenizer, text)[: (most or limit or 2**62) + 1] for name, text in texts.items()
    }
    scorer.begin("books", sum(map(len, whole_T.values())))
    rows: list[tuple[str, str, float, float]] = []
    whole: list[tuple[str, float, float]] = []
    identity = []
    for name, tokens_T in whole_T.items():
        logp_T = np.concatenate([logp for logp, _ in scorer.stream_logp(tokens_T)])
        rows += [(name, bucket, -logp_T[a:b].sum(), float(b - a)) for bucket, a, b in buckets(len(logp_T))]
        n_bytes = len(tokenizer.decode(tokens_T[1:].tolist()).encode())
        whole.append((name, -logp_T.sum() / np.log(2), float(n_bytes)))
        identity.append([name, fingerprint(tokens_T.tolist())])
    tokens, seconds = watch.stop()
    cluster = {name: n for n, name in enumerate(texts)}
    by_position = Items(
        {"book": [r[0] for r in rows], "position": [r[1] for r in rows]},
        [cluster[r[0]] for r in rows],
        [r[3] for r in rows],
        {"token_nats": rounded([r[2] for r in rows])},
    )
    by_book = Items(
        {"book": [w[0] for w in whole]},
        list(range(len(whole))),
        [w[2] for w in whole],
        {"bits_per_byte": rounded([w[1] for w in whole])},
    )
    settings: dict[str, int | float | str | list[int] | list[float]] = {"max_tokens": most}
    return [
        TaskResult(
            name,
            VERSION,
            settings,
            0,
            fingerprint([name, VERSION, identity]),
            fed,
            spent,
            items.metrics(),
            items,
        )
        for name, items, fed, spent in (
            ("books", by_book, tokens, seconds),
            ("books_position", by_position, 0, 0.0),
        )
    ]


def buckets(size: int) -> list[tuple[str, int, int]]:
    """Ranges of positions: 256 tokens, then as many again, then twice as many ... as far as the text reaches."""
    made, start, end = [], 0, FIRST
    while start < size:
        made.append((f"{start}-{end - 1}", start, min(end, size)))
        start, end = end, 2 * end
    return made


def _body(text: str) -> str:
    lines = text.splitlines(keepends=True)
    begin = next((n + 1 for n, line in enumerate(lines) if line.startswith(MARKS[0])), 0)
    end = next((n for n, line in enumerate(lines) if line.startswith(MARKS[1])), len(lines))
    return "".join(lines[begin:end])
