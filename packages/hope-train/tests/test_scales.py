"""The named scales are what their names say, for every variant, counted without allocating a tensor."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from hope_model.blocks import VARIANTS
from hope_model.counting import parameters
from hope_train.compose import Params, compose

CONF = Path(__file__).parents[3] / "conf"
# parameters, tokens
NAMED = {"pilot": (160e6, 3e9), "mid": (760e6, 30e9), "target": (1.3e9, 100e9)}
RUNS = ("hope", "titans", "transformer")


@pytest.mark.parametrize("scale", sorted(p.stem for p in (CONF / "scale").glob("*.yaml")))
def test_sizes(scale: str) -> None:
    params = Params(scale=scale, teach_scale=0.1, seed=0)
    configs = {run: compose(run, CONF, params) for run in RUNS}
    hope = configs["hope"].model
    counts = {kind: parameters(dataclasses.replace(hope, variant=kind)) for kind in VARIANTS}
    assert max(counts.values()) / min(counts.values()) < 1.03, counts
    if scale in NAMED:
        size, tokens = NAMED[scale]
        assert all(abs(count / size - 1) < 0.03 for count in counts.values()), counts
        for config in configs.values():
            assert config.steps * config.batch_size * config.length == pytest.approx(tokens, rel=1e-3)
