"""Every evaluator on one checkpoint at small sizes: the commands that make its pack.

    .PACK.json.partial/HASH.json    result of a command that is done; its name is a hash of all that determines it

The folder is left by an interruption, and the next run of the same suite resumes there. It goes once the pack is whole.
"""

import argparse
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

from hope_data.errors import InputError
from hope_data.files import sha256_bytes
from hope_data.publishing import exclusive, write_atomic
from hope_eval import results as schema
from hope_eval.lm_eval_bridge.mirror import FILES


@dataclass(frozen=True)
class Sizes:
    """How much is asked; standard errors at these sizes stand beside every result.

    Attributes:
        rows: of each zero-shot task.
        articles: of WikiText.
        lengths: of needle prompts; four times the training length of smoke is what its attention allows.
        questions: of each bAbI file.
        book_tokens: of each book.
        learned: tokens of each domain of a stream.
        held_out: tokens measured of each domain.
        groups: of classes that come one after another.
        shots: examples learned of each class.
        memorized: items asked with memories frozen and written.
    """

    rows: int = 100
    articles: int = 4
    lengths: str = "512,2k"
    questions: int = 30
    book_tokens: int = 2048
    learned: int = 2000
    held_out: int = 400
    groups: int = 2
    shots: int = 2
    memorized: int = 100


def run(given: argparse.Namespace, call: Callable[[list[str]], None]) -> Iterator[str]:
    """Make the pack, and yield a line about each step.

    Args:
        given: options of `hope-eval suite`.
        call: runs a command of `hope-eval`, given as its arguments.

    Raises:
        InputError: a command's, or another process makes the same pack.
    """
    from hope_eval.scoring.about import revision  # noqa: PLC0415 (torch is slow to import)
    from hope_eval.scoring.load import load  # noqa: PLC0415

    loaded = load(given.checkpoint, given.tokenizer)
    bounded, writes = loaded.model.max_length is None, bool(getattr(loaded.model, "memories", ()))
    weights, code = loaded.about.sha256, revision()
    del loaded
    data = [given.shards, given.mirror, given.clinc150, *given.text, *given.babi]
    whole, out = given.json, given.json.with_name(f".{given.json.name}.partial")
    with exclusive(whole):
        commands = pieces(given, Sizes(), bounded=bounded, writes=writes)
        sources = _state(path for path in data if path)
        parts = {}
        for command in commands:
            name = sha256_bytes(repr([command, weights, code, sources]).encode())[:16]
            parts[out / f"{name}.json"] = command
        for path in out.glob("*"):
            if path not in parts:
                path.unlink()
        for path, command in parts.items():
            yield f"\nhope-eval {shlex.join(command)}"
            if _measured(path, weights):
                yield "measured before the interruption"
                continue
            start = time.monotonic()
            call([*_without_json(command), "--json", str(path)])
            yield f"{time.monotonic() - start:.1f} s"
        pack = reduce(schema.merge, [schema.load(path) for path in parts])
        write_atomic(whole, schema.sealed(pack))
        shutil.rmtree(out)


def _measured(path: Path, weights: str) -> bool:
    """Whether a whole result of these weights is there."""
    try:
        return path.is_file() and schema.load(path).checkpoint.sha256 == weights
    except InputError:
        return False


def _without_json(command: Sequence[str]) -> list[str]:
    at = command.index("--json")
    return [word for word in (*command[:at], *command[at + 2 :]) if word != "--add"]


def _state(paths: Iterator[Path]) -> list[tuple[str, int, int]]:
    """Name, size and time of every file of the data: other data make other results."""
    files = (file for path in paths for file in ([path] if path.is_file() else sorted(path.rglob("*"))))
    return [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.is_file()]


def pieces(given: argparse.Namespace, sizes: Sizes, *, bounded: bool, writes: bool) -> list[list[str]]:
    """Arguments of `hope-eval`, one list a command; evaluators without data are left out.

    Args:
        given: options of `hope-eval suite`.
        sizes: how much is asked.
        bounded: whether the state stays as large as it is; full attention can only be trained on streams.
        writes: whether the model has memories to write at test time.
    """
    model = ["--checkpoint", str(given.checkpoint), "--tokenizer", str(given.tokenizer)]
    model += ["--json", str(given.json), "--add"]
    shards = ["--shards", str(given.shards)]
    text = ["--text", *map(str, given.text)]
    learn = ["--learn", "memorize" if bounded else "train"]
    stream = ["--tokens", str(sizes.learned), "--held-out", str(sizes.held_out)]
    commands = [["run", *model, *shards]]
    if given.mirror:
        mirror = ["--mirror", str(given.mirror)]
        rows = ",".join(task for task in FILES if task != "wikitext")
        commands.append(["zeroshot", *model, *mirror, "--tasks", rows, "--limit", str(sizes.rows)])
        commands.append(["zeroshot", *model, *mirror, "--tasks", "wikitext", "--limit", str(sizes.articles)])
    needles = "niah_single_1,niah_multikey_2"
    if given.text:
        needles = "niah_single_1,niah_single_2,niah_single_3,niah_multikey_1,niah_multivalue,niah_multiquery"
    asked = ["--tasks", needles, "--lengths", sizes.lengths, "--depths", "0,0.5,1", "--repeats", "1"]
    commands.append(["needle", *model, *asked, *(text if given.text else [])])
    if given.babi:
        commands.append(["babi", *model, "--data", *map(str, given.babi), "--limit", str(sizes.questions)])
    if given.text:
        commands.append(["books", *model, *text, "--max-tokens", str(sizes.book_tokens)])
    commands.append(["continual", *model, *shards, *learn, *stream])
    if given.clinc150:
        classes = ["--classes", "clinc150", "--data", str(given.clinc150), "--limit", str(sizes.groups)]
        commands.append(["continual", *model, *classes, *learn, "--shots", str(sizes.shots)])
    if writes:
        commands.append(
            ["run", *model, *shards, "--tasks", "choice", "--limit", str(sizes.memorized), "--memorize"]
        )
    return commands
