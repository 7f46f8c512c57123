"""docs/reading.md leads through files that exist, in an afternoon, and its walk uses no file twice."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "reading.md").read_text(encoding="utf-8")


def defined(file: Path) -> set[str]:
    """Names of functions, and of methods as Class.method."""
    names = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.ClassDef):
            names |= {
                f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)
            }
    return names


def test_the_path_takes_an_afternoon() -> None:
    rows = re.findall(r"^\| \[[\w/.]+\]\(\.\./([\w/.-]+)\) \| (\d+) \| ", PAGE, re.MULTILINE)
    files = [ROOT / path for path, _ in rows]
    assert len(set(files)) == len(files) > 30
    sizes = [len(file.read_text(encoding="utf-8").splitlines()) for file in files]
    assert 5_000 < sum(sizes) < 7_000
    written = sum(int(size) for _, size in rows)
    assert abs(written - sum(sizes)) < 600, "docs/reading.md: its numbers of lines are out of date"


def test_the_walk_uses_functions_that_exist_and_no_file_twice() -> None:
    steps = re.findall(r"^\d+\. \[[\w/.]+\]\(\.\./([\w/.-]+)\) `([\w.]+)`", PAGE, re.MULTILINE)
    assert len(steps) > 10
    assert len({path for path, _ in steps}) == len(steps)
    for path, function in steps:
        assert function in defined(ROOT / path), f"docs/reading.md: {path} has no {function}"
