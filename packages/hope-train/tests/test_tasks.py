"""The one loop on a synthetic task: loss over asked positions only, resumed bitwise, accuracy by length."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from hope_data.tasks import build, draw
from hope_data.tasks.loader import IGNORED
from hope_model import LanguageModel, ModelConfig, checkpoint
from hope_model.errors import InputError
from hope_train import loop
from hope_train import run as running
from hope_train.config import DataConfig, LogConfig, OptimConfig, TrainConfig
from hope_train.data import open_data
from hope_train.parallel.distributed import World
from hope_train.validation.task import TaskValidation

ALONE = World(0, 1, torch.device("cpu"))
TINY = TrainConfig(
    run="tiny",
    model=ModelConfig(variant="gated_deltanet", vocab_size=18, dim=32, layers=1, head_dim=32),
    data=DataConfig(task={"name": "selective_copying", "items": 3}, eval_lengths=[16, 24]),
    optim=OptimConfig(name="adamw"),
    log=LogConfig(every=2, wandb="disabled"),
    steps=6,
    batch_size=4,
    length=16,
    eval_every=3,
    eval_windows=5,
    precision="fp32",
    device="cpu",
)


def test_loss_and_gradient_are_of_asked_positions_only() -> None:
    run = running.build(TINY, open_data(TINY), ALONE)
    batch = next(run.data.loader)
    inputs, targets = torch.from_numpy(batch.inputs), torch.from_numpy(batch.targets)
    assert (targets >= 0).sum(1).tolist() == [3] * 4
    logits = run.model(inputs)[0]
    expected = functional.cross_entropy(logits[targets >= 0], targets[targets >= 0])
    gradients = torch.autograd.grad(expected, list(run.model.parameters()))
    loss, _ = loop.forward_backward(run, batch)
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    for parameter, gradient in zip(run.model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-7)


def test_accumulated_parts_give_the_same_gradient() -> None:
    dyck = dataclasses.replace(TINY, data=DataConfig(task={"name": "dyck"}))
    gradients = []
    for accumulate in (1, 4):  # parts with unequally many asked positions
        run = running.build(dataclasses.replace(dyck, accumulate=accumulate), open_data(dyck), ALONE)
        batch = next(run.data.loader)
        assert len({int(row) for row in (batch.targets != IGNORED).sum(1)}) > 1
        loop.forward_backward(run, batch)
        gradients.append(torch.cat([p.grad.flatten() for p in run.model.parameters() if p.grad is not None]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-7)


def test_validation_counts_right_answers() -> None:
    task = build({"name": "parity"})
    validation = TaskValidation(task, [6, 12], 3, 2)

    def scores(inputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Right where the bit is 0, one nat where it is 1."""
        return inputs.float(), inputs == 0

    got = validation.measure(scores, ALONE)
    for length, suffix in ((6, ""), (12, "_12")):
        zeros = 1 - draw(task, "val", 0, 0, 3, length).tokens
        assert got[f"val_accuracy{suffix}"] == pytest.approx(zeros.mean())
        assert got[f"val_loss{suffix}"] == pytest.approx(1 - zeros.mean())
        if not suffix:
            assert got["val_accuracy_se"] == pytest.approx(zeros.mean(1).std(ddof=1) / np.sqrt(3))
    assert got["val_sequences"] == 3


def weights(out: Path) -> dict[str, Any]:
    model, meta = checkpoint.load(out / "checkpoint")
    assert meta["task"] == TINY.data.task
    assert isinstance(model, LanguageModel)
    return dict(model.named_parameters())


def test_stopped_and_resumed_is_bitwise_undisturbed(tmp_path: Path) -> None:
    assert running.train(TINY, tmp_path / "whole") == running.FINISHED
    assert running.train(TINY, tmp_path / "parts", until=2) == running.RESUMABLE
    assert running.train(TINY, tmp_path / "parts") == running.FINISHED
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_what_cannot_be_trained_is_named() -> None:
    for changes, words in (
        ({"data": DataConfig(task={"name": "mqar"})}, "task mqar has 129 tokens, but model.vocab_size is 18"),
        ({"lengths": {0: 8}}, "'lengths' would cut its examples"),
    ):
        with pytest.raises(InputError, match=words):
            open_data(dataclasses.replace(TINY, **changes))
