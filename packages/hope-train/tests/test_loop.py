"""What a step reports, and how batches are cut: contexts that grow, parts, kernels, recomputed blocks."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from hope_model import counting
from hope_model.errors import InputError
from hope_train import loop
from hope_train.config import LogConfig, ScheduleConfig, TeachConfig, TrainConfig
from hope_train.data import open_data
from hope_train.parallel.distributed import World
from hope_train.planning import hardware
from hope_train.run import build, train

ALONE = World(0, 1, torch.device("cpu"))


def gradients(config: TrainConfig, step: int = 0) -> tuple[float, torch.Tensor]:
    run = build(config, open_data(config), ALONE)
    loss, _ = loop.forward_backward(run, next(run.data.loader), step)
    return loss.item(), torch.cat([p.grad.flatten() for p in run.optimizer.parameters if p.grad is not None])


def test_recomputed_blocks_and_other_kernels_give_the_same_gradient(tiny: TrainConfig) -> None:
    for variant in ("hope", "hope_attention"):
        config = dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, variant=variant))
        loss, expected = gradients(config)
        again = gradients(dataclasses.replace(config, activation_checkpoint=True))
        assert again[0] == loss
        torch.testing.assert_close(again[1], expected, rtol=1e-5, atol=1e-8)
    loss, expected = gradients(dataclasses.replace(config, sdpa="math"))
    assert loss == pytest.approx(again[0], rel=1e-6)
    torch.testing.assert_close(expected, again[1], rtol=1e-3, atol=1e-6)


def test_a_short_context_sees_the_same_tokens(tiny: TrainConfig) -> None:
    """The first half of every sequence has lost nothing; the second half has lost its first."""
    config = dataclasses.replace(tiny, lengths={0: 16, 1: 32})
    run = build(config, open_data(config), ALONE)
    tokens = torch.from_numpy(next(run.data.loader).tokens)
    seen: list[Any] = []
    real = run.network

    class Spy(torch.nn.Module):
        def forward(self, *arguments: Any) -> Any:
            seen.append(arguments)
            return real(*arguments)

    run.network = Spy()
    batch = run.data.loader.samples(torch.arange(4).numpy())
    short, _ = loop.forward_backward(run, batch, 0)
    whole, _ = loop.forward_backward(run, batch, 1)
    assert [tuple(a[0].shape) for a in seen] == [(8, 16), (4, 32)]
    assert torch.equal(seen[0][0].flatten(), tokens[:, :-1].flatten())
    assert torch.equal(seen[0][1].flatten(), tokens[:, 1:].flatten())
    assert short != whole
    first = [real(a[0], a[1], a[2])[0].detach() for a in seen]
    torch.testing.assert_close(first[0][::2], first[1][:, :16], rtol=1e-4, atol=1e-5)


def test_rows_hold_root_mean_squares_and_inner_metrics(
    tiny: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "peak_flops", lambda device: 1e12)
    teach = TeachConfig(warmup=1.0, lr=[ScheduleConfig(name="constant", warmup=1.0)])
    assert train(dataclasses.replace(tiny, lengths={0: 16, 3: 32}, teach=teach), tmp_path / "a") == 0
    rows = [json.loads(line) for line in (tmp_path / "a/log.jsonl").read_text().splitlines()]
    flops = counting.training_flops_per_token(tiny.model, tiny.length)
    assert [row["tokens"] for row in rows] == [row["step"] * 4 * 32 for row in rows]
    for row in rows:
        squares = row["grad_rms_muon"] ** 2 + row["grad_rms_adamw"] ** 2
        assert 0 < squares < math.inf
        # AdamW's step is about its rate, Muon's a fifth of its.
        assert row["update_rms_adamw"] == pytest.approx(row["lr"], rel=0.7)
        assert row["update_rms_muon"] == pytest.approx(0.2 * row["lr"], rel=0.3)
        # A context of one segment is over before anything is taught.
        assert ("teach_norm" in row) == (row["step"] > 3)
        assert {"memory_norm", "eta", "alpha"} <= row.keys()
        assert row["mfu"] == pytest.approx(row["tokens_per_s"] * flops / 1e12)
        assert (row["cms_lr_0"], row["cms_lr_1"]) == pytest.approx((row["step"] / 6, 1.0))
        assert row["teach_scale"] == pytest.approx(0.1 * row["step"] / 6)
        assert 0 < row["eta"] < 0.2  # twice eta_max at most
        assert 0.5 < row["alpha"] < 1


def test_mlflow_gets_the_rows(tiny: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[tuple[int, dict[str, float]]] = []
    calls: list[str] = []
    fake = types.ModuleType("mlflow")
    fake.set_tracking_uri = calls.append  # type: ignore[attr-defined]
    fake.set_experiment = calls.append  # type: ignore[attr-defined]
    fake.search_runs = lambda **_: []  # type: ignore[attr-defined]
    fake.start_run = lambda **_: None  # type: ignore[attr-defined]
    fake.log_params = lambda given: calls.append(f"lr {given['optim.lr']}")  # type: ignore[attr-defined]
    fake.exceptions = types.SimpleNamespace(MlflowException=OSError)  # type: ignore[attr-defined]
    fake.log_metrics = lambda row, step: logged.append((step, row))  # type: ignore[attr-defined]
    fake.end_run = lambda: calls.append("end")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    log = LogConfig(every=2, mlflow="sqlite:///a.db", project="p")
    assert train(dataclasses.replace(tiny, log=log, eval_every=0), tmp_path / "a") == 0
    rows = [json.loads(line) for line in (tmp_path / "a/log.jsonl").read_text().splitlines()]
    assert logged == [(row.pop("step"), row) for row in rows]
    assert calls == ["sqlite:///a.db", "p", "lr 0.003", "end"]  # no file: MLflow would keep it in ./mlruns

    def refuse(_: str) -> None:
        raise OSError("the file store is in maintenance mode\nsee")

    fake.set_experiment = refuse  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=r"^log\.mlflow is 'sqlite:///a\.db': the file store is in .* mode$"):
        train(dataclasses.replace(tiny, log=log), tmp_path / "b")
    assert not (tmp_path / "b/log.jsonl").exists()
