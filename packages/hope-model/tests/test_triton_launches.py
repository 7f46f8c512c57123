"""How many kernels a GPU would start at pilot shape: the ceilings that Triton's kernels are there for."""

import shutil

import pytest

from hope_model import ModelConfig
from hope_model.cli import main
from hope_model.counting import training_flops_per_token
from hope_model.launches import Pilot, launches

CEILINGS = {"transformer": 1_500, "titans": 6_000, "hope": 12_000}  # in torch's operators 313,963 and 517,481
DEVICE = {
    "titans": 1.6,
    "hope": 2.2,
}  # estimated time of the device, times a Transformer's; in torch's operators 3.6 and 11
DECODING = 25  # of a token, a layer; in torch's operators 39, 230 and 192


@pytest.mark.skipif(shutil.which("g++") is None, reason="counting needs a C++ compiler (g++)")
def test_a_microbatch_starts_few_kernels() -> None:
    rows = launches(list(CEILINGS), Pilot())
    counts = {row["variant"]: row["launches"] for row in rows}
    assert counts.keys() == CEILINGS.keys()
    assert all(1_000 < count <= CEILINGS[variant] for variant, count in counts.items()), counts
    reference = next(row for row in rows if row["variant"] == "transformer")
    config = ModelConfig(vocab_size=32000, dim=768, layers=19, head_dim=64, variant="transformer")
    again = 0.5 * 4 * 768 * 1024 * 19  # a fused attention's backward multiplies queries and keys once more
    expected = (training_flops_per_token(config, 2048) + again) * 8 * 2048 / 1e12
    assert reference["tflop"] == pytest.approx(expected, rel=1e-4)
    times = {row["variant"]: row["device_ms"] for row in rows}
    assert 70 < times["transformer"] < 90
    assert all(1 < times[name] / times["transformer"] <= most for name, most in DEVICE.items()), times
    assert all(10 < row["decode_per_layer"] <= DECODING for row in rows), rows


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--variants", "hoop"], "--variants hoop: choose of"),
        (["--layers", "0"], "layers"),
    ],
)
def test_wrong_arguments_are_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["launches", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1
