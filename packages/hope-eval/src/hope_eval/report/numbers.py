"""What `dvc metrics` and `dvc plots` show of several runs: differences with intervals, and every seed's loss."""

import csv
import io
from collections.abc import Sequence

from hope_eval.report.training import Curve
from hope_eval.report.verdicts import Pairs, verdict


def differences(compared: Pairs) -> dict[str, dict[str, float | str]]:
    """Return the first run minus each other one, with its 95 % interval and what that decides."""
    rows: dict[str, dict[str, float | str]] = {}
    for a, b, comparisons in compared:
        if a == compared[0][0]:
            cells: dict[str, float | str] = {}
            for row in comparisons:
                if row.metric == "bits_per_byte" and row.task == "perplexity":
                    cells["bpb"] = round(row.difference.value, 4)
                    if row.difference.low is not None and row.difference.high is not None:
                        cells["ci95"] = round((row.difference.high - row.difference.low) / 2, 4)
                    cells["verdict"] = verdict(a, b, row)
            rows[f"{a}-{b}"] = cells
    return rows


def losses(curves: Sequence[Curve]) -> str:
    """Return the training loss of every seed by tokens, as CSV."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["run", "seed", "tokens", "loss"])
    for curve in curves:
        for tokens, loss in zip(curve.tokens, curve.loss, strict=True):
            table.writerow([curve.run, curve.seed or "0", int(tokens), round(loss, 4)])
    return text.getvalue()
