"""Keep what runs have logged so far: python curves.py RUNS OUT copies logs, draws curves, writes a table."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from statistics import median

from matplotlib import rc_context

from hope_data.publishing import write_atomic
from hope_eval.report import plots, training
from hope_eval.report.inside import inside

COLUMNS = ("step", "tokens", "loss", "val_bpb", "val_bpb_se", "tokens_per_s", "mfu")


def row(curve: training.Curve, meta: dict[str, object]) -> list[str]:
    """The last value of each column; speeds as medians over the log."""
    cells = [curve.run]
    for key in COLUMNS:
        values = [r[key] for r in curve.rows if key in r]
        value = median(values) if values and key in ("tokens_per_s", "mfu") else (values or [None])[-1]
        cells.append("" if value is None else f"{value:,.4g}" if isinstance(value, float) else f"{value:,}")
    return [*cells, str(meta["seed"]), str(meta["device"]), str(meta["revision"])]


def main() -> None:
    """Every folder of RUNS that holds a log."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    logs = training.find([arguments.runs])
    curves = [training.load(log) for log in logs]
    lines = [["run", *COLUMNS, "seed", "device", "revision"]]
    lines.append(["---"] * len(lines[0]))
    for log, curve in zip(logs, curves, strict=True):
        shutil.copyfile(log, arguments.out / f"{curve.run}.jsonl")
        lines.append(
            row(curve, json.loads((log.parent / "checkpoint/meta.json").read_text(encoding="utf-8")))
        )
    colour = {curve.run: plots.COLOURS[n] for n, curve in enumerate(curves)}
    with rc_context(plots.STYLE):
        drawn = {"loss": plots.loss(curves, colour), "inside": inside(curves, colour)}
        pictures = {name: figure for name, figure in drawn.items() if figure is not None}
        for name, figure in pictures.items():
            plots.save(figure, arguments.out / f"{name}.png")
    text = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    shown = "\n\n".join(f"![{name}]({name}.png)" for name in pictures)
    write_atomic(arguments.out / "README.md", f"{text}\n\n{shown}\n".encode())


if __name__ == "__main__":
    main()
