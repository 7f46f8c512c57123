"""A converted Llama through all of hope-eval: as lm-eval scores its source, as transformers scores it, and adapted."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

if any(importlib.util.find_spec(name) is None for name in ("lm_eval", "transformers", "tokenizers")):
    pytest.skip("lm-eval is not installed: pip install 'hope-eval[lm-eval]'", allow_module_level=True)

sys.path.insert(0, str(Path(__file__).parent))
import hf_models
from hf_models import assert_same, hf_lm, load_tasks, samples

from hope_data.cli import main as hope_data
from hope_data.errors import InputError
from hope_data.tokenizer import Tokenizer
from hope_eval import results
from hope_eval.cli import main
from hope_eval.lm_eval_bridge.model import HopeLM
from hope_eval.scoring.load import find_tokenizer, load
from hope_eval.scoring.scorer import Scorer
from hope_model import llama

MADE = ("piqa", "hellaswag", "lambada_openai")
ROWS = Path(__file__).parents[4] / "shared" / "data" / "eval"


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hf_models.write_mirror(tmp_path_factory.mktemp("mirror"), 4)


@pytest.fixture(scope="module")
def source(mirror: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hf_models.save_model(tmp_path_factory.mktemp("llama"), "llama", hf_models.texts_of(mirror))


@pytest.fixture(scope="module")
def converted(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama.convert(source, tmp_path_factory.mktemp("converted") / "llama")


@pytest.fixture(scope="module")
def shards(corpora: Path, converted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The text of the corpora in the converted model's own tokens."""
    folder = tmp_path_factory.mktemp("shards")
    for name in ("left", "right"):
        clean, out = str(corpora / "clean" / name), str(folder / name)
        assert hope_data(["shard", clean, "--tokenizer", str(converted / "tokenizer"), "--out", out]) == 0
    return folder


def test_equal_to_lm_evals_hf_model_on_the_source(source: Path, converted: Path, mirror: Path) -> None:
    loaded = load_tasks(mirror, MADE)
    theirs = samples(hf_lm(source), loaded)
    spread = [np.ptp([r[0] for r in row["filtered_resps"]]) for row in theirs["piqa"]]
    assert min(spread) > 0.1
    assert_same(samples(HopeLM(converted), loaded), theirs)


@pytest.mark.long
def test_equal_on_real_rows(tmp_path: Path) -> None:
    if not ROWS.is_dir():
        pytest.skip(f"no rows of the original data sets in {ROWS}")
    from hope_eval.lm_eval_bridge import mirror

    choices = tuple(task for task in mirror.FILES if task != "wikitext")
    texts = [str(row) for task in choices for row in mirror.rows(ROWS, task)[:100]]
    source = hf_models.save_model(tmp_path / "source", "llama", texts, vocab=2000, init=0.08, length=2048)
    lms = HopeLM(llama.convert(source, tmp_path / "ours"), dtype="float64"), hf_lm(source, 8, "float64")
    # An article of WikiText has thousands of tokens, whose rounding errors add up.
    for tasks, limit, tolerance in ((choices, 40, 1e-5), (("wikitext",), 2, 1e-4)):
        loaded = load_tasks(ROWS, tasks, limit)
        ours, theirs = (samples(lm, loaded) for lm in lms)
        sys.stdout.write(f"largest deviation {assert_same(ours, theirs, tolerance)}\n")


def bits(path: Path, task: str = "perplexity") -> float:
    [measured] = [one for one in results.load(path).tasks if one.task == task]
    return next(m.value for m in measured.metrics if (m.name, m.group) == ("bits_per_byte", "all"))


def test_run_scores_source_and_checkpoint_alike_and_counts_their_bytes(
    source: Path, converted: Path, shards: Path, tmp_path: Path
) -> None:
    given = ["--shards", str(shards), "--tasks", "perplexity,choice", "--length", "48", "--limit", "3"]
    for name, folder in (("ours", converted), ("theirs", source)):
        out = str(tmp_path / f"{name}.json")
        assert main(["run", "--checkpoint", str(folder), *given, "--json", out]) == 0
    ours, theirs = bits(tmp_path / "ours.json"), bits(tmp_path / "theirs.json")
    assert ours == pytest.approx(theirs, abs=1e-5)
    loaded, tokenizer = load(converted), Tokenizer.load(converted / "tokenizer")
    [task] = [one for one in results.load(tmp_path / "ours.json").tasks if one.task == "perplexity"]
    assert loaded.tokenizer.data.sha256 == tokenizer.sha256
    assert sum(task.items.weight) > 0
    assert {one.task for one in results.load(tmp_path / "ours.json").tasks} >= {"perplexity", "choice"}


def test_tune_and_adapt(
    converted: Path, shards: Path, mirror: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, tuned = ["--checkpoint", str(converted)], tmp_path / "tuned.json"
    given = [*model, "--shards", str(shards), "--length", "48"]
    start = "unigram_cache:strength=0.1"
    assert main(["tune", "--adapt", start, *given, "--tokens", "200", "--json", str(tuned)]) == 0
    assert json.loads(tuned.read_text())["adapt"] == "unigram_cache"
    out = tmp_path / "zeroshot.json"
    zero = [
        "zeroshot",
        *model,
        "--mirror",
        str(mirror),
        "--tasks",
        "piqa",
        "--limit",
        "3",
        "--json",
        str(out),
    ]
    assert main([*zero, "--adapt", "writes:period=4"]) == 0
    found = results.load(out)
    assert [task.task for task in found.tasks] == ["piqa", "piqa+writes"]
    assert {row.mode for row in found.memorized} == {"writes"}
    assert found.tasks[1].settings["adapt_period"] == 4
    assert "piqa, adapted (writes) minus plain: acc" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["needle", "books", "babi", "continual"])
def test_every_evaluator_adapts(
    command: str, converted: Path, checkpoint_folder: Path, corpora: Path, tmp_path: Path
) -> None:
    text, out = tmp_path / "text.txt", tmp_path / "out.json"
    text.write_text("the green hill and the red stone go on and on\n" * 40)
    (tmp_path / "second.txt").write_text("a stone on a hill\n" * 90)
    story = "1 Mary went to the hall.\n2 John went to the park.\n3 Where is Mary?\thall\t1\n"
    (tmp_path / "qa1.txt").write_text(story * 3)
    own = ["--tokenizer", str(corpora / "tokenizer")]
    options = {
        "needle": ["--lengths", "400", "--depths", "0.5", "--repeats", "1"],
        "books": ["--text", str(text), "--max-tokens", "100"],
        "babi": ["--data", str(tmp_path / "qa1.txt"), "--limit", "2"],
        "continual": ["--text", str(text), str(tmp_path / "second.txt"), "--tokens", "60", *own],
    }[command]
    # Full attention has no bounded state to carry from domain to domain.
    folder = checkpoint_folder if command == "continual" else converted
    name, dials = ("off", "") if command == "continual" else ("writes", ":period=8")
    asked = [command, "--checkpoint", str(folder), *options, "--adapt", name + dials, "--json", str(out)]
    assert main(asked) == 0
    found = results.load(out)
    assert any(task.task.endswith(f"+{name}") for task in found.tasks)
    assert found.memorized


def test_a_checkpoint_without_its_tokenizer_names_the_option(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"name it with --tokenizer DIR \(lm_eval: tokenizer=DIR\)$"):
        find_tokenizer(tmp_path, "0" * 64)


def test_another_tokenizer_is_one_line(
    converted: Path, corpora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(converted / "tokenizer", tmp_path / "other")
    content = json.loads((other / "tokenizer.json").read_text())
    (other / "tokenizer.json").write_text(json.dumps(content))
    for folder in (other, corpora / "tokenizer"):
        options = ["--shards", str(corpora / "shards"), "--json", str(tmp_path / "out.json")]
        assert main(["run", "--checkpoint", str(converted), "--tokenizer", str(folder), *options]) == 2
        message = capsys.readouterr().err
        assert message.startswith(f"error: {converted}: its tokenizer is ")
        assert message.count("\n") == 1
    assert main(["run", "--checkpoint", str(converted), *options]) == 2
    assert "run `hope-data shard` with this tokenizer" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


def test_what_cannot_be_asked_is_refused_before_anything_is_scored(
    converted: Path,
    shards: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kind = type(load(converted, None, "cpu").tokenizer.data)
    encode = kind.encode
    monkeypatch.setattr(kind, "encode", lambda self, text: encode(self, "7" if text.isdigit() else text))
    monkeypatch.setattr(Scorer, "token_logp", lambda *_: pytest.fail("scored"))
    command = [
        "run",
        "--checkpoint",
        str(converted),
        "--shards",
        str(shards),
        "--json",
        str(tmp_path / "x.json"),
    ]
    command += ["--domains", "left,right", "--length", "64"]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert (
        "passkey: the tokenizer joins digits into one token; leave `passkey` out: --tasks perplexity,choice"
        in said
    )
