"""How large the named scales are, for every variant, counted without allocating a tensor."""

import dataclasses
from pathlib import Path
from typing import Any

from hope_model.config import VARIANTS
from hope_model.counting import parameters
from hope_train.compose import Params, compose

# What a scale's name promises: parameters (within TOLERANCE) and tokens.
NAMED = {"pilot": (160e6, 3e9), "mid": (760e6, 30e9), "target": (1.3e9, 100e9)}
TOLERANCE = 0.03


def scales(conf: Path) -> list[dict[str, Any]]:
    """Every scale of `conf` with every variant, built on the meta device.

    Returns:
        `scale`, `variant`, `parameters`, the run's `tokens`; where the scale is named, `deviation` of its parameters.

    Raises:
        InputError: a scale that cannot be composed.
    """
    rows: list[dict[str, Any]] = []
    for path in sorted((conf / "scale").glob("*.yaml")):
        config = compose("hope", conf, Params(scale=path.stem, teach_scale=0.1, seeds=[0]))
        tokens = config.steps * config.batch_size * config.length
        for variant in VARIANTS:
            count = parameters(dataclasses.replace(config.model, variant=variant))
            row = {"scale": path.stem, "variant": variant, "parameters": count, "tokens": tokens}
            if path.stem in NAMED:
                row["deviation"] = count / NAMED[path.stem][0] - 1
            rows.append(row)
    return sorted(rows, key=lambda row: (row["tokens"], row["scale"]))


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| scale | variant | parameters | of the named size | tokens |", "|---|---|---|---|---|"]
    for row in rows:
        deviation = f"{row['deviation']:+.2%}" if "deviation" in row else ""
        cells = (row["scale"], row["variant"], f"{row['parameters']:,}", deviation, f"{row['tokens']:,}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
