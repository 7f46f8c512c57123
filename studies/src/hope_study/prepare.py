"""The pipeline's data: corpora acquired, filtered and sharded, each step only where its inputs have changed.

    DATA/raw/CORPUS, clean/CORPUS, tokenizer, shards/CORPUS, shards.json    as the commands of hope-data write them
    DATA/steps.json    of every step a hash of its inputs and one of what it wrote

A step is skipped where both hashes are as recorded, so a new corpus leaves the others as they are.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from hope_data import cli
from hope_data.decontaminate import NO_TEXT, holding_text
from hope_data.files import sha256_bytes, write_json
from hope_data.shards import Split
from hope_data.tokenizer import Tokenizer
from hope_eval.results import questions
from hope_model.errors import InputError
from hope_study import seeds
from hope_train import facts

# The file of each folder that holds the hashes of all others.
TEXT, TOKENIZER, SHARDS = "provenance.json", "tokenizer.json", "index.json"


def prepare(params: Path, conf: Path, data: Path) -> int:
    """Run the steps whose inputs have changed.

    Args:
        params: params.yaml; it is checked, and every run of it.
        conf: folder with corpus/ and coverage/.
        data: folder to write.

    Returns:
        Exit status of the first step that failed, or 0.
    """
    values = facts.check(params, conf)
    corpora, [scale], [evaluation] = values["corpora"], values["scale"], values["evaluation"]
    [worse], [vocabulary] = values["coverage_loss"], values["vocab_size"]
    steps = _Steps(data / "steps.json")
    # Said here once, not by `filter` for every corpus.
    sources = ["--evaluation", evaluation] if holding_text([Path(evaluation)]) else []
    if not sources:
        sys.stdout.write(f"{evaluation}: {NO_TEXT}\n")
        sys.stdout.flush()
    clean = [data / "clean" / name / TEXT for name in corpora]
    guard = conf / "coverage" / f"{scale}.json"
    for name in corpora:
        manifest, raw = conf / "corpus" / f"{name}.yaml", data / "raw" / name
        steps.run(
            ["acquire", "--manifest", str(manifest), "--scale", scale, "--out", str(raw)],
            [manifest],
            raw / TEXT,
        )
        command = ["filter", str(raw), *sources, "--out", str(data / "clean" / name)]
        steps.run(command, [raw / TEXT, Path(evaluation)], data / "clean" / name / TEXT)
    folder = data / "tokenizer"
    command = ["tokenizer", str(data / "clean"), "--corpora", *corpora, "--vocab-size", vocabulary]
    command += ["--guard", str(guard), "--worse", worse, "--out", str(folder)]
    steps.run(command, [*clean, guard], folder / TOKENIZER)
    for name in corpora:
        shards = data / "shards" / name
        command = ["shard", str(data / "clean" / name), "--tokenizer", str(folder), "--out", str(shards)]
        steps.run(command, [data / "clean" / name / TEXT, folder / TOKENIZER], shards / SHARDS)
    command = ["validate", str(data / "shards"), "--corpora", *corpora, "--tokenizer", str(folder)]
    command += ["--json", str(data / "shards.json")]
    steps.run(command, [data / "shards" / name / SHARDS for name in corpora], data / "shards.json")
    if not steps.status:
        steps.forget(data, corpora)
        _check_questions(data, corpora, seeds.evaluation(conf / "evaluate.yaml"))
    return steps.status


def _check_questions(data: Path, corpora: Sequence[str], how: seeds.Evaluation) -> None:
    """Refuse test documents of which the evaluation could make no question, before anything is trained."""
    if "choice" not in how.tasks:
        return
    tokenizer = Tokenizer.load(data / "tokenizer")
    splits = [Split.open(data / "shards" / name, "test", tokenizer) for name in corpora]
    lengths = [[len(split.document(n)) for n in range(split.n_documents)] for split in splits]
    if max(sum(length >= questions.TOKENS for length in one) for one in lengths) < questions.DOCUMENTS:
        raise InputError(
            f"choice: no corpus has {questions.DOCUMENTS} test documents of {questions.TOKENS} tokens; give it more "
            "text or a smaller `chunk_bytes` (conf/corpus), or take `choice` from `tasks` in conf/evaluate.yaml"
        )


class _Steps:
    """Which steps are done, in a file that is written after each of them."""

    def __init__(self, path: Path) -> None:
        self.path, self.status = path, 0
        self.done: dict[str, list[str]] = {}
        with contextlib.suppress(OSError, ValueError):
            self.done = dict(json.loads(path.read_bytes()))

    def run(self, command: Sequence[str], inputs: Sequence[Path], output: Path) -> None:
        """Run a command of hope-data, unless it is done, or one before it failed.

        Args:
            command: with its arguments.
            inputs: files, or folders of files, that it reads.
            output: the file that seals what it writes.
        """
        key = f"{command[0]} {output.parent.name}"
        if self.status or self.done.get(key) == [_hash(command, inputs), _hash([], [output])]:
            return
        self.done.pop(key, None)
        self.status = cli.main(command)
        if not self.status:
            self.done[key] = [_hash(command, inputs), _hash([], [output])]
            write_json(self.path, dict(sorted(self.done.items())))

    def forget(self, data: Path, corpora: Sequence[str]) -> None:
        """Remove what these steps once made of corpora that are no longer named."""
        for key in list(self.done):
            step, name = key.split(" ", 1)
            folder = {"acquire": "raw", "filter": "clean", "shard": "shards"}.get(step)
            if folder and name not in corpora:
                shutil.rmtree(data / folder / name, ignore_errors=True)
                del self.done[key]
        write_json(self.path, dict(sorted(self.done.items())))


def _hash(words: Sequence[str], paths: Sequence[Path]) -> str:
    """One hash of words and of files, those of folders included; what is not there counts as empty."""
    parts = [*words]
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                parts.append(f"{file}: {sha256_bytes(file.read_bytes())}")
    return sha256_bytes(json.dumps(parts).encode())
