"""Documents of one row that do not see each other: the rows they become, and the loss and gradient of each alone."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from hope_data.loader import Batch, segments
from hope_model import LanguageModel, ModelConfig
from hope_model.errors import InputError
from hope_train import loop, run
from hope_train.config import DataConfig, TrainConfig
from hope_train.data import open_data
from hope_train.documents import NO_TARGET, apart
from hope_train.parallel.distributed import World

EOS = 1
ALONE = World(0, 1, torch.device("cpu"))


def test_every_document_gets_a_row_that_begins_with_the_end_of_text_before_it() -> None:
    tokens = torch.tensor([[5, 6, EOS, 7, 8], [EOS, 9, EOS, 9, 9], [2, 3, 4, 5, 6]])
    of_targets = torch.from_numpy(segments(tokens.numpy(), EOS))[:, 1:]
    inputs, targets = apart(tokens[:, :-1], tokens[:, 1:], of_targets)
    nothing = NO_TARGET
    assert inputs.tolist() == [[5, 6, 0, 0], [EOS, 7, 0, 0], [EOS, 9, 0, 0], [EOS, 9, 0, 0], [2, 3, 4, 5]]
    assert targets.tolist() == [
        [6, EOS, nothing, nothing], [7, 8, nothing, nothing], [9, EOS, nothing, nothing],
        [9, 9, nothing, nothing], [3, 4, 5, 6],
    ]  # fmt: skip


@pytest.mark.parametrize("variant", ["hope", "hope_deltanet", "titans", "gated_deltanet", "transformer"])
def test_the_loss_and_gradient_are_those_of_documents_read_alone(variant: str, tiny: TrainConfig) -> None:
    model = dataclasses.replace(tiny.model, variant=variant)
    data = dataclasses.replace(tiny.data, reset=True)
    config = dataclasses.replace(tiny, model=model, data=data, accumulate=2)
    session = run.build(config, open_data(config), ALONE)
    session.model.double()
    tokens = torch.randint(2, 320, (4, 33), generator=torch.Generator().manual_seed(1))
    tokens[0, 20] = tokens[1, 7] = tokens[1, 8] = tokens[3, 31] = EOS
    batch = Batch(tokens.numpy(), tokens[:, 0].numpy(), segments(tokens.numpy(), EOS))
    loss = loop.forward_backward(session, batch)[0].item()
    gradients = {n: p.grad.clone() for n, p in session.model.named_parameters() if p.grad is not None}
    session.model.zero_grad()

    total = torch.zeros((), dtype=torch.float64)
    for row in tokens:
        starts = [0, *(row[1:32] == EOS).nonzero().flatten() + 1, 32]
        for start, end in pairwise(starts):
            logits, _ = session.model(row[None, start:end])
            total = total + F.cross_entropy(logits[0], row[start + 1 : end + 1], reduction="sum") / 128
    total.backward()
    assert loss == pytest.approx(total.item(), rel=1e-7)  # losses are summed in float32
    for name, parameter in session.model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-5, atol=1e-8)
    carried = dataclasses.replace(session, config=dataclasses.replace(config, data=tiny.data))
    assert loop.forward_backward(carried, batch)[0] != pytest.approx(loss, abs=1e-4)


def test_a_task_has_no_documents() -> None:
    with pytest.raises(InputError, match=r"data.reset: a task's rows are examples"):
        DataConfig(task={"name": "parity"}, reset=True)


def test_rows_of_one_document_train_alike_with_and_without(tiny: TrainConfig) -> None:
    """To the bit: then nothing is padded."""
    losses = []
    tokens = torch.randint(2, 320, (4, 33), generator=torch.Generator().manual_seed(2))
    batch = Batch(tokens.numpy(), tokens[:, 0].numpy(), segments(tokens.numpy(), EOS))
    for reset in (False, True):
        config = dataclasses.replace(tiny, data=dataclasses.replace(tiny.data, reset=reset))
        session = run.build(config, open_data(config), ALONE)
        losses.append(loop.forward_backward(session, batch)[0].item())
    assert losses[0] == losses[1]


def test_the_model_is_what_it_was() -> None:
    """A padded row's document gives the logits that it gives alone."""
    torch.manual_seed(0)
    model = LanguageModel(ModelConfig(vocab_size=64, dim=32, layers=1, head_dim=16)).double()
    tokens = torch.randint(64, (1, 20))
    padded = torch.cat((tokens, torch.zeros(1, 70, dtype=torch.long)), 1)
    torch.testing.assert_close(model(padded)[0][:, :20], model(tokens)[0], rtol=0, atol=1e-12)
