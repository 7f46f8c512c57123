"""Two optimiser steps of every variant, against numbers written down.

They change when the initial weights, the model's mathematics, the loss or the optimiser change. If you meant
that, paste the line the failure prints and say why in the commit; if you did not, you have found a bug.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch

from hope_data.loader import Batch
from hope_model import ModelConfig
from hope_train import loop, run
from hope_train.config import TrainConfig
from hope_train.data import open_data
from hope_train.parallel.distributed import World

ALONE = World(0, 1, torch.device("cpu"))

# variant: loss of step 1, loss of step 2, rms of step 2's gradient, rms of its update under Muon and AdamW
GOLDEN = {
    "hope": (5.77761, 5.395, 0.00254158, 0.000534238, 0.00237599),
    "hope_attention": (5.77505, 5.52074, 0.00288248, 0.000536422, 0.00280652),
    "titans": (5.77663, 5.53172, 0.00273786, 0.000531996, 0.00266542),
    "transformer": (5.78176, 5.57225, 0.00222827, 0.000529653, 0.00282531),
    "gated_deltanet": (5.78482, 5.52454, 0.00285187, 0.000527192, 0.00271124),
}


def rms(tensors: list[torch.Tensor]) -> float:
    flat = torch.cat([t.detach().flatten() for t in tensors])
    return float(flat.square().mean().sqrt())


@pytest.mark.parametrize("variant", GOLDEN)
def test_two_steps(variant: str, tiny: TrainConfig) -> None:
    model = ModelConfig(variant=variant, vocab_size=320, dim=64, layers=2, head_dim=32)
    config = dataclasses.replace(tiny, model=model)
    session = run.build(config, open_data(config), ALONE)
    tokens = torch.randint(320, (2, 129), generator=torch.Generator().manual_seed(1))
    batch = Batch(tokens.numpy(), tokens[:, 0].numpy())

    first, _ = loop.forward_backward(session, batch)
    session.optimizer.clip()
    session.optimizer.step(1.0)
    second, _ = loop.forward_backward(session, batch)
    gradient = rms([p.grad for p in session.optimizer.parameters if p.grad is not None])
    before = {name: p.detach().clone() for name, p in session.model.named_parameters()}
    session.optimizer.clip()
    session.optimizer.step(1.0)
    after = dict(session.model.named_parameters())
    updates = [rms([after[n] - before[n] for n in names]) for names in session.optimizer.names.values()]

    got = (first, second, gradient, *updates)
    line = f'"{variant}": ({", ".join(f"{value:.6g}" for value in got)}),'
    # Muon orthogonalises roughly, so its update is known to fewer digits.
    for value, expected, tolerance in zip(got, GOLDEN[variant], (1e-5, 1e-4, 1e-3, 5e-3, 1e-3), strict=True):
        assert value == pytest.approx(expected, rel=tolerance), (
            f"the golden step has changed; now it is\n{line}"
        )


def test_parts_of_a_batch_give_the_gradient_of_the_whole(tiny: TrainConfig) -> None:
    gradients, losses = [], []
    for parts in (1, 2, 4):
        session = run.build(dataclasses.replace(tiny, accumulate=parts), open_data(tiny), ALONE)
        loss, _ = loop.forward_backward(session, next(session.data.loader))
        losses.append(loss.item())
        gradients.append(
            torch.cat([p.grad.flatten() for p in session.optimizer.parameters if p.grad is not None])
        )
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-6)
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=1e-4, atol=1e-7)


def test_the_seed_comes_before_the_weights(tiny: TrainConfig) -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.rand(seed + 5)
        model = run.build(dataclasses.replace(tiny, seed=seed), open_data(tiny), ALONE).model
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))


def test_counts_per_optimiser_add_up_to_the_model(tiny: TrainConfig) -> None:
    session = run.build(tiny, open_data(tiny), ALONE)
    counts = session.optimizer.counts()
    assert sum(counts.values()) == sum(p.numel() for p in session.model.parameters())
    embedding = 320 * 32
    assert counts["adamw"] >= embedding
    assert set(session.optimizer.names["muon"]).isdisjoint(session.optimizer.names["adamw"])
    assert not any(name.startswith("embed") for name in session.optimizer.names["muon"])
    assert counts["muon"] > 0
