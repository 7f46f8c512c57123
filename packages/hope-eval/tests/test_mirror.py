"""Rows of every task of the mirror: what does not fit is one line with file, row, field and what was expected."""

from __future__ import annotations

import gzip
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from hope_data.errors import InputError
from hope_eval.cli import main
from hope_eval.lm_eval_bridge import mirror

CHOICES = {"text": ["a", "b", "c", "d", "e"], "label": ["A", "B", "C", "D", "E"]}
ROWS: dict[str, dict[str, Any]] = {
    "piqa": {"goal": "open it", "sol1": "pull", "sol2": "push", "label": 1},
    "hellaswag": {"ctx": "Home: Do this. then", "endings": ["a", "b", "c", "d"], "label": 3},
    "winogrande": {"sentence": "Ann met Eve so _ left.", "option1": "Ann", "option2": "Eve", "answer": "2"},
    "arc_easy": {"id": "q", "question": "Which?", "choices": CHOICES, "answerKey": "E"},
    "arc_challenge": {
        "question": "Which?",
        "choices": {"text": ["x", "y"], "label": ["1", "2"]},
        "answerKey": "2",
    },
    "boolq": {"question": "is it", "passage": "It is.", "answer": True},
    "social_iqa": {
        "context": "c",
        "question": "q",
        "answerA": "a",
        "answerB": "b",
        "answerC": "c",
        "label": "3",
    },
    "commonsense_qa": {"question": "Where?", "choices": CHOICES, "answerKey": "A"},
    "openbookqa": {"question_stem": "It is", "choices": CHOICES, "answerKey": " D"},
    "lambada_openai": {"context": "he went", "continuation": "home"},
}


LABELS = ("answer", "label", "answerKey", "sentence")  # not every text is one


def put(folder: Path, task: str, *rows: Any) -> Path:
    path = folder / mirror.FILES[task].file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("task", ROWS)
def test_a_row_that_fits_is_read(task: str, tmp_path: Path) -> None:
    put(tmp_path, task, ROWS[task], ROWS[task])
    [doc, again] = mirror.rows(tmp_path, task)
    assert doc == again
    expected = {"openbookqa": ("answerKey", "D"), "boolq": ("label", 1)}.get(task)
    assert expected is None or doc[expected[0]] == expected[1]


@pytest.mark.parametrize(
    "value", ["", "  ", 3, None, [], {}, ["a"], True, -1, "\ud800", "Z", {"text": ["a"]}]
)
@pytest.mark.parametrize("task", ROWS)
def test_a_field_that_does_not_fit_is_named(task: str, value: Any, tmp_path: Path) -> None:
    """Every field of every task with a value of the wrong type, range or size."""
    fitting = {("boolq", "answer", True), ("hellaswag", "label", 3), ("social_iqa", "label", 3)}
    free = [name for name, text in ROWS[task].items() if isinstance(text, str) and name not in LABELS]
    for field in ROWS[task].keys() - {"id"}:
        path = put(tmp_path, task, ROWS[task], {**ROWS[task], field: value})
        if (value == "Z" and field in free) or any((task, field) == x[:2] and value is x[2] for x in fitting):
            continue
        with pytest.raises(InputError) as caught:
            mirror.rows(tmp_path, task)
        said = str(caught.value)
        assert said.startswith(f"{path}, line 2, field '{field}': ")
        assert " is not " in said
        assert said.endswith("; mend it or fetch the file again")
        assert "\n" not in said


@pytest.mark.parametrize("task", ROWS)
def test_a_missing_field_is_named(task: str, tmp_path: Path) -> None:
    for field in ROWS[task].keys() - {"id"}:
        row = {key: value for key, value in ROWS[task].items() if key != field}
        path = put(tmp_path, task, row)
        message = (
            rf"^{path}, line 1: no field '\w+'; the original has {', '.join(mirror.FILES[task].fields)}$"
        )
        if (task, field) == ("piqa", "label"):
            message = "valid-labels.lst: no such file"
        with pytest.raises(InputError, match=message):
            mirror.rows(tmp_path, task)


@pytest.mark.parametrize(
    ("task", "changes", "said"),
    [
        (
            "winogrande",
            {"sentence": "Ann met Eve."},
            '"Ann met Eve." is not a text with the gap _ and words after it',
        ),
        ("winogrande", {"sentence": "It was _"}, "is not a text with the gap _"),
        ("winogrande", {"answer": "3"}, "field 'answer': \"3\" is not one of 1, 2"),
        (
            "hellaswag",
            {"activity_label": "Cook", "ctx_a": "A man.", "ctx_b": "\ud800"},
            "field 'ctx_b': \"\\ud800\" is not valid Unicode",
        ),
        ("boolq", {"answer": "yes"}, "field 'answer': \"yes\" is not true or false"),
        ("boolq", {"answer": 1}, "field 'answer': 1 is not true or false"),
        ("arc_easy", {"answerKey": "F"}, "field 'answerKey': \"F\" is not one of A, B, C, D, E"),
        ("arc_easy", {"choices": {"text": ["a"], "label": ["A"]}}, "is not two choices or more"),
        (
            "arc_easy",
            {"choices": {"text": ["a", "b"], "label": ["A", "A"]}},
            '["A", "A"] is not a label of its own',
        ),
        (
            "arc_easy",
            {"choices": {"text": ["a", ""], "label": ["A", "B"]}},
            '"" is not a text that is not empty',
        ),
        (
            "commonsense_qa",
            {"choices": {"text": ["a", "b"], "label": ["A", "B"]}},
            "is not labelled A, B, C, D, E",
        ),
        ("hellaswag", {"endings": ["a", "b", "c"]}, "is not a list of 4 texts"),
        (
            "hellaswag",
            {"endings": ["a", "b", "c", ""]},
            "field 'endings': \"\" is not a text that is not empty",
        ),
        ("hellaswag", {"label": ""}, "field 'label': \"\" is not one of 0, 1, 2, 3"),
        ("lambada_openai", {"continuation": "two words"}, "is not one word"),
        ("piqa", {"label": 2}, "field 'label': 2 is not one of 0, 1"),
        ("social_iqa", {"label": 0}, "field 'label': 0 is not one of 1, 2, 3"),
    ],
)
def test_messages(task: str, changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    put(tmp_path, task, {**ROWS[task], **changes})
    with pytest.raises(InputError) as caught:
        mirror.rows(tmp_path, task)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "holds no rows; fetch it again or leave piqa out"),
        (b"\n\n", "holds no rows"),
        (b"{torn\n", "line 1: not JSON"),
        (b"[1]\n", "line 1: holds no JSON object; the original has goal, sol1, sol2"),
        (b"null\n", "line 1: holds no JSON object"),
        (b"[" * 100_000, "line 1: nested too deeply"),
        (b'{"goal": ' + b"9" * 5000 + b"}", "line 1: not JSON"),
        (b"PAR1\x15\x04\xff\xfe", "line 1: not JSON"),
        (b'{"goal": "\xe9"}', "line 1: not JSON"),
    ],
)
def test_files_that_are_no_rows(data: bytes, said: str, tmp_path: Path) -> None:
    path = put(tmp_path, "piqa")
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        mirror.rows(tmp_path, "piqa")
    assert str(caught.value).startswith(str(path))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    path.unlink()
    packed = gzip.compress(data * 50 or b"x" * 50, mtime=0)
    path.with_name("valid.jsonl.gz").write_bytes(packed[:-9])
    with pytest.raises(InputError, match=r"valid\.jsonl\.gz"):
        mirror.rows(tmp_path, "piqa")


def test_texts_may_hold_any_line_separator_of_unicode(tmp_path: Path) -> None:
    goal = "a\u2028b\x85c\x1cd\u2029"
    path = put(tmp_path, "piqa")
    path.write_text(
        json.dumps({**ROWS["piqa"], "goal": goal}, ensure_ascii=False).replace("\\u001c", "e") + "\n\n"
    )
    assert mirror.rows(tmp_path, "piqa")[0]["goal"] == goal.replace("\x1c", "e")


def test_labels_of_piqa_in_a_file_of_their_own(tmp_path: Path) -> None:
    row = {key: value for key, value in ROWS["piqa"].items() if key != "label"}
    labels = put(tmp_path, "piqa", row, ROWS["piqa"], row).with_name("valid-labels.lst")
    labels.write_text("0\n1\n1\n")
    assert [doc["label"] for doc in mirror.rows(tmp_path, "piqa")] == [0, 1, 1]
    labels.write_text("0\n2\n1\n")
    with pytest.raises(InputError, match=r"valid-labels\.lst, line 2: '2' is not 0 or 1"):
        mirror.rows(tmp_path, "piqa")


@pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="needs hope-eval[lm-eval]")
@pytest.mark.parametrize("task", ROWS)
def test_fields_that_no_task_reads_may_hold_anything(task: str, tmp_path: Path) -> None:
    extras = [
        {"id": 1, "x": "a", "deep": {"y": 1}, "odd": "\ud800"},
        {"id": "b", "x": "c", "deep": [2], "odd": "b"},
        {"x": "d", "odd": "c"},
    ]
    put(tmp_path, task, *({**ROWS[task], **extra} for extra in extras))
    [(_, table)] = mirror.dataset(str(tmp_path), task).items()
    assert len(table) == 3
    assert table.column_names == [
        *(name for name in mirror.rows(tmp_path, task)[0] if name not in ("id", "deep", "odd"))
    ]


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="needs hope-eval[lm-eval]")
def test_the_command_says_it_in_one_line(
    checkpoint_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path, "winogrande", ROWS["winogrande"], {**ROWS["winogrande"], "sentence": "no gap"})
    flags = ["--checkpoint", checkpoint_folder, "--tokenizer", checkpoint_folder.parents[2] / "tokenizer"]
    flags += ["--mirror", tmp_path, "--tasks", "winogrande", "--json", tmp_path / "out.json"]
    assert main(["zeroshot", *map(str, flags)]) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert "winogrande_xl_validation.jsonl, line 2, field 'sentence'" in line
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize("text", ["", " \n\n", "\n"])
def test_pages_without_text_are_no_rows(text: str, tmp_path: Path) -> None:
    path = tmp_path / mirror.FILES["wikitext"].file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    with pytest.raises(InputError, match="holds no rows"):
        mirror.rows(tmp_path, "wikitext")
