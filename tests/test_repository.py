"""The tree itself: pins, sizes, and what must never be committed."""

import re
import subprocess
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]


def tracked() -> list[Path]:
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for name in names.split("\n") if name and (path := ROOT / name).is_file()]


def test_constraints_are_uv_constraints() -> None:
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert pins == project["tool"]["uv"]["constraint-dependencies"]
    assert len(pins) > 50
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", pin) for pin in pins)


def test_no_index_host_and_no_large_file_is_tracked() -> None:
    host = re.compile(r"https?://[^ \"']+/(simple|packages)/")
    for path in tracked():
        data = path.read_bytes()
        assert len(data) <= 1_000_000, path
        if path.suffix not in {".png"}:
            assert not host.search(data.decode()), path


def test_python_files_are_short() -> None:
    long = {
        p.name: n for p in tracked() if p.suffix == ".py" and (n := len(p.read_text().splitlines())) > 400
    }
    assert not long


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Imports inside functions and for types alone count; import-linter checks folders, this modules."""
    packages = [path.parent.name for path in tracked() if path.match("*/src/hope_*/__init__.py")]
    assert len(packages) == 5
    graph = grimp.build_graph(*packages, cache_dir=None)
    below = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    order = list(TopologicalSorter(below).static_order())  # CycleError names the circle
    assert len(order) == len(graph.modules) > 250
    assert (
        order.index("hope_model.config") < order.index("hope_train.loop") < order.index("hope_study.runner")
    )


@pytest.mark.parametrize(
    ("page", "after"), [("reports/results.md", ""), ("reports/ablations.md", "## By tokens trained")]
)
def test_readme_shows_rows_of_the_reports(page: str, after: str) -> None:
    shown = (ROOT / "README.md").read_text().split(f"<!-- of {page}", 1)[1].split("\n\n")[0]
    rows = [line for line in shown.splitlines() if line.startswith("|")]
    report = (ROOT / page).read_text().partition(after or "#")[2].splitlines()
    assert len(rows) >= 5
    assert not [row for row in rows if row not in report], f"copy them from {page}"
