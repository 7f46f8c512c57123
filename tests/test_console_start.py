"""Help and wrong arguments of every console script come without torch, which takes seconds to import."""

import subprocess
import sys

import pytest

WRONG = {
    "hope-data": ["look", "missing"],
    "hope-model": ["recall", "missing"],
    "hope-train": ["run", "missing.yaml"],
    "hope-eval": ["surprise", "missing", "missing"],
    "hope-study": ["train", "--run", "missing", "--params", "missing"],
}
CHECK = """
import sys
from importlib.metadata import entry_points
(script,) = entry_points(group="console_scripts", name=sys.argv[1])
sys.argv[:] = sys.argv[1:]
try:
    status = script.load()()
except SystemExit as end:
    status = end.code or 0
assert "torch" not in sys.modules
sys.exit(status)
"""


def _start(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CHECK, *command], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("script", WRONG)
@pytest.mark.parametrize("arguments", [["--help"], ["{command}", "--help"]])
def test_help_imports_no_torch(script: str, arguments: list[str]) -> None:
    done = _start(script, *(text.format(command=WRONG[script][0]) for text in arguments))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: {script}")


@pytest.mark.parametrize("command", ["run", "report", "replication", "evaluate", "results", "show", "sweep"])
def test_help_of_studies_imports_no_torch(command: str) -> None:
    done = _start("hope-study", command, "--help")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("script", WRONG)
@pytest.mark.parametrize("misspelt", [True, False])
def test_wrong_input_imports_no_torch(script: str, misspelt: bool) -> None:
    done = _start(script, *(["--misspelt"] if misspelt else WRONG[script]))
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
