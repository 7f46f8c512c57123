"""The named scales are what their names say, for every variant, counted without allocating a tensor."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hope_model.config import VARIANTS
from hope_train.cli import main
from hope_train.planning.scales import NAMED, TOLERANCE

CONF = Path(__file__).parents[3] / "conf"


def test_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scales", "--conf", str(CONF), "--json", str(tmp_path / "a.json")]) == 0
    shown = capsys.readouterr().out
    rows = json.loads((tmp_path / "a.json").read_text())["scales"]
    counts = {(row["scale"], row["variant"]): row["parameters"] for row in rows}
    scales = {p.stem for p in (CONF / "scale").glob("*.yaml")}
    assert counts.keys() == {(scale, variant) for scale in scales for variant in VARIANTS}
    assert {"smoke", *NAMED} <= scales
    for scale in scales:
        sizes = [counts[scale, variant] for variant in VARIANTS]
        assert max(sizes) / min(sizes) < 1 + TOLERANCE, (scale, sizes)
    for row in rows:
        assert f"{row['parameters']:,}" in shown
        if row["scale"] in NAMED:
            size, tokens = NAMED[row["scale"]]
            assert abs(row["parameters"] / size - 1) < TOLERANCE, row
            assert row["deviation"] == pytest.approx(row["parameters"] / size - 1)
            assert row["tokens"] == pytest.approx(tokens, rel=1e-3)


def test_a_folder_without_scales(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scales", "--conf", str(tmp_path)]) == 2
    assert "no scale there; --conf" in capsys.readouterr().err
