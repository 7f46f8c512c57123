import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from hope_data.errors import InputError
from hope_eval import results as schema
from hope_eval.results import Items
from hope_eval.results.names import as_name

Write = Callable[..., Path]


def test_file_gives_back_what_was_written(synthetic: Write) -> None:
    path = synthetic("a", 2.0, 0.5)
    loaded = schema.load(path)
    assert schema.sealed(loaded) == path.read_bytes()
    assert loaded.tasks[0].items.labels["domain"][0] == "code"


def test_metrics_follow_from_the_items_in_the_file(synthetic: Write) -> None:
    for task in schema.load(synthetic("a", 2.0, 0.5)).tasks:
        chance = {m.name: m.chance for m in task.metrics if m.chance is not None}
        written = {(m.name, m.group): m for m in task.metrics}
        assert all(written[m.name, m.group] == m for m in task.items.metrics(chance))


def test_lists_stand_on_one_line(synthetic: Write) -> None:
    text = synthetic("a", 2.0, 0.5).read_text()
    assert max(map(len, text.splitlines())) > 1000
    assert text.count("\n") < 500


@pytest.mark.parametrize(
    "pattern",
    [
        r'"value": (\d)',
        r'"stderr": 0\.0(\d)',
        r'"seed": (\d)',
        r'"tokens": (\d)',
        r'"group": "domain=(c)ode"',
        r'"task": "(p)erplexity"',
        r'"weight": \[(\d)',
        r'"bits_per_byte": \[(\d)',
        r'"cluster": \[(\d)',
        r'"sha256": "(a)a',
        r'"revision": "(e)e',
        r'"seal": "(.)',
        r'"n": (\d)',
        r"\n( )",
    ],
)
def test_one_changed_character_is_noticed(synthetic: Write, pattern: str) -> None:
    path = synthetic("a", 2.0, 0.5)
    text = path.read_text()
    found = re.search(pattern, text)
    assert found, pattern
    other = {"7": "8", " ": "\t", "c": "d", "p": "q", "a": "b", "e": "f"}.get(found[1], "7")
    path.write_text(text[: found.start(1)] + other + text[found.end(1) :])
    with pytest.raises(InputError, match=rf"^{re.escape(str(path))}: was changed after it was written"):
        schema.load(path)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda v: v["tasks"][0].update(extra=1), r"tasks\.0\.extra: unexpected"),
        (lambda v: v["checkpoint"].pop("sha256"), r"checkpoint\.sha256: "),
        (lambda v: v["tasks"][1].update(seed="0"), r"tasks\.1\.seed: .*integer"),
        (lambda v: v["tasks"][1]["metrics"][0].update(value=10**400), r"metrics\.0\.value: .*finite"),
        (
            lambda v: v["tasks"][1]["metrics"][0].update(name="luck"),
            r"metrics\.0: no metric is called 'luck'",
        ),
        (lambda v: v["checkpoint"].update(run="../../x"), r"checkpoint: run is '\.\./\.\./x'; a name is of"),
        (lambda v: v["checkpoint"].update(run=".x"), r"run is '\.x'; a name is of"),
        (lambda v: v["checkpoint"].update(run="x\x1b[2J"), r"run is 'x.*1b\[2J'; a name is of"),
        (lambda v: v["checkpoint"].update(seed=True), r"checkpoint\.seed: .*integer"),
        (lambda v: v["checkpoint"].update(step=-1), "step is '-1', not a whole number of at least 0"),
        (
            lambda v: v["tasks"][0].update(task="continual_../../x"),
            r"task is 'continual_\.\./\.\./x'; a name",
        ),
        (lambda v: v["tasks"][2]["items"]["labels"]["length"].__setitem__(0, "x"), "label length is 'x'"),
        (lambda v: v["tasks"][0]["items"]["weight"].__setitem__(0, 0.0), r"weight 0\.0 is not above 0"),
        (lambda v: v.update(schema=99), "schema 99, this hope-eval reads 2; evaluate again"),
        (lambda v: v.pop("schema"), "not a result"),
        (lambda v: v["tasks"][0]["items"]["weight"].pop(), "weight has 199 entries, cluster 200"),
    ],
)
def test_strict_loading_names_file_and_key(
    synthetic: Write, edited: Write, edit: Callable[[dict], object], message: str
) -> None:
    path = edited(synthetic("a", 2.0, 0.5), edit)
    with pytest.raises(InputError, match=message) as error:
        schema.load(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_groups_in_order_of_appearance() -> None:
    items = Items({"d": ["x", "y", "x"]}, [0, 1, 2], [1.0] * 3, {"choice_accuracy": [1.0, 0.0, 0.0]})
    assert items.groups() == {"all": [0, 1, 2], "d=x": [0, 2], "d=y": [1]}
    assert [(m.group, m.value) for m in items.metrics()] == [("all", 1 / 3), ("d=x", 0.5), ("d=y", 0.0)]


def test_headline_is_flat(synthetic: Write) -> None:
    found = schema.headline(schema.load(synthetic("a", 2.0, 0.5)))
    assert set(found) == {
        "bits_per_byte",
        "bits_per_byte_stderr",
        "unigram_bits_per_byte",
        "choice_accuracy",
        "choice_accuracy_stderr",
        "choice_likelihood",
        "passkey_choice",
        "passkey_exact",
    }
    assert found["unigram_bits_per_byte"] == 4.0


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[1]",
        b'"schema"',
        b"\xff",
        b"[" * 100_000,
        b'{"schema": 1}',
        b'{"schema": ' + b"9" * 5000 + b"}",
    ],
)
def test_what_is_no_result_is_one_line(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(data)
    with pytest.raises(InputError) as error:
        schema.load(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_names_are_made_of_any_text() -> None:
    assert [as_name(text) for text in ("parity/hope/rate1", "Llama 3 (8B)", "../x", "", "hope_paper")] == [
        "parity_hope_rate1",
        "Llama_3__8B_",
        "_x",
        "unnamed",
        "hope_paper",
    ]


@pytest.mark.parametrize("name", ["pipe", "/dev/zero"])
def test_a_result_that_is_no_file_is_one_line(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name == "pipe":
        os.mkfifo(path)
    with pytest.raises(InputError, match=f"{path}: is no regular file"):
        schema.load(path)
