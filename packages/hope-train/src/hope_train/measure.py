"""How a training of a study is measured: the command of hope-eval, and what of its file is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hope_train.study import Unit

KEPT = ("name", "n", "value", "stderr", "chance")


def command(unit: Unit, folder: Path, out: Path) -> list[str]:
    """Arguments of `hope-eval` that measure the checkpoint in `folder`."""
    study, data = unit.chain.definition, unit.config.data
    given = ["--checkpoint", str(folder / "checkpoint"), "--json", str(out)]
    if data.task:
        return ["task", *given, "--lengths", *study.lengths]
    given += ["--shards", data.shards, "--tokenizer", data.tokenizer]
    if study.stream.domains:
        sizes = ["--tokens", str(study.stream.tokens), "--held-out", str(study.stream.held_out)]
        lr = f"{study.stream.lr * unit.config.optim.lr:g}"
        domains = ",".join(study.stream.domains)
        return ["continual", *given, "--corpora", domains, "--learn", "each", "--lr", lr, *sizes]
    writes = unit.chain.writes
    return [
        "run",
        *given,
        "--tasks",
        "perplexity",
        *(["--memorize-paths", ",".join(writes)] if writes else []),
    ]


def read(unit: Unit, out: Path) -> list[dict[str, Any]]:
    """Rows of a result; of a stream those of each way of learning, named in `group`."""
    tasks = json.loads(out.read_text())["tasks"]
    if unit.chain.definition.stream.domains:
        return streamed(tasks, unit.config.length)
    found = asked_for(tasks)
    if not unit.config.data.task:  # over all domains
        found = [m for m in found if (m["name"], m["group"]) == ("bits_per_byte", "all")]
    trained = f"length={unit.config.length}"
    return [
        {key: m[key] for key in KEPT} | {"length": int(m["group"].replace("all", trained).partition("=")[2])}
        for m in found
    ]


def asked_for(tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Metrics of the run that was asked for: where only some memories are written, the file has one with none too."""
    found: list[dict[str, Any]] = next(t["metrics"] for t in tasks if not t["task"].endswith("+off"))
    return found


def streamed(tasks: list[dict[str, Any]], length: int) -> list[dict[str, Any]]:
    """R[i][j] as `WAY i>DOMAIN` in bits per byte, and what follows from it as `WAY`."""
    rows = []
    for task in tasks:
        way = task["task"].removeprefix("continual_stream_")
        for m in task["metrics"]:
            cell = m["group"].startswith("cell=")
            if cell or (m["group"] == "all" and m["name"] != "bits_per_byte"):
                group = f"{way} {m['group'].removeprefix('cell=')}" if cell else way
                rows.append({key: m[key] for key in KEPT} | {"length": length, "group": group})
    return rows
