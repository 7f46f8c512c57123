"""What others wrote is shown as it is: in Markdown and HTML, in YAML, on a terminal, in pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml as pyyaml
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from hope_eval import results as schema
from hope_eval.cli import main
from hope_eval.escape import code, inline, markdown, printable, terminal, yaml
from hope_eval.release import card
from hope_eval.report.tables import table
from hope_eval.results import PairedDifference

HOSTILE = [
    "![x](y.png)",
    "[x](javascript:alert(1))",
    "<img src=x onerror=alert(1)>",
    "a | b",
    "**bold** _em_ `code` ~~gone~~",
    "# head",
    "- item",
    "1. item",
    "> quoted",
    "---",
    "=== ",
    "&lt;b&gt;",
    "$x^2$",
    "back\\slash\\",
    "http://x.y/<z>",
    "two\nlines",
    "\x1b[2J\x1b]0;owned\x07",
    "\u202egnp.exe",
    "\udc80",
    "__init__",
    "100 % ± 3, 0.1 to 0.2",
    "",
]
RENDER = MarkdownIt("commonmark", {"html": False}).enable("table")


def shown(tokens: list) -> str:
    """The text that a reader sees, and a mark for everything that is no text."""
    parts = []
    for token in tokens:
        for child in token.children or []:
            parts.append(child.content if child.type == "text" else f"<{child.type}>")
    return "".join(parts)


@pytest.mark.parametrize("text", HOSTILE)
def test_markdown_shows_what_was_written(text: str) -> None:
    tokens = RENDER.parse(markdown(text))
    assert [token.type for token in tokens] in ([], ["paragraph_open", "inline", "paragraph_close"])
    assert shown(tokens) == printable(text).strip()
    cells = RENDER.parse(table(["run", "b"], [[text, "1"]]))
    assert [token.type for token in cells].count("td_open") == 2
    assert shown(cells) == f"runb{printable(text).strip()}1"


@given(st.text(max_size=40))
def test_markdown_shows_any_text(text: str) -> None:
    assert shown(RENDER.parse(markdown(text))) == printable(text).strip()
    assert shown(RENDER.parse(f"x {inline(text)} y")) == f"x {printable(text)} y"


@given(st.text(max_size=40))
def test_a_terminal_gets_no_control_character(text: str) -> None:
    assert all(c.isprintable() for c in printable(text))
    assert terminal(text).count("\n") == text.count("\n")
    assert pyyaml.safe_load(yaml(text)) == printable(text)


def test_code_holds_no_backtick_that_ends_it() -> None:
    assert code("model.layers=2 seed=1") == "`model.layers=2 seed=1`"
    assert shown(RENDER.parse(code("a`b`c"))) == "a`b`c"


def test_names_with_markup_come_through_the_report(
    synthetic: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["![x](y.png)", "<b>$\\frac$", "a\x1b[2J b"]
    for name in names:
        path = synthetic("plain", 2.0, 0.5)
        result = schema.load(path)
        first, *rest = result.tasks
        noted = replace(first, notes=["see [here](http://x.y) <i>\x1b[2J"])
        pair = PairedDifference(
            "choice", "on", "choice_accuracy", "all", 0.5, 0.4, 0.1, None, None, None, 5, 5
        )
        path.write_bytes(schema.sealed(replace(result, tasks=[noted, *rest], memorized=[pair])))
        path.rename(path.with_name(f"{name}.json"))
    out = tmp_path / "page.md"
    given = ["--results", tmp_path / "results", "--out", out, "--plots", tmp_path / "plots"]
    assert main([str(x) for x in ["report", *given, "--html", tmp_path / "page.html"]]) == 0
    text, page = out.read_text(), (tmp_path / "page.html").read_text()
    assert "\x1b" not in text + page
    assert r"!\[x\](y.png)" in text
    assert "![x](y.png)" in page
    assert "&lt;b&gt;$\\frac$" in page
    assert "<b>" not in page
    assert page.count("<svg") == text.count("](plots/") > 0
    compared = [str(tmp_path / "results" / f"{name}.json") for name in names[1:]]
    assert main(["compare", *compared]) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert r"a\x1b[2J b" in said
    assert main(["compare", str(tmp_path / "no\x1b[2J.json"), compared[0]]) == 2
    assert r"no\x1b[2J.json" in capsys.readouterr().err


def test_a_card_is_valid_yaml_whatever_it_names(synthetic: Callable[..., Path]) -> None:
    pack = schema.load(synthetic("plain", 2.0, 0.5))
    tool = replace(pack.evaluator, torch="<img> [x](y) \x1b[2J")
    text = card.page(
        replace(pack, evaluator=tool), {"length": "| x |"}, [("code", "MIT\nlicense: none", "![x](y)")]
    )
    front = pyyaml.safe_load(text.split("---")[1])
    assert front["tags"] == ["nested-learning", "hope"]
    assert front["license"] == "other"
    assert front["corpora"] == ["code"]
    assert r"\<img\> \[x\](y) \\x1b\[2J" in text
    assert json.dumps(text).count("u001b") == 0
