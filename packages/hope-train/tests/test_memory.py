"""What `plan` foresees of a step's memory, against the step itself: counted bytes, the same on every machine."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from hope_model import CMSConfig, LanguageModel, ModelConfig
from hope_train.config import OptimConfig, TrainConfig
from hope_train.network import Network
from hope_train.planning.peak_memory import activations, counted_peak, foresee

SIZES = {"narrow": (32, 4, 2), "wide": (64, 4, 3)}
LENGTH = 64


def config(variant: str, size: str) -> TrainConfig:
    dim, layers, sequences = SIZES[size]
    cms = CMSConfig(levels=2, smallest=32, ratio=2)
    model = ModelConfig(variant=variant, vocab_size=160, dim=dim, layers=layers, head_dim=32, cms=cms)
    return TrainConfig(
        run="a", model=model, batch_size=sequences, length=LENGTH, activation_checkpoint=size == "wide"
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("variant", ["transformer", "titans", "hope", "gated_deltanet"])
def test_foreseen_is_what_a_real_step_holds(variant: str, size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors without content, and two and three layers, stand for real tensors and all layers."""
    monkeypatch.setenv("HOPE_NATIVE", "0")  # C++ kernels keep less: what is foreseen is the torch form
    run = config(variant, size)
    foreseen = activations(run, run.batch_size, LENGTH, bf16=False)
    counted = counted_peak(run, run.model.layers, run.batch_size, LENGTH, bf16=False)
    assert foreseen == pytest.approx(counted, rel=0.03)
    if not run.activation_checkpoint:
        graph, parameters = kept_by_autograd(run)
        # Gradients that come last are not there at the worst moment; the rest is what that moment adds.
        assert 0.6 * graph < foreseen + parameters < 1.6 * graph + parameters


def kept_by_autograd(run: TrainConfig) -> tuple[int, int]:
    """Bytes of the distinct storages that the graph saves, weights left out; bytes of the weights."""
    network = Network(LanguageModel(run.model), run)
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept: dict[int, tuple[int, Tensor]] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor.detach())
        return tensor

    tokens = torch.zeros(run.batch_size, LENGTH, dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(tokens, tokens)
    return sum(size for size, _ in kept.values()), 4 * sum(p.numel() for p in network.parameters())


def test_gradients_and_updates_are_counted_where_they_are_alive() -> None:
    run = dataclasses.replace(config("transformer", "narrow"), batch_size=8)
    once = activations(run, 8, LENGTH, bf16=False)
    again = activations(run, 8, LENGTH, bf16=False, gradients=True)
    model = LanguageModel(run.model)
    weights = 4 * sum(p.numel() for p in model.parameters())
    # The worst moment comes at the end of the forward pass, where the first part of a batch has no gradients yet.
    assert 0.5 * weights < again - once <= weights
    assert foresee(dataclasses.replace(run, batch_size=16, accumulate=2), 1, bf16=False).activations == again
    adamw = dataclasses.replace(run, optim=OptimConfig(name="adamw"))
    shared = [foresee(dataclasses.replace(adamw, parallel=kind), 2, bf16=False) for kind in ("fsdp", "zero2")]
    assert shared[0] == shared[1]
    assert shared[0].optimizer == weights
    short = dataclasses.replace(run, batch_size=1, length=1)
    late = {
        name: foresee(dataclasses.replace(short, optim=OptimConfig(name=name)), 1, bf16=False).activations
        for name in ("adamw", "muon")
    }
    assert late["adamw"] == 2 * weights
    assert late["adamw"] < late["muon"] < 2.5 * weights
