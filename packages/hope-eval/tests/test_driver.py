"""The driver: options of the table make the tasks, refusals come before the model, progress is told in lines."""

import re
from dataclasses import MISSING, fields
from pathlib import Path

import pytest

from hope_data.commands import Group, Option
from hope_eval import progress
from hope_eval.cli import FUNCTIONS, main
from hope_eval.commands import COMMANDS
from hope_eval.evaluate import EVALUATORS
from hope_eval.progress import Display


def test_every_command_has_its_function_and_every_task_its_options() -> None:
    names = [command.name for command in COMMANDS]
    assert sorted(names) == sorted([*FUNCTIONS, *EVALUATORS])
    for command in COMMANDS:
        if command.name not in EVALUATORS:
            continue
        options: list[Option] = []
        for entry in command.options:
            options += entry.options if isinstance(entry, Group) else [entry]
        flags = {option.flag.removeprefix("--").replace("-", "_") for option in options}
        kind = EVALUATORS[command.name]
        needed = {field.name for field in fields(kind) if field.default is MISSING}  # type: ignore[arg-type]
        assert needed <= flags
        driver = {"checkpoint", "tokenizer", "json", "add", "device", "batch_tokens", "metrics", "adapt"}
        own = {flag for flag in flags - driver if not flag.startswith("memorize")}
        assert own <= {field.name for field in fields(kind)}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["needle", "--memorize-oracle"], "needle: an oracle would be told the values"),
        (["run", "--shards", "s", "--tasks", "passkey", "--memorize-oracle"], "passkey: an oracle would be"),
        (["run", "--shards", "s", "--memorize-steps", "2"], "perplexity: more than one reading would show"),
        (["task", "--memorize-steps", "2"], "task: more than one reading would show what is scored"),
        (
            ["continual", "--shards", "s", "--learn", "train", "--memorize"],
            "continual --learn train: it says what learns",
        ),
    ],
)
def test_what_would_show_the_answers_is_refused_before_a_model_is_loaded(
    command: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text("{}")  # no model; without this file nothing else is looked at
    common = ["--checkpoint", str(tmp_path), "--json", str(tmp_path / "x.json")]
    tokenizer = [] if command[0] == "task" else ["--tokenizer", str(tmp_path)]
    assert main([*command, *common, *tokenizer]) == 2
    assert message in capsys.readouterr().err


def test_without_a_terminal_a_line_tells_what_is_done_and_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    display = Display()
    display.begin("loading", None)
    display.begin("piqa", 2_000)
    display.advance(500)
    assert capsys.readouterr().err == ""  # ten seconds are not over
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    display.advance(500)
    assert re.fullmatch(r"piqa: 1,000 of about 2,000 tokens, \d s left\n", capsys.readouterr().err)
    display.begin("boolq", None)
    display.advance(7)
    assert capsys.readouterr().err == "boolq: 7 tokens\n"
