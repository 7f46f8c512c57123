"""How many kernels a device would start: operators counted on CUDA tensors without memory; no GPU is needed.

Counting runs in a process of its own (`count.py`), into which a small library is loaded before torch.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from hope_model.config import ModelConfig
from hope_model.errors import InputError
from hope_model.ranges import within

LAUNCH_SECONDS = 5e-6  # of a kernel that has little to do, as seen by a host that starts one after the other


@dataclass(frozen=True)
class Pilot:
    """What is counted: one microbatch in bf16, and one token decoded; by default of `conf/scale/pilot.yaml`."""

    length: int = field(default=2048, metadata=within(1, 2**24))
    dim: int = 768
    layers: int = field(default=19, metadata=within(1, 1024))
    head_dim: int = 64
    vocab_size: int = 32000
    batch_size: int = field(default=8, metadata=within(1, 2**20))
    smallest: int = field(default=512, metadata=within(1, 2**24))


# hope_model imports torch, which must find the library there.
COUNT = """
import ctypes, runpy, sys
for library in sys.argv[1:-1]:
    ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
runpy.run_module("hope_model.launches.count", run_name="__main__")
"""


def launches(variants: Sequence[str], pilot: Pilot) -> list[dict[str, Any]]:
    """One row per variant: launches `forward`, `backward`, both, and of a token decoded (per layer).

    Raises:
        InputError: There is no C++ compiler, or counting failed.
    """
    return _counted(json.dumps({"variants": list(variants), **asdict(pilot)}))


def training_launches(
    config: ModelConfig, batch_size: int, length: int, *, bf16: bool = True
) -> tuple[int, int]:
    """Launches of a microbatch's forward and backward in this configuration.

    Raises:
        InputError: There is no C++ compiler, or counting failed.
    """
    size = {"batch_size": batch_size, "length": length, "layers": config.layers, "bf16": bf16}
    (row,) = _counted(json.dumps({"variants": [config.variant], "config": config.to_dict(), **size}))
    return row["forward"], row["backward"]


@cache
def _counted(work: str) -> list[dict[str, Any]]:
    import torch  # noqa: PLC0415 (slow to import, and --help needs none)

    with tempfile.TemporaryDirectory(prefix="hope-model-") as scratch:
        libraries = [] if torch.version.cuda else [_fake_cuda(Path(scratch))]
        rows: list[dict[str, Any]] = json.loads(_run([sys.executable, "-c", COUNT, *libraries, work]))
        return rows


def _fake_cuda(scratch: Path) -> str:
    """The library that a build of torch for CPUs needs."""
    import torch  # noqa: PLC0415

    from hope_model.ops.native.build import find_compiler  # noqa: PLC0415

    source, library, root = (
        Path(__file__).with_name("fake_cuda.cpp"),
        scratch / "fake_cuda.so",
        Path(torch.__file__).parent,
    )
    include = [f"-I{root / 'include'}", f"-I{root / 'include/torch/csrc/api/include'}"]
    link = [f"-L{root / 'lib'}", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{root / 'lib'}"]
    try:
        command = [find_compiler(), "-std=c++17", "-w", "-fPIC", "-shared", *include, str(source), *link]
    except OSError as error:
        raise InputError(f"launches are counted with a small library, and {error}; install g++") from None
    _run([*command, "-o", str(library)])
    return str(library)


def _run(command: list[str]) -> str:
    environment = os.environ | {"HOPE_NATIVE": "0"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise InputError(f"{Path(command[0]).name}: {(done.stderr.strip() or 'failed').splitlines()[-1]}")
    return done.stdout
