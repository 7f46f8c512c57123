"""Our harness against lm-eval's own `hf` model on the same weights and rows; batches and prefixes change nothing."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch

from hope_eval import results as schema
from hope_eval.cli import main
from hope_eval.scoring.load import load

if any(importlib.util.find_spec(name) is None for name in ("lm_eval", "transformers")):
    pytest.skip("lm-eval is not installed: pip install 'hope-eval[lm-eval]'", allow_module_level=True)

sys.path.insert(0, str(Path(__file__).parent))
import hf_models
from hf_models import assert_same, hf_lm, load_tasks, samples

from hope_eval.lm_eval_bridge import mirror as mirrors
from hope_eval.lm_eval_bridge import run as suite
from hope_eval.lm_eval_bridge.model import HopeLM
from hope_model import hf

TASKS = ("piqa", "arc_easy", "boolq", "hellaswag", "lambada_openai")
MADE = (*TASKS, "winogrande", "wikitext")


@pytest.fixture(scope="session")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hf_models.write_mirror(tmp_path_factory.mktemp("mirror"))


@pytest.fixture(scope="session")
def hf_folder(mirror: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hf_models.save_model(tmp_path_factory.mktemp("llama"), "llama", hf_models.texts_of(mirror))


@pytest.fixture(scope="session")
def gpt2_folder(mirror: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hf_models.save_model(tmp_path_factory.mktemp("gpt2"), "gpt2", hf_models.texts_of(mirror))


@pytest.fixture(scope="session")
def one_by_one(checkpoint_folder: Path, mirror: Path) -> dict[str, Any]:
    lm = HopeLM(checkpoint_folder, corpora_tokenizer(checkpoint_folder), batch_size=1, share=False)
    return samples(lm, load_tasks(mirror, MADE, 3))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_equal_to_lm_evals_hf_model(kind: str, hf_folder: Path, gpt2_folder: Path, mirror: Path) -> None:
    folder = hf_folder if kind == "llama" else gpt2_folder
    loaded = load_tasks(mirror, MADE)
    theirs = samples(hf_lm(folder), loaded)
    ours = samples(HopeLM(folder), loaded)
    # Rows must be told apart, or equality would say nothing.
    spread = [np.ptp([r[0] for r in row["filtered_resps"]]) for row in theirs["piqa"]]
    assert min(spread) > 0.1
    assert_same(ours, theirs)


def test_an_exported_folder_is_scored_as_its_checkpoint(
    checkpoint_folder: Path, mirror: Path, tmp_path: Path, one_by_one: dict[str, Any]
) -> None:
    """Through transformers and back: same texts, same beginnings, same memories, same description."""
    tokenizer = corpora_tokenizer(checkpoint_folder)
    folder = hf.export(checkpoint_folder, tokenizer, tmp_path / "exported")
    lm, source = HopeLM(folder, batch_size=1, share=False), load(checkpoint_folder, tokenizer)
    # Weights that lie elsewhere in memory may round a product differently in its last bit.
    assert_same(samples(lm, load_tasks(mirror, MADE, 3)), one_by_one, 1e-5)
    assert lm.max_length == source.length
    assert lm.loaded.model.memories == source.model.memories == ("titans", "cms.0", "cms.1")
    made, former = vars(lm.loaded.about), vars(source.about)
    # The weights have other names in the file, and the configuration is written for transformers.
    assert {key for key in made if made[key] != former[key]} <= {"sha256"}
    assert (made["run"], made["seed"], made["tokens"]) == ("tiny", 7, 96)


def test_missing_weights_are_not_drawn_at_random(
    hf_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(hf_folder, tmp_path / "llama")
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert main(["zeroshot", "--checkpoint", str(folder), "--json", str(tmp_path / "out.json")]) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert "model.layers.1.mlp.up_proj.weight is missing (1 in all); save the model again" in line


@pytest.mark.parametrize(("batch", "share"), [(1, True), (16, True), (16, False)])
def test_neither_batch_nor_prefix_changes_a_number(
    batch: int, share: bool, checkpoint_folder: Path, mirror: Path, one_by_one: dict[str, Any]
) -> None:
    """HOPE carries a recurrent state, which padding would spoil."""
    lm = HopeLM(checkpoint_folder, corpora_tokenizer(checkpoint_folder), batch_size=batch, share=share)
    assert_same(samples(lm, load_tasks(mirror, MADE, 3)), one_by_one, 2e-4)


def corpora_tokenizer(checkpoint: Path) -> Path:
    return checkpoint.parents[2] / "tokenizer"


def test_prefixes_run_once(hf_folder: Path, mirror: Path) -> None:
    shared, whole = HopeLM(hf_folder), HopeLM(hf_folder, share=False)
    for lm in (shared, whole):
        suite.evaluate(lm, ["arc_easy"], mirror)
    assert shared.scorer.tokens < 0.5 * whole.scorer.tokens


def test_generation_equals_transformers(hf_folder: Path) -> None:
    import torch
    from lm_eval.api.instance import Instance

    lm = HopeLM(hf_folder, batch_size=3)
    prompts = ["the cat sat on", "rain fell over green hills and people went", "old books"]
    requests = [
        Instance("generate_until", {}, (text, {"until": [], "max_gen_toks": 8}), n)
        for n, text in enumerate(prompts)
    ]
    made = lm.generate_until(requests)
    model, tokenizer = lm.loaded.model.model, lm.loaded.tokenizer.inner  # type: ignore[union-attr]
    for text, written in zip(prompts, made, strict=True):
        row = torch.tensor([tokenizer.encode(text)])
        expected = model.generate(row, max_new_tokens=8, do_sample=False, pad_token_id=0)[0, row.shape[1] :]
        assert written == tokenizer.decode(expected, skip_special_tokens=True)
    assert len(set(made)) == 3
    stop = made[1][2:4]
    cut = lm.generate_until(
        [Instance("generate_until", {}, (prompts[1], {"until": [stop], "max_gen_toks": 8}), 0)]
    )
    assert cut == [made[1][: made[1].index(stop)]]


def test_recurrent_generation_is_padding_safe(checkpoint_folder: Path) -> None:
    from lm_eval.api.instance import Instance

    def made(batch: int) -> list[str]:
        lm = HopeLM(checkpoint_folder, corpora_tokenizer(checkpoint_folder), batch_size=batch)
        options = {"until": [], "max_gen_toks": 6}
        return lm.generate_until(
            [Instance("generate_until", {}, ("lumen " * n, options), n) for n in (1, 4, 9, 2)]
        )

    assert made(1) == made(4)
    assert len(set(made(4))) > 1


def test_zeroshot_writes_a_result_with_chance_and_error(
    hf_folder: Path, mirror: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "zero.json"
    flags = ["zeroshot", "--checkpoint", str(hf_folder), "--mirror", str(mirror), "--json", str(out)]
    assert main([*flags, "--tasks", "piqa,lambada_openai"]) == 0
    assert main([*flags, "--tasks", "wikitext", "--add"]) == 0
    result = schema.load(out)
    assert [task.task for task in result.tasks] == ["piqa", "lambada_openai", "wikitext"]
    acc = result.tasks[0].find("acc")
    assert acc is not None
    hits = np.array(result.tasks[0].items.scores["acc"])
    assert (acc.value, acc.n, acc.chance) == (hits.mean(), 12, 0.5)
    assert acc.stderr == pytest.approx(hits.std(ddof=1) / 12**0.5)
    nats = result.tasks[1].items.scores["target_nats"]
    perplexity = result.tasks[1].find("perplexity")
    assert perplexity is not None
    assert perplexity.value == pytest.approx(np.exp(np.mean(nats)), rel=1e-5)
    assert result.tasks[2].find("word_perplexity") is not None
    assert result.tasks[0].tokens > 0
    assert "piqa: Accuracy: " in capsys.readouterr().out


def test_the_command_lm_eval_knows_hope(tmp_path: Path) -> None:
    """Python started as `lm_eval` finds the model, and any other program is left alone.

    The command itself reads thousands of task files first: half a minute for the same answer.
    """
    asked = "import sys; print('hope_eval.lm_eval_bridge.plugin' in sys.modules)"
    for name, known in (("lm_eval", True), ("other", False)):
        script = tmp_path / name
        script.write_text(
            asked + ("; from lm_eval.api.registry import get_model; print(get_model('hope'))" * known)
        )
        done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[0] == str(known)
        assert ("hope_eval.lm_eval_bridge.model.HopeLM" in done.stdout) == known


def test_model_arguments_are_those_of_the_command(checkpoint_folder: Path) -> None:
    told = f"pretrained={checkpoint_folder},tokenizer={corpora_tokenizer(checkpoint_folder)},max_length=32"
    options = {"batch_size": "auto", "max_batch_size": None, "device": "cuda:0"}
    lm = HopeLM.create_from_arg_string(told, options)
    assert (lm.max_length, lm.loaded.about.run) == (32, "tiny")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("file", "piqa/valid.jsonl: no such file, nor .gz"),
        ("field", "piqa/valid.jsonl, line 1: no field 'goal'"),
        ("empty", "piqa/valid.jsonl: holds no rows"),
        ("labels", "valid-labels.lst: 11 labels for 12 rows"),
        ("json", "piqa/valid.jsonl, line 2: not JSON"),
        ("task", "unknown task 'mmlu'; with --mirror choose among piqa"),
        ("pickle", "no safetensors here; pickled weights are not read"),
        ("other", "holds results of other weights"),
    ],
)
def test_unfit_input_is_one_line_and_leaves_nothing(
    hf_folder: Path,
    mirror: Path,
    edited: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    fault: str,
    message: str,
) -> None:
    copy, model, out = tmp_path / "mirror", hf_folder, tmp_path / "out" / "x.json"
    shutil.copytree(mirror, copy)
    piqa, extra = copy / "piqa" / "valid.jsonl", ["--tasks", "piqa"]
    lines = piqa.read_text().splitlines()
    if fault == "file":
        piqa.unlink()
    elif fault == "field":
        piqa.write_text("\n".join(line.replace("goal", "aim") for line in lines))
    elif fault == "empty":
        piqa.write_text("")
    elif fault == "labels":
        (copy / "piqa" / "valid-labels.lst").write_text("0\n" * 11)
    elif fault == "json":
        piqa.write_text(lines[0] + "\n{torn\n")
    elif fault == "task":
        extra = ["--tasks", "mmlu"]
    elif fault == "pickle":
        model = tmp_path / "model"
        shutil.copytree(hf_folder, model)
        (model / "model.safetensors").rename(model / "pytorch_model.bin")
    else:
        out = tmp_path / "x.json"
        assert main(command(hf_folder, copy, out, extra)) == 0
        edited(out, lambda record: record["checkpoint"].update(sha256="0" * 64))
        extra.append("--add")
        capsys.readouterr()
    before = out.read_bytes() if out.exists() else None
    assert main(command(model, copy, out, extra)) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.startswith("error: ")
    assert (out.read_bytes() if out.exists() else None) == before


def command(model: Path, mirror: Path, out: Path, extra: list[str]) -> list[str]:
    return ["zeroshot", "--checkpoint", str(model), "--mirror", str(mirror), "--json", str(out), *extra]


def test_a_wrong_tokenizer_is_refused(checkpoint_folder: Path, tmp_path: Path) -> None:
    from hope_data.errors import InputError

    copy = tmp_path / "checkpoint"
    shutil.copytree(checkpoint_folder, copy)
    meta = json.loads((copy / "meta.json").read_text())
    del meta["sha256"]["meta.json"]
    (copy / "meta.json").write_text(json.dumps({**meta, "tokenizer_sha256": "0" * 64}))
    with pytest.raises(InputError, match="its tokenizer is 000000000000"):
        load(copy, corpora_tokenizer(checkpoint_folder))
    with pytest.raises(InputError, match=r"is not in .*tokenizer"):
        load(copy)


@pytest.mark.parametrize(("second", "expected"), [(-2.0, 1), (-0.5, 0)])
def test_the_same_answer_to_every_row_is_noted(second: float, expected: int) -> None:
    """One row of three answers, where the second is likeliest, and one where it is so or not."""
    rows = [
        {"doc": {}, "acc": 0.0, "arguments": [("q", "a"), ("q", "b"), ("q", "c")], "filtered_resps": scored}
        for scored in (
            [(-3.0, False), (-1.0, True), (-2.0, False)],
            [(second, False), (-1.0, True), (-9.0, False)],
        )
    ]
    notes = suite._notes("piqa", rows)
    assert len(notes) == expected
    assert all("every row got answer 2 of 3" in note for note in notes)


def test_articles_of_wikitext_come_back_as_they_were() -> None:
    rows = [
        "",
        " = One = \n",
        "",
        " text . \n",
        " more . \n",
        "",
        " = = Part = = \n",
        "",
        " end . \n",
        "",
        " = Two = \n",
    ]
    raw = "".join(row if row else " \n" for row in rows)
    assert "".join(mirrors.pages("\n\n".join(rows))) == raw.removeprefix(" \n")
    assert [page.split("\n")[0] for page in mirrors.pages("\n\n".join(rows))] == [" = One = ", " = Two = "]


def test_hellaswag_contexts_are_split_before_the_unfinished_sentence(tmp_path: Path) -> None:
    (tmp_path / "hellaswag").mkdir()
    texts, rest = (
        ("Roof work: A man sits. he", "Home: Do this. Then that."),
        {"endings": list("abcd"), "label": 0},
    )
    lines = [json.dumps({"ctx": text, **rest}) for text in texts]
    (tmp_path / "hellaswag" / "hellaswag_val.jsonl").write_text("\n".join(lines))
    first, second = mirrors.rows(tmp_path, "hellaswag")
    assert (first["activity_label"], first["ctx_a"], first["ctx_b"]) == ("Roof work", "A man sits.", "he")
    assert (second["ctx_a"], second["ctx_b"]) == ("Do this. Then that.", "")
