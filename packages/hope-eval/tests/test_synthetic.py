"""`hope-eval task`: answers counted by length, on sequences that every checkpoint shares."""

from pathlib import Path

import pytest
import torch

from hope_data.tasks import build, draw
from hope_eval import results
from hope_eval.cli import main
from hope_eval.tasks import synthetic
from hope_model import LanguageModel, ModelConfig, checkpoint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = LanguageModel(ModelConfig(variant="transformer", vocab_size=8, dim=32, layers=1, head_dim=32))
    meta = {"run": "tiny", "seed": 3, "length": 8, "task": {"name": "dyck", "kinds": 2}}
    checkpoint.save(tmp_path / "checkpoint", model, meta)
    return tmp_path / "checkpoint"


def test_answers_are_counted_as_by_hand(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "task.json"
    arguments = ["--lengths", "1x", "3x", "10", "--count", "7", "--seed", "4", "--batch-tokens", "20"]
    assert main(["task", "--checkpoint", str(folder), *arguments, "--json", str(out)]) == 0
    result = results.load(out)
    task = result.tasks[0]
    assert (result.checkpoint.seed, task.task, task.settings["lengths"]) == (3, "dyck", [8, 24, 10])
    model = checkpoint.load(folder)[0]
    for length in (8, 24, 10):
        tokens, targets, mask = draw(build({"name": "dyck", "kinds": 2}), "test", 4, 0, 7, length)
        with torch.no_grad():
            right = (model(torch.from_numpy(tokens))[0].argmax(-1).numpy() == targets) & mask
        metric = task.find("task_accuracy", f"length={length}")
        assert metric is not None
        assert metric.value == pytest.approx((right.sum(1) / mask.sum(1)).mean(), abs=1e-6)
        assert (metric.n, metric.chance) == (7, 0.5)
        assert metric.stderr is not None
        exact = task.find("task_exact", f"length={length}")
        assert exact is not None
        assert exact.value == (right.sum(1) == mask.sum(1)).mean()


def test_memories_frozen_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    model = LanguageModel(
        ModelConfig(variant="titans", vocab_size=8, dim=32, layers=1, head_dim=32, init_std=0.3)
    )
    folder, out = tmp_path / "checkpoint", tmp_path / "task.json"
    checkpoint.save(folder, model, {"run": "tiny", "length": 8, "task": {"name": "dyck", "kinds": 2}})
    given = ["task", "--checkpoint", str(folder), "--lengths", "24", "--count", "16", "--json", str(out)]
    assert main([*given, "--memorize-paths", "titans"]) == 0
    result = results.load(out)
    assert [task.task for task in result.tasks] == ["dyck+off", "dyck+on"]
    tokens, targets, mask = draw(build({"name": "dyck", "kinds": 2}), "test", 0, 0, 16, 24)
    for task, writes in zip(result.tasks, ((), ("titans",)), strict=True):
        state = model.initial(16, model.settings()._replace(teach_scale=0.0, writes=writes))
        with torch.no_grad():
            said = model(torch.from_numpy(tokens), state)[0].argmax(-1).numpy()
        metric = task.find("task_accuracy", "length=24")
        assert metric is not None
        assert metric.value == pytest.approx(
            ((said == targets) & mask).sum(1).mean() / mask.sum(1).mean(), abs=1e-2
        )
    first, second = (task.find("task_accuracy", "length=24") for task in result.tasks)
    assert first is not None
    assert second is not None
    row = next(r for r in result.memorized if (r.metric, r.group) == ("task_accuracy", "length=24"))
    assert row.difference == pytest.approx(second.value - first.value, abs=1e-6)
    assert row.difference != 0
    assert main([*given, "--memorize-oracle"]) == 2
    assert "no context can be read again" in capsys.readouterr().err


def test_a_checkpoint_of_text_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = LanguageModel(ModelConfig(variant="transformer", vocab_size=8, dim=32, layers=1, head_dim=32))
    checkpoint.save(tmp_path, model, {"length": 8})
    assert main(["task", "--checkpoint", str(tmp_path), "--json", str(tmp_path / "x.json")]) == 2
    assert "was trained on text, not on a task" in capsys.readouterr().err
    with pytest.raises(results.InputError):
        synthetic.load(tmp_path)
