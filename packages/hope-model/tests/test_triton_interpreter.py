"""Triton's kernels run in its interpreter: numpy on a CPU, in a process that knows so before it imports Triton."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed (pip install triton)")
def test_in_the_interpreter() -> None:
    cases = str(Path(__file__).with_name("triton_memories.py"))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", cases]
    environment = os.environ | {"TRITON_INTERPRET": "1", "HOPE_NATIVE": "0"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
