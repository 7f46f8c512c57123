"""Logs of two trainings, and a report of whatever results lie beside them."""

import json
from pathlib import Path

import pytest

from hope_data.files import dump_sealed, sha256_bytes
from hope_eval.cli import main


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    for run, final in (("alpha", 3.0), ("beta", 4.0)):
        folder = tmp_path / "runs" / run
        folder.mkdir(parents=True)
        rows = [
            {"step": n, "tokens": 4096 * n, "loss": final + 4 / n, "tokens_per_s": 2048.0}
            for n in range(1, 41)
        ]
        rows[-1]["val_loss"] = final + 0.1
        for row in rows:
            row |= {
                "grad_norm": 2.0 / row["step"],
                "eta": 0.05,
                "gate_hit_rate_0": 1.0,
                "gate_hit_rate_1": 0.5,
            }
        write_log(folder / "log.jsonl", rows)
    return tmp_path / "runs"


def write_log(path: Path, rows: list[dict]) -> None:
    """As the trainer does; the checkpoint beside it knows the hash."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text)
    sidecar = path.parent / "checkpoint" / "training.json"
    sidecar.parent.mkdir(exist_ok=True)
    sidecar.write_bytes(dump_sealed({"progress": {"step": 40}, "log": sha256_bytes(text.encode())}))


def report(tmp_path: Path, *extra: str) -> tuple[int, Path]:
    out = tmp_path / "reports" / "results.md"
    flags = ["--results", str(tmp_path / "results"), "--logs", str(tmp_path / "runs")]
    return main(["report", *flags, "--out", str(out), "--plots", str(out.parent / "plots"), *extra]), out
