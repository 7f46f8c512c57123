"""The arithmetic of `plan`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hope_model import counting
from hope_train.cli import main
from hope_train.compose import Params, compose

CONF = Path(__file__).parents[3] / "conf"


def test_plan_of_a_scale(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "params.yaml").write_text("scale: smoke\nteach_scale: 0.1\nseeds: [0]\nruns: [transformer]\n")
    where = [
        "--conf",
        str(CONF),
        "--params",
        str(tmp_path / "params.yaml"),
        "--json",
        str(tmp_path / "a.json"),
    ]
    assert main(["plan", *where, "--device", "H100", "--count", "2", "parallel=fsdp"]) == 0
    n = json.loads((tmp_path / "a.json").read_text())
    assert n["tokens"] == 48 * 4 * 512
    assert n["tokens_per_s"] == pytest.approx(2 * 989e12 * 0.35 / n["flops_per_token"])
    assert n["days"] == pytest.approx(n["tokens"] / n["tokens_per_s"] / 86400)
    other = n["parameters"] - n["parameters_matrix"]
    assert n["optimizer_gib"] * 2**30 == (4 * n["parameters_matrix"] + 8 * other) / 2
    assert n["checkpoint_gib"] * 2**30 == 8 * n["parameters_matrix"] + 12 * other
    assert n["total_gib"] > 3 * 4 * n["parameters"] / 2**30
    assert main(["plan", *where, "--device", "abacus"]) == 2
    assert "--device abacus: choose one of H200, H100" in capsys.readouterr().err


def test_operations_are_those_of_training(tmp_path: Path) -> None:
    """Writes and the teach signal have no backward; recomputing blocks costs time, and is no operation of the model."""
    (tmp_path / "params.yaml").write_text("scale: smoke\nteach_scale: 0.1\nseeds: [0]\n")
    where = [
        "--conf",
        str(CONF),
        "--params",
        str(tmp_path / "params.yaml"),
        "--json",
        str(tmp_path / "a.json"),
    ]
    numbers = []
    for overrides in ((), ("activation_checkpoint=true",), ("teach_scale=0",)):
        assert main(["plan", "--run", "hope", *where, *overrides]) == 0
        numbers.append(json.loads((tmp_path / "a.json").read_text()))
    plain, again, still = numbers
    config = compose("hope", CONF, Params("smoke", 0.1, [0]))
    forward = counting.forward_flops(config.model, config.length)
    # Tripled, HOPE would have a seventh too many.
    assert forward.constant / sum(forward) == pytest.approx(0.188, abs=0.001)
    assert (
        plain["flops_per_token"] == again["flops_per_token"] == 3 * forward.differentiated + forward.constant
    )
    assert plain["tokens_per_s"] / again["tokens_per_s"] == pytest.approx(
        (plain["flops_per_token"] + sum(forward)) / plain["flops_per_token"]
    )
    assert still["flops_per_token"] == pytest.approx(3 * forward.differentiated)
