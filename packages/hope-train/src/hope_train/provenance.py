"""What a number came from: git revision, code, data. All as short strings that a file can carry."""

import hashlib
import platform
import subprocess
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from hope_model.ops.native import build
from hope_train.config import TrainConfig
from hope_train.parallel.distributed import World

PACKAGES = ("hope_data", "hope_model", "hope_train")
WRITTEN = ("reports", "dvc.lock")  # by the pipeline itself, before and while it trains
SOURCES = (".py", ".cpp", ".hpp")
DISTRIBUTIONS = ("torch", "numpy", "safetensors", "hope-data", "hope-model", "hope-train")


def revision(results: Path | None = None) -> str:
    """Git revision of the working folder, with `-dirty` where it was changed; `unknown` outside git.

    What the pipeline writes itself makes nothing dirty: `reports`, `dvc.lock`, and `results`, where they lie elsewhere.
    """

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()

    try:
        top, commit = Path(git("rev-parse", "--show-toplevel")), git("rev-parse", "HEAD")
        where = [":(top)", *(f":(top,exclude){name}" for name in WRITTEN)]
        if results and results.resolve().is_relative_to(top):
            where.append(f":(top,exclude){results.resolve().relative_to(top)}")
        return commit + ("-dirty" if git("diff", "--name-only", "HEAD", "--", *where) else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def code_sha256() -> str:
    """SHA-256 over the sources that decide what training computes, its kernels included."""
    roots = [Path(root) for name in PACKAGES for root in _locations(name)]
    digest = hashlib.sha256()
    for file in (file for root in roots for file in sorted(root.rglob("*")) if file.suffix in SOURCES):
        content = file.read_bytes()
        digest.update(f"{file.parent.name}/{file.name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def _locations(package: str) -> list[str]:
    spec = find_spec(package)
    return list(spec.submodule_search_locations or []) if spec else []


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide what training computes."""
    return {"python": platform.python_version(), **{name: version(name) for name in DISTRIBUTIONS}}


def flags(config: TrainConfig, precision: str, world: World) -> dict[str, Any]:
    """What else decides the last bits: switches of the run and of torch, device and kernels."""
    native = world.device.type == "cpu" and not config.model.variant.startswith("transformer")
    return {
        "device": world.device.type,
        "parallel": config.parallel if world.size > 1 else "alone",
        "precision": precision,
        "compile": config.compile,
        "activation_checkpoint": config.activation_checkpoint,
        "accumulate": config.accumulate,
        "sdpa": config.sdpa,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul": torch.get_float32_matmul_precision(),
        "threads": torch.get_num_threads(),
        "kernels": build.identity() if native else "torch",
    }
