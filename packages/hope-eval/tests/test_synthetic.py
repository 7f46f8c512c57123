"""`hope-eval task`: answers counted by length, on sequences that every checkpoint shares."""

from pathlib import Path

import pytest
import torch
import yaml

from hope_data.errors import InputError
from hope_data.tasks import build, draw
from hope_eval import results
from hope_eval.cli import main
from hope_eval.tasks.synthetic import Synthetic
from hope_model import LanguageModel, ModelConfig, checkpoint

TASKS = Path(__file__).parents[3] / "conf/task"


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


@pytest.mark.parametrize("path", sorted(TASKS.glob("*.yaml")), ids=lambda path: path.stem)
def test_results_of_every_task_can_be_read(tmp_path: Path, path: Path) -> None:
    """With the options that its file in conf/task gives it."""
    task = yaml.safe_load(path.read_text())["data"]["task"]
    model = LanguageModel(
        ModelConfig(variant="transformer", vocab_size=build(task).vocab_size, dim=32, layers=1, head_dim=32)
    )
    checkpoint.save(tmp_path / "checkpoint", model, {"run": "tiny", "seed": 0, "length": 32, "task": task})
    told = ["task", "--checkpoint", str(tmp_path / "checkpoint"), "--json", str(tmp_path / "task.json")]
    assert main([*told, "--count", "2"]) == 0
    [found] = results.load(tmp_path / "task.json").tasks
    options = {f"task.{key}": value for key, value in task.items() if key != "name"}
    assert options.items() <= found.settings.items()
    assert [type(found.settings[key]) for key in options] == [type(value) for value in options.values()]


def test_memories_frozen_and_written_stand_in_one_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Frozen memories know nothing of a bracket that opened further back than the convolutions reach."""
    torch.manual_seed(0)
    config = {"vocab_size": 8, "dim": 32, "layers": 1, "head_dim": 16, "init_std": 0.3}
    model = LanguageModel(ModelConfig.from_dict({**config, "variant": "titans"}))
    meta = {"run": "tiny", "length": 24, "task": {"name": "dyck", "kinds": 2}}
    checkpoint.save(tmp_path / "checkpoint", model, meta)
    out = tmp_path / "task.json"
    told = ["task", "--checkpoint", str(tmp_path / "checkpoint"), "--json", str(out), "--lengths", "1x", "2x"]
    assert main([*told, "--count", "9", "--memorize-paths", "titans", "--memorize-carry"]) == 0
    result = results.load(out)
    assert [task.task for task in result.tasks] == ["dyck+off", "dyck+on"]
    off, on = result.tasks
    assert off.items_sha256 == on.items_sha256
    assert off.items.scores["task_accuracy"] != on.items.scores["task_accuracy"]
    assert on.settings["memorize_paths"] == "titans"
    assert on.settings["memorize_state"] == "carried"
    assert (off.tokens, on.tokens) == (9 * 72, 9 * 72)
    for length in (24, 48):
        [row] = [r for r in result.memorized if (r.metric, r.group) == ("task_accuracy", f"length={length}")]
        values = [task.find("task_accuracy", f"length={length}") for task in (on, off)]
        assert row.difference == pytest.approx(values[0].value - values[1].value, abs=1e-6)
        assert (row.n, row.stderr is not None) == (9, True)
    assert f"minus frozen: task_accuracy length=48 {results.value(row.difference, row.stderr)} (n 9)" in (
        capsys.readouterr().out
    )
    assert main([*told, "--memorize-steps", "2"]) == 2
    assert "task: more than one reading would show what is scored" in capsys.readouterr().err


def test_a_model_without_memories_has_none_to_write(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.json"
    assert main(["task", "--checkpoint", str(folder), "--json", str(out), "--memorize"]) == 2
    assert "transformer has no memory to write at test time" in capsys.readouterr().err
    assert not out.exists()


def test_a_checkpoint_of_text_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = LanguageModel(ModelConfig(variant="transformer", vocab_size=8, dim=32, layers=1, head_dim=32))
    checkpoint.save(tmp_path, model, {"length": 8})
    assert main(["task", "--checkpoint", str(tmp_path), "--json", str(tmp_path / "x.json")]) == 2
    assert "was trained on text, not on a task" in capsys.readouterr().err
    with pytest.raises(InputError):
        Synthetic().load(tmp_path, None, "cpu")
