"""What `dvc metrics` and `dvc plots` show of several runs: differences with intervals, and every seed's loss."""

import csv
import io
from collections.abc import Sequence

from hope_eval.report.select import Named, done
from hope_eval.report.training import Curve
from hope_eval.report.verdicts import Compared


def differences(named: Named, compared: Compared) -> dict[str, float | str]:
    """Return bits per byte of every run, then the first run minus each other one with half its 95 % interval.

    Flat and short: `dvc exp show` has a column for each.
    """
    cells: dict[str, float | str] = {}
    for name, task in done(named, "perplexity"):
        if metric := task.find("bits_per_byte"):
            cells[name] = round(metric.value, 4)
    for other, rows in compared:
        for row in rows:
            if (row.task, row.metric, row.group) == ("perplexity", "bits_per_byte", "all") and other in cells:
                estimate = row.difference
                half = (
                    ""
                    if estimate.low is None or estimate.high is None
                    else f" ± {(estimate.high - estimate.low) / 2:.3f}"
                )
                cells[f"{named[0][0]}-{other}"] = f"{estimate.value:+.3f}{half}"
    return cells


def losses(curves: Sequence[Curve]) -> str:
    """Return the training loss of every seed by tokens, as CSV."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["run", "seed", "tokens", "loss"])
    for curve in curves:
        for tokens, loss in zip(curve.tokens, curve.loss, strict=True):
            table.writerow([curve.run, curve.seed or "0", int(tokens), round(loss, 4)])
    return text.getvalue()
