"""What results say of a checkpoint and of the code that evaluated it."""

import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import hope_data
import hope_eval
import hope_model
from hope_data.files import sha256_bytes, sha256_file
from hope_eval.results import Checkpoint, Evaluator
from hope_eval.results.names import as_name
from hope_model import LanguageModel, counting


def describe(folder: Path, model: LanguageModel, meta: dict[str, Any]) -> Checkpoint:
    """Describe one of our checkpoints."""
    return Checkpoint(
        run=as_name(str(meta.get("run", folder.resolve().parent.name))),
        variant=model.config.variant,
        parameters=counting.parameters(model.config),
        seed=meta.get("seed"),
        step=meta.get("step"),
        tokens=meta.get("tokens"),
        sha256=weights_sha256(folder),
        config_sha256=str(meta.get("config_sha256", sha256_file(folder / "config.json"))),
        tokenizer_sha256=str(meta.get("tokenizer_sha256", "")),
        revision=str(meta.get("revision", "unknown")),
    )


def describe_foreign(folder: Path, model: Any) -> Checkpoint:
    """Describe a model of transformers."""
    return Checkpoint(
        run=as_name(folder.resolve().name),
        variant=as_name(str(model.config.model_type)),
        parameters=sum(p.numel() for p in model.parameters()),
        seed=None,
        step=None,
        tokens=None,
        sha256=weights_sha256(folder),
        config_sha256=sha256_file(folder / "config.json"),
        tokenizer_sha256="",
        revision="unknown",
    )


def weights_sha256(folder: Path) -> str:
    """Hash a folder's weights, or the hashes of all their files."""
    hashes = [sha256_file(path) for path in sorted(folder.glob("*.safetensors"))]
    return hashes[0] if len(hashes) == 1 else sha256_bytes("\n".join(hashes).encode())


def evaluator(device: str) -> Evaluator:
    """Describe the evaluating code."""
    return Evaluator(revision(), version("hope-eval"), torch.__version__, device, torch.get_num_threads())


def revision() -> str:
    """Return the git revision of the evaluating code, `-dirty` where it was changed; `unknown` outside git."""
    folders = [path for package in (hope_eval, hope_model, hope_data) for path in package.__path__]

    def git(*arguments: str) -> str:
        command = ["git", "-C", folders[0], *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        if not git("ls-files", "."):
            return "unknown"
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--", *folders) else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
