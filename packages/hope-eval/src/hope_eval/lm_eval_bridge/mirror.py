"""Rows of the original data sets from files in a folder; nothing is downloaded and no code of a data set runs.

    FOLDER/piqa/valid.jsonl  valid-labels.lst     FOLDER/boolq/boolq_validation.jsonl[.gz]     ...

`FILES` names every file. Prompts and metrics stay lm-eval's: a file that includes the stock definition only
says where the rows come from.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hope_data.errors import InputError
from hope_eval.files import find, read_text
from hope_eval.lm_eval_bridge.rows import Row, read

Doc = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """Where a task's rows are.

    Attributes:
        yaml: the stock definition, in lm-eval's tasks folder.
        split: which split of it the rows are.
        file: in the mirror, with or without `.gz`.
        fields: what a row of the file has.
        chance: accuracy of guessing; None where there are no choices.
        convert: from the file's row, whose fields it checks, to the original data set's.
    """

    yaml: str
    split: str
    file: str
    fields: tuple[str, ...]
    chance: float | None
    convert: Callable[[Row], Doc]


def _piqa(row: Row) -> Doc:
    """The label may stand in a file of its own."""
    doc = {**row.values, **{name: row.text(name) for name in ("goal", "sol1", "sol2")}}
    return {**doc, "label": int(row.one_of("label", "01"))} if "label" in row else doc


def _hellaswag(row: Row) -> Doc:
    """Where only the joined `ctx` is left: activity before the first colon, the unfinished sentence as ctx_b."""
    doc = {**row.values, "label": int(row.one_of("label", "0123")), "endings": row.texts("endings", 4)}
    if "ctx_a" in row:
        if row["ctx_b"] != "":
            row.text("ctx_b")
        return {**doc, **{name: row.text(name) for name in ("activity_label", "ctx_a")}}
    activity, _, text = row.text("ctx").partition(": ")
    ends = [end.end() for end in re.finditer(r"[.!?\])\"']\s+", text)]
    cut = ends[-1] if ends and not re.search(r"[.!?]\s*$", text) else len(text)
    return {**doc, "activity_label": activity, "ctx_a": text[:cut].strip(), "ctx_b": text[cut:].strip()}


def _winogrande(row: Row) -> Doc:
    _, gap, after = row.text("sentence").partition("_")
    if not gap or not after.strip():
        row.refuse("sentence", "a text with the gap _ and words after it")
    texts = {name: row.text(name) for name in ("option1", "option2")}
    return {**row.values, **texts, "answer": row.one_of("answer", "12")}


def _arc(row: Row) -> Doc:
    doc = {**row.values, "question": row.text("question"), "choices": row.choices("choices")}
    return {**doc, "answerKey": row.one_of("answerKey", doc["choices"]["label"])}


def _boolq(row: Row) -> Doc:
    texts = {name: row.text(name) for name in ("question", "passage")}
    name = "label" if "label" in row and "answer" not in row else "answer"
    if row[name] not in (0, 1) or (name == "answer" and not isinstance(row[name], bool)):
        row.refuse(name, "true or false")
    return {**row.values, **texts, "label": int(row[name])}


def _social_iqa(row: Row) -> Doc:
    names = ("context", "question", "answerA", "answerB", "answerC")
    return {**row.values, **{name: row.text(name) for name in names}, "label": row.one_of("label", "123")}


def _commonsense_qa(row: Row) -> Doc:
    choices = row.choices("choices", "ABCDE")
    texts = {"question": row.text("question"), "choices": choices}
    return {**row.values, **texts, "answerKey": row.one_of("answerKey", "ABCDE")}


def _openbookqa(row: Row) -> Doc:
    doc = {**row.values, "question_stem": row.text("question_stem"), "choices": row.choices("choices")}
    return {**doc, "answerKey": row.one_of("answerKey", doc["choices"]["label"])}


def _lambada(row: Row) -> Doc:
    """The original has one text, whose last word is to be found."""
    if "text" not in row:
        context, word = row.text("context"), row.text("continuation")
        if " " in word:
            row.refuse("continuation", "one word")
        return {"text": f"{context} {word}"}
    context, _, word = row.text("text").rpartition(" ")
    if not context.strip() or not word.strip():
        row.refuse("text", "several words that end with the one to be found")
    return row.values


FILES: dict[str, Source] = {
    "piqa": Source("piqa/piqa", "validation", "piqa/valid.jsonl", ("goal", "sol1", "sol2"), 1 / 2, _piqa),
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
        _winogrande,
    ),
    "arc_easy": Source(
        "arc/arc_easy",
        "validation",
        "arc/arc_easy_validation.jsonl",
        ("question", "choices", "answerKey"),
        1 / 4,
        _arc,
    ),
    "arc_challenge": Source(
        "arc/arc_challenge",
        "validation",
        "arc/arc_challenge_validation.jsonl",
        ("question", "choices", "answerKey"),
        1 / 4,
        _arc,
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
        _social_iqa,
    ),
    "commonsense_qa": Source(
        "commonsense_qa/default",
        "validation",
        "csqa/csqa_validation.jsonl",
        ("question", "choices", "answerKey"),
        1 / 5,
        _commonsense_qa,
    ),
    "openbookqa": Source(
        "openbookqa/openbookqa",
        "validation",
        "openbookqa/openbookqa_validation.jsonl",
        ("question_stem", "choices", "answerKey"),
        1 / 4,
        _openbookqa,
    ),
    "lambada_openai": Source(
        "lambada/lambada_openai",
        "test",
        "lambada/lambada_openai_test.jsonl",
        ("context", "continuation"),
        None,
        _lambada,
    ),
    "wikitext": Source(
        "wikitext/wikitext",
        "test",
        "wikitext2/wikitext2_raw_test_joined.txt",
        (),
        None,
        lambda row: row.values,  # articles of a text, no rows of a file
    ),
}


def rows(folder: Path, task: str) -> list[Doc]:
    """Rows of a task with the fields of the original data set.

    Raises:
        InputError: a missing or empty file, or a row that does not fit (named by file, line and field).
    """
    source = FILES[task]
    path = find(folder, source.file)
    if task == "wikitext":
        docs: list[Doc] = [{"page": page} for page in pages(read_text(path)) if page.strip()]
    else:
        docs = [source.convert(row) for row in read(path, source.fields)]
    if not docs:
        raise InputError(f"{path}: holds no rows; fetch it again or leave {task} out of --tasks")
    if task == "piqa" and any("label" not in doc for doc in docs):
        labels = _labels(find(folder, "piqa/valid-labels.lst"), len(docs), path)
        docs = [{**doc, "label": label} for doc, label in zip(docs, labels, strict=True)]
    return docs


def _labels(path: Path, count: int, of: Path) -> list[int]:
    """Labels 0 or 1, one a line."""
    labels = read_text(path).split()
    if len(labels) != count:
        raise InputError(f"{path}: {len(labels)} labels for {count} rows of {of}")
    for number, label in enumerate(labels, 1):
        if label not in ("0", "1"):
            raise InputError(f"{path}, line {number}: {label[:60]!r} is not 0 or 1; fetch the file again")
    return [int(label) for label in labels]


def dataset(mirror: str, task: str, limit: int | None = None, **_: object) -> dict[str, Any]:
    """What lm-eval's `custom_dataset` calls: {split: rows}."""
    import datasets  # noqa: PLC0415 (comes with lm-eval)

    docs = rows(Path(mirror), task)[:limit]
    # A column has one type. `convert` has seen to the fields that the task reads; others may differ.
    kept = [
        name for name in docs[0] if name in ("choices", "endings") or _uniform([d.get(name) for d in docs])
    ]
    columns = [{name: doc[name] for name in kept} for doc in docs]
    return {FILES[task].split: datasets.Dataset.from_list(columns)}


def _uniform(values: list[Any]) -> bool:
    """Whether all are texts, or all numbers that a column holds; a lone surrogate is no text."""
    kinds = {type(value) for value in values}
    if kinds == {str}:
        return not any(re.search("[\ud800-\udfff]", text) for text in values)
    return kinds == {bool} or (kinds == {int} and all(-(2**63) <= n < 2**63 for n in values))


def pages(joined: str) -> list[str]:
    """Articles of WikiText from its rows joined with blank lines.

    A row ends with a newline and an empty row is one blank of the raw file, so a gap of 3 + 2n newlines stands
    for n blanks. An article begins at a heading of one equals sign.
    """
    lines: list[str] = []
    for text, gap in re.findall(r"([^\n]+)(\n*)", joined.replace("\r\n", "\n")):
        lines += [text + "\n", *[" \n"] * max(0, (len(gap) - 3) // 2)]
    articles: list[str] = []
    for line in lines:
        if re.fullmatch(r" = [^=].* = \n", line) or not articles:
            articles.append("")
        articles[-1] += line
    return articles


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
            "custom_dataset: !function hope_eval.lm_eval_bridge.mirror.dataset",
            f"dataset_kwargs: {json.dumps(given)}",
            # Zero-shot needs the rows that are asked and no others.
            *(
                f"{split}_split: null"
                for split in ("training", "validation", "test")
                if split != source.split
            ),
        ]
        (folder / f"{task}.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
