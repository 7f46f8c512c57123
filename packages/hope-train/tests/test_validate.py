"""Bits per byte by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hope_train.loss import token_losses
from hope_train.parallel.distributed import World
from hope_train.validation.text import Validation

ALONE = World(0, 1, torch.device("cpu"))
# Token 0 ends a document and stands for no byte; token n stands for n bytes.
BYTES = np.array([0, 1, 2, 3], np.int64)
WINDOWS = {
    "a": np.array([[1, 1, 2, 3], [3, 3, 3, 0]], np.int64),  # targets stand for 6 and 6 bytes
    "b": np.array([[0, 1, 1, 1]], np.int64),  # 3 bytes
}


def test_a_model_of_one_bit_per_byte() -> None:
    def losses(tokens: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(BYTES)[tokens[:, 1:]] * math.log(2)

    for batch_size in (1, 2, 8):
        got = Validation(WINDOWS, BYTES, batch_size).measure(losses, ALONE)
        assert got == pytest.approx(
            {
                "val_loss": 15 * math.log(2) / 9,
                "val_bpb": 1.0,
                "val_bpb_se": 0.0,
                "val_windows": 3,
                "val_bpb_a": 1.0,
                "val_bpb_b": 1.0,
            },
            abs=1e-6,
        )


def test_pooling_and_standard_error() -> None:
    bits = torch.tensor(
        [[6.0, 3.0, 3.0], [0.0, 6.0, 0.0], [3.0, 3.0, 3.0]]
    )  # 12, 6, 9 bits over 6, 6, 3 bytes

    def losses(tokens: torch.Tensor) -> torch.Tensor:
        return bits[: len(tokens)] * math.log(2)

    got = Validation(WINDOWS, BYTES, 3).measure(losses, ALONE)
    assert (got["val_bpb"], got["val_bpb_a"], got["val_bpb_b"]) == pytest.approx((27 / 15, 1.5, 3.0))
    residual = np.array([12, 6, 9]) - 27 / 15 * np.array([6, 6, 3])
    assert got["val_bpb_se"] == pytest.approx(math.sqrt(residual @ residual / 2 / 3) / 5)


def test_one_window_has_no_standard_error() -> None:
    got = Validation({"b": WINDOWS["b"]}, BYTES, 1).measure(lambda tokens: tokens[:, 1:] * 1.0, ALONE)
    assert got["val_windows"] == 1
    assert "val_bpb_se" not in got


def test_losses_are_in_float32_and_not_averaged() -> None:
    logits = torch.tensor([[[2.0, 0.0], [0.0, 0.0]]], dtype=torch.bfloat16)
    got = token_losses(logits, torch.tensor([[0, 1]]))
    assert got.dtype == torch.float32
    assert got.tolist() == [pytest.approx([math.log1p(math.exp(-2)), math.log(2)], rel=1e-6)]
