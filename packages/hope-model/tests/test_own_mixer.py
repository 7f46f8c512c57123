"""A mixer in one file and one line: docs/reading.md shows examples/mixer_of_your_own.py, and this runs it."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hope_model import LanguageModel, ModelConfig, blocks, checkpoint, counting
from hope_model.errors import InputError
from hope_model.state_check import check_state

EXAMPLE = Path(__file__).parents[1] / "examples" / "mixer_of_your_own.py"
READING = Path(__file__).parents[3] / "docs" / "reading.md"
SIZE: dict[str, Any] = {"variant": "average", "vocab_size": 16, "dim": 16, "layers": 2, "head_dim": 8}


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> LanguageModel:
    """Forgotten afterwards: other tests go through all variants."""
    monkeypatch.setattr(blocks, "MIXERS", dict(blocks.MIXERS))
    monkeypatch.setattr(blocks, "VARIANTS", dict(blocks.VARIANTS))
    monkeypatch.setattr(counting, "MIXERS", blocks.MIXERS)
    monkeypatch.setattr("hope_model.state_check.MIXERS", blocks.MIXERS)
    runpy.run_path(str(EXAMPLE))
    torch.manual_seed(0)
    return LanguageModel(ModelConfig(**SIZE)).double()


def test_the_example_learns() -> None:
    done = subprocess.run([sys.executable, EXAMPLE], capture_output=True, text=True, check=True)
    first, *_, last = re.findall(r"([0-9.]+) nats", done.stdout)
    assert 2.6 < float(first) < 3.0  # ln 16 = 2.77
    assert float(last) < 0.5  # guessing among eight keys leaves ln 8 = 2.08


def test_a_text_can_be_read_in_parts(model: LanguageModel) -> None:
    tokens = torch.randint(16, (3, 11))
    whole, _ = model(tokens)
    head, state = model(tokens[:, :4])
    rest, state = model(tokens[:, 4:], state)
    torch.testing.assert_close(torch.cat((head, rest), 1), whole, rtol=0, atol=1e-12)
    assert state.position == 11
    fewer = state._replace(blocks=state.blocks[:1])
    with pytest.raises(InputError, match=r"state\.blocks is a tuple of 1 parts"):
        check_state(fewer, model.config, 0, model.embed.weight)


def test_its_block_weighs_what_every_block_does(model: LanguageModel) -> None:
    transformer = counting.parameters(ModelConfig(**{**SIZE, "variant": "transformer"}))
    assert counting.parameters(model.config) == pytest.approx(transformer, rel=0.03)
    products = sum(p.numel() for p in model.parameters() if p.dim() == 2)
    assert counting.flops_per_token(model.config, 11) == 2 * products


def test_an_installed_package_brings_its_mixer_by_one_line(tmp_path: Path) -> None:
    """What `[project.entry-points."hope_model.mixers"]` in a pyproject.toml leaves behind when it is installed."""
    (tmp_path / "averages.py").write_text(EXAMPLE.read_text().replace('add_mixer("average", Average)', ""))
    about = tmp_path / "averages-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: averages\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[hope_model.mixers]\naverage = averages:Average\n")
    save = (
        "import sys, torch; from pathlib import Path\n"
        "from hope_model import LanguageModel, ModelConfig, checkpoint\n"
        f"model = LanguageModel(ModelConfig(**{SIZE!r}))\n"
        "checkpoint.save(Path(sys.argv[1]), model, {})\n"
        "again, _ = checkpoint.load(Path(sys.argv[1]))\n"
        "x = torch.arange(8)[None]; print(float((again(x)[0] - model(x)[0]).abs().max()))\n"
    )
    command = [sys.executable, "-c", save, str(tmp_path / "checkpoint")]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "0.0\n"
    with pytest.raises(InputError, match=r"model\.variant is 'average'; choose one of hope, "):
        checkpoint.load(tmp_path / "checkpoint")


def test_the_page_shows_the_example() -> None:
    code = EXAMPLE.read_text()
    shown = re.findall(r"```python\n(.*?)```", READING.read_text(), re.DOTALL)
    start, end = code.index("class AverageState"), code.index("\n\ndef main")
    assert code[start:end].strip() in [block.strip() for block in shown]
