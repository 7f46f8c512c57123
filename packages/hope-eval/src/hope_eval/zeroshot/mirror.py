"""Rows of the original data sets from files in a folder; nothing is downloaded and no code of a data set runs.

    FOLDER/piqa/valid.jsonl  valid-labels.lst     FOLDER/boolq/boolq_validation.jsonl[.gz]     ...

`FILES` names every file. Prompts and metrics stay lm-eval's: a file that includes the stock definition only
says where the rows come from.
"""

import gzip
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hope_data.errors import InputError

Row = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """Where a task's rows are.

    Attributes:
        yaml: the stock definition, in lm-eval's tasks folder.
        split: which split of it the rows are.
        file: in the mirror, with or without `.gz`.
        fields: what every row of the file must have.
        convert: from the file's row to the original data set's.
        chance: accuracy of guessing; None where there are no choices.
    """

    yaml: str
    split: str
    file: str
    fields: tuple[str, ...]
    chance: float | None
    convert: Callable[[Row], Row] = lambda row: row


def _lambada(row: Row) -> Row:
    return {"text": f"{row['context']} {row['continuation']}"} if "context" in row else row


def _hellaswag(row: Row) -> Row:
    """Where only the joined `ctx` is left: activity before the first colon, the unfinished sentence as ctx_b."""
    if "ctx_a" in row:
        return row
    activity, _, text = row["ctx"].partition(": ")
    ends = [found.end() for found in re.finditer(r"[.!?\])\"']\s+", text)]
    cut = ends[-1] if ends and not re.search(r"[.!?]\s*$", text) else len(text)
    return {**row, "activity_label": activity, "ctx_a": text[:cut].strip(), "ctx_b": text[cut:].strip()}


def _boolq(row: Row) -> Row:
    return {**row, "label": int(row["answer"])} if "label" not in row else row


FILES: dict[str, Source] = {
    "piqa": Source("piqa/piqa", "validation", "piqa/valid.jsonl", ("goal", "sol1", "sol2"), 1 / 2),
    "hellaswag": Source(
        "hellaswag/hellaswag",
        "validation",
        "hellaswag/hellaswag_val.jsonl",
        ("ctx", "endings", "label"),
        1 / 4,
        _hellaswag,
    ),
    "winogrande": Source(
        "winogrande/default",
        "validation",
        "winogrande/winogrande_xl_validation.jsonl",
        ("sentence", "option1", "option2", "answer"),
        1 / 2,
    ),
    "arc_easy": Source(
        "arc/arc_easy",
        "validation",
        "arc/arc_easy_validation.jsonl",
        ("question", "choices", "answerKey"),
        1 / 4,
    ),
    "arc_challenge": Source(
        "arc/arc_challenge",
        "validation",
        "arc/arc_challenge_validation.jsonl",
        ("question", "choices", "answerKey"),
        1 / 4,
    ),
    "boolq": Source(
        "super_glue/boolq/default",
        "validation",
        "boolq/boolq_validation.jsonl",
        ("question", "passage", "answer"),
        1 / 2,
        _boolq,
    ),
    "social_iqa": Source(
        "siqa/siqa",
        "validation",
        "siqa/siqa_validation.jsonl",
        ("context", "question", "answerA", "answerB", "answerC", "label"),
        1 / 3,
    ),
    "commonsense_qa": Source(
        "commonsense_qa/default",
        "validation",
        "csqa/csqa_validation.jsonl",
        ("question", "choices", "answerKey"),
        1 / 5,
    ),
    "openbookqa": Source(
        "openbookqa/openbookqa",
        "validation",
        "openbookqa/openbookqa_validation.jsonl",
        ("question_stem", "choices", "answerKey"),
        1 / 4,
    ),
    "lambada_openai": Source(
        "lambada/lambada_openai",
        "test",
        "lambada/lambada_openai_test.jsonl",
        ("context", "continuation"),
        None,
        _lambada,
    ),
    "wikitext": Source("wikitext/wikitext", "test", "wikitext2/wikitext2_raw_test_joined.txt", (), None),
}


def find(folder: Path, file: str) -> Path:
    """A file of the mirror, packed or not.

    Raises:
        InputError: neither is there.
    """
    for path in (folder / file, folder / f"{file}.gz"):
        if path.is_file():
            return path
    raise InputError(f"{folder / file}: no such file, nor .gz; put it there or leave the task out of --tasks")


def rows(folder: Path, task: str) -> list[Row]:
    """Rows of a task with the fields of the original data set.

    Raises:
        InputError: a missing or empty file, or a line that is not a row with the right fields (named by number).
    """
    source = FILES[task]
    path = find(folder, source.file)
    if task == "wikitext":
        made: list[Row] = [{"page": page} for page in pages(read_text(path))]
    else:
        made = [source.convert(row) for row in _read(path, source.fields)]
    if not made:
        raise InputError(f"{path}: holds no rows; fetch it again or leave {task} out of --tasks")
    if task == "piqa" and "label" not in made[0]:
        labels = read_text(find(folder, "piqa/valid-labels.lst")).split()
        if len(labels) != len(made):
            raise InputError(
                f"{folder}/piqa/valid-labels.lst: {len(labels)} labels for {len(made)} rows of {path}"
            )
        made = [{**row, "label": int(label)} for row, label in zip(made, labels, strict=True)]
    return made


def dataset(mirror: str, task: str, limit: int | None = None, **_: object) -> dict[str, Any]:
    """What lm-eval's `custom_dataset` calls: {split: rows}."""
    import datasets  # noqa: PLC0415 (comes with lm-eval)

    return {FILES[task].split: datasets.Dataset.from_list(rows(Path(mirror), task)[:limit])}


def pages(joined: str) -> list[str]:
    """Articles of WikiText from its rows joined with blank lines.

    A row ends with a newline and an empty row is one blank of the raw file, so a gap of 3 + 2n newlines stands
    for n blanks. An article begins at a heading of one equals sign.
    """
    lines: list[str] = []
    for text, gap in re.findall(r"([^\n]+)(\n*)", joined.replace("\r\n", "\n")):
        lines += [text + "\n", *[" \n"] * max(0, (len(gap) - 3) // 2)]
    made: list[str] = []
    for line in lines:
        if re.fullmatch(r" = [^=].* = \n", line) or not made:
            made.append("")
        made[-1] += line
    return made


def write_tasks(folder: Path, mirror: Path, tasks: list[str], limit: int | None = None) -> None:
    """Definitions that include lm-eval's stock files and take their rows, the first `limit`, from the mirror."""
    import lm_eval  # noqa: PLC0415

    stock = Path(lm_eval.__file__).parent / "tasks"
    for task in tasks:
        source = FILES[task]
        # lm-eval would look at every row, several times, before it takes the first few.
        given = {"mirror": str(mirror.resolve()), "task": task, "limit": limit}
        lines = [
            f'include: {json.dumps(str(stock / source.yaml))[:-1]}.yaml"',
            f"task: {task}",
            "custom_dataset: !function hope_eval.zeroshot.mirror.dataset",
            f"dataset_kwargs: {json.dumps(given)}",
            # Zero-shot needs the rows that are asked and no others.
            *(
                f"{split}_split: null"
                for split in ("training", "validation", "test")
                if split != source.split
            ),
        ]
        (folder / f"{task}.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_text(path: Path) -> str:
    """A text file, packed or not.

    Raises:
        InputError: unreadable, torn or not UTF-8.
    """
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable ({error}); fetch it again") from None


def _read(path: Path, fields: tuple[str, ...]) -> Iterator[Row]:
    for number, line in enumerate(read_text(path).splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{path}, line {number}: not JSON ({error}); fetch the file again") from None
        missing = [name for name in fields if not isinstance(row, dict) or name not in row]
        if missing and "text" not in row:
            raise InputError(
                f"{path}, line {number}: no field '{missing[0]}'; the original has {', '.join(fields)}"
            )
        yield row
