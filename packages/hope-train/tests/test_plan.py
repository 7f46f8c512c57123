"""The arithmetic of `plan`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hope_model import counting
from hope_train.cli import main
from hope_train.compose import Params, compose
from hope_train.planning import plan as planning
from hope_train.planning.peak_memory import Memory

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
    part = 512 * 4 / 2  # tokens on each device
    assert 200 < n["launches"] < 1500  # of four layers
    seconds = part * n["flops_per_token"] / (989e12 * 0.35) + 5e-6 * n["launches"]
    assert n["tokens_per_s"] == pytest.approx(2 * part / seconds)
    assert n["days"] == pytest.approx(n["tokens"] / n["tokens_per_s"] / 86400)
    other = n["parameters"] - n["parameters_matrix"]
    assert n["optimizer_gib"] * 2**30 == (4 * n["parameters_matrix"] + 8 * other) / 2
    assert n["checkpoint_gib"] * 2**30 == 8 * n["parameters_matrix"] + 12 * other
    assert n["total_gib"] > 3 * 4 * n["parameters"] / 2**30
    assert main(["plan", *where, "--device", "abacus"]) == 2
    assert "--device abacus: choose one of H200, H100" in capsys.readouterr().err


def test_operations_are_those_of_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes and the teach signal have no backward; recomputing blocks costs time, and is no operation of the model."""
    # Memory and launches take most of the time; the test above has them.
    monkeypatch.setattr(planning, "foresee", lambda *_, **__: Memory(0, 0, 0, 0))
    monkeypatch.setattr(planning, "training_launches", lambda *_, **__: (1000, 2000))
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
    for row, flops in ((plain, plain["flops_per_token"]), (again, plain["flops_per_token"] + sum(forward))):
        work = flops / (989e12 * 0.35) + 5e-6 * row["launches"] / (4 * 512)
        assert row["tokens_per_s"] == pytest.approx(1 / work)
    assert (plain["launches"], again["launches"]) == (3000, 4000)
    assert still["flops_per_token"] == pytest.approx(3 * forward.differentiated)
