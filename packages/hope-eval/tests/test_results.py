import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hope_data.errors import InputError
from hope_eval import results as schema
from hope_eval.results import Items

Write = Callable[..., Path]


def test_file_gives_back_what_was_written(synthetic: Write) -> None:
    path = synthetic("a", 2.0, 0.5)
    loaded = schema.load(path)
    assert schema.dumps(loaded) == path.read_text()
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


def change(path: Path, edit: Callable[[dict], object]) -> Path:
    value = json.loads(path.read_text())
    edit(value)
    path.write_text(json.dumps(value))
    return path


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda v: v["tasks"][0].update(extra=1), r"tasks\.0\.extra: unexpected"),
        (lambda v: v["checkpoint"].pop("sha256"), r"checkpoint\.sha256: "),
        (lambda v: v["tasks"][1].update(seed="0"), r"tasks\.1\.seed: .*integer"),
        (lambda v: v["tasks"][1]["metrics"][0].update(value=float("nan")), r"metrics\.0\.value: .*finite"),
        (lambda v: v.update(schema=99), "schema 99, this hope-eval reads 1; evaluate again"),
        (lambda v: v.pop("schema"), "not a result"),
        (lambda v: v["tasks"][0]["items"]["weight"].pop(), "weight has 199 entries, cluster 200"),
    ],
)
def test_strict_loading_names_file_and_key(
    synthetic: Write, edit: Callable[[dict], object], message: str
) -> None:
    path = change(synthetic("a", 2.0, 0.5), edit)
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
