"""What a process says to its processor first."""

import subprocess
import sys

CHECK = """
import torch
from hope_model.cpu import prepare_cpu
{prepare}
torch.set_num_threads(2)
tiny = torch.full((2**21,), 1e-30)
print(int((tiny * 1e-12).count_nonzero()), float(tiny[0] * 1e-7) > 0)
"""


def test_numbers_too_small_for_speed_are_zero_in_every_thread() -> None:
    """In processes of their own: the setting lasts."""
    for prepare, left in (("", 2**21), ("prepare_cpu()", 0)):
        command = [sys.executable, "-c", CHECK.format(prepare=prepare)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.split() == [str(left), "True"]
