"""Loading: vocabularies larger than their tokenizer, half precision, damaged folders of transformers."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

if any(importlib.util.find_spec(name) is None for name in ("lm_eval", "transformers")):
    pytest.skip("lm-eval is not installed: pip install 'hope-eval[lm-eval]'", allow_module_level=True)

from lm_eval.api.instance import Instance

from hope_data.errors import InputError
from hope_data.tokenizer import Tokenizer
from hope_eval.cli import main
from hope_eval.lm_eval_bridge import generation
from hope_eval.lm_eval_bridge import run as suite
from hope_eval.lm_eval_bridge.model import HopeLM
from hope_eval.scoring.load import load
from hope_model import LanguageModel, ModelConfig, checkpoint, hf

sys.path.insert(0, str(Path(__file__).parent))
import hf_models

PAIRS = [("lumen tira", " oru"), ("a", "b"), ("", "tira oru lumen " * 6)]


def ask(lm: Any) -> list[tuple[float, bool]]:
    requests = [Instance("loglikelihood", {}, pair, n) for n, pair in enumerate(PAIRS)]
    answers: list[tuple[float, bool]] = lm.loglikelihood(requests, disable_tqdm=True)
    return answers


def save(folder: Path, tokenizer: Path, vocab_size: int, variant: str = "hope") -> Path:
    torch.manual_seed(0)
    values = {"variant": variant, "vocab_size": vocab_size, "dim": 32, "layers": 2, "head_dim": 16}
    config = ModelConfig.from_dict({**values, "init_std": 0.3, "cms": {"smallest": 16, "levels": 2}})
    sha256 = Tokenizer.load(tokenizer).sha256
    meta = {"tokenizer_sha256": sha256, "length": 128, "corpora": ["left", "right"], "run": "padded"}
    checkpoint.save(folder, LanguageModel(config), meta)
    return folder


@pytest.fixture(scope="module")
def padded(corpora: Path) -> Path:
    """A checkpoint with 64 ids more than its tokenizer's 320."""
    return save(corpora / "runs" / "padded" / "checkpoint", corpora / "tokenizer", 384)


def test_ids_that_the_tokenizer_lacks_have_no_probability(
    padded: Path, corpora: Path, tmp_path: Path
) -> None:
    tokenizer = Tokenizer.load(corpora / "tokenizer")
    lm, (model, _) = HopeLM(padded, tokenizer=corpora / "tokenizer"), checkpoint.load(padded)
    answers = ask(lm)
    for (context, continuation), (logp, _) in zip(PAIRS, answers, strict=True):
        before = [tokenizer.eos_id, *tokenizer.encode(context)]
        ids = torch.tensor([before + tokenizer.encode(context + continuation)[len(before) - 1 :]])
        with torch.no_grad():
            logp_TV = model(ids)[0][0, :, :320].log_softmax(-1)
        wanted = logp_TV[range(len(before) - 1, ids.shape[1] - 1), ids[0, len(before) :]]
        assert logp == pytest.approx(float(wanted.sum()), abs=1e-4)
    folder = hf.export(padded, corpora / "tokenizer", tmp_path / "hf")
    np.testing.assert_allclose(ask(HopeLM(folder)), answers, atol=1e-4)
    theirs = hf_models.hf_lm(folder)  # lm-eval's own model sees them as impossible, too
    request = [Instance("loglikelihood", {}, PAIRS[2], 0)]
    assert theirs.loglikelihood(request, disable_tqdm=True)[0] == pytest.approx(answers[2], abs=1e-4)


@pytest.fixture(scope="module")
def both(corpora: Path) -> tuple[Tokenizer, Any]:
    """The tokenizer of hope-data and the exported one."""
    folder = corpora / "tokenizer"
    return Tokenizer.load(folder), hf.HopeTokenizer(str(folder / "tokenizer.model"))


@settings(max_examples=300, deadline=None)
@given(
    text=st.text(
        st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(" \n\u2581\u2585\0\rae"))
    )
)
def test_the_exported_tokenizer_is_the_same_and_lossless(both: tuple[Tokenizer, Any], text: str) -> None:
    ours, theirs = both
    ids = theirs.encode(text)
    assert ids == ours.encode(text)
    assert theirs.decode(ids) == text
    assert theirs.decode(ids, skip_special_tokens=True) == text


def test_padded_vocabularies_are_evaluated(padded: Path, corpora: Path, tmp_path: Path) -> None:
    flags = ["--checkpoint", padded, "--shards", corpora / "shards", "--tokenizer", corpora / "tokenizer"]
    flags += ["--json", tmp_path / "out.json", "--limit", "2", "--tasks", "perplexity,choice"]
    assert main(["run", *map(str, flags)]) == 0


def test_ids_that_the_tokenizer_lacks_are_never_generated(
    padded: Path, corpora: Path, tmp_path: Path
) -> None:
    """Ours and a Llama, with extra rows that would win every time."""
    model, meta = checkpoint.load(padded)
    with torch.no_grad():
        model.embed.weight[320:] = model.norm.weight * 50
    checkpoint.save(tmp_path / "ours", model, {key: meta[key] for key in meta if key != "sha256"})
    llama = hf_models.save_model(tmp_path / "llama", "llama", ["the cat sat on"] * 50, vocab=300)
    import transformers

    theirs = transformers.AutoModelForCausalLM.from_pretrained(llama)
    size = theirs.config.vocab_size
    theirs.resize_token_embeddings(size + 64)
    with torch.no_grad():
        theirs.lm_head.weight[size:] = theirs.model.norm.weight * 50
    theirs.save_pretrained(llama)
    for lm in (HopeLM(tmp_path / "ours", tokenizer=corpora / "tokenizer"), HopeLM(llama)):
        prompts = [np.array(lm.tok_encode("a")), np.array(lm.tok_encode("a b"))]
        size = lm.loaded.tokenizer.vocab_size
        draw = generation.parse({"temperature": 1.0}).sampler([0, 1])
        for made in (lm.scorer.generate(prompts, 9, lambda *_: False, how) for how in (None, draw)):
            assert [len(ids) for ids in made] == [9, 9]
            assert max(map(max, made)) < size
        fork = lm.scorer.prefill(prompts[0][None])
        assert lm.scorer.greedy(fork, 9).max() < size
        assert lm.scorer.likeliest(prompts[1][None]).max() < size


def test_a_tokenizer_larger_than_its_model_is_refused(corpora: Path, tmp_path: Path) -> None:
    folder = save(tmp_path / "small", corpora / "tokenizer", 256)
    with pytest.raises(InputError, match=r"\(256 tokens\), but .* \(320\)"):
        load(folder, corpora / "tokenizer")
    with pytest.raises(ValueError, match="has 320 tokens, more than the 256 of"):
        hf.export(folder, corpora / "tokenizer", tmp_path / "hf")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.model", "SHA256SUMS"])
@pytest.mark.parametrize("fault", ["flip", "cut", "gone"])
def test_a_changed_export_is_one_line(
    name: str, fault: str, padded: Path, corpora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = hf.export(padded, corpora / "tokenizer", tmp_path / "hf")
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 0x10
    (folder / name).write_bytes(data if fault == "flip" else data[:-9])
    if fault == "gone":
        (folder / name).unlink()
    line = refused(folder, tmp_path, capsys)
    assert name in line or "hf" in line


def test_what_transformers_saves_again_is_evaluated(padded: Path, corpora: Path, tmp_path: Path) -> None:
    """In several files, and without the tokenizer's, as a Trainer leaves it."""
    import transformers

    folder = hf.export(padded, corpora / "tokenizer", tmp_path / "hf")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    for name, size in (("whole", "5GB"), ("shards", "20KB")):
        model.save_pretrained(tmp_path / name, max_shard_size=size)
        shutil.copytree(corpora / "tokenizer", tmp_path / name / "tokenizer")
    whole, shards = (load(tmp_path / name) for name in ("whole", "shards"))
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert whole.about.sha256 == load(folder).about.sha256 != shards.about.sha256
    tokens = torch.arange(2, 40)[None]
    torch.testing.assert_close(shards.model(tokens, None)[0], whole.model(tokens, None)[0], rtol=0, atol=0)
    (tmp_path / "shards" / "tokenizer" / "tokenizer.model").unlink()
    with pytest.raises(InputError, match="its tokenizer"):
        load(tmp_path / "shards")


def refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    flags = ["zeroshot", "--checkpoint", str(folder), "--json", str(tmp_path / "out.json")]
    assert main([*flags, "--mirror", str(tmp_path), "--tasks", "piqa"]) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert "piqa" not in line  # it was the model that was refused, not the mirror
    return line


@pytest.mark.parametrize(
    "fault",
    ["torn", "header", "empty", "shape", "int32", "bool", "list", "type", "value", "nested", "tokenizer"],
)
def test_a_damaged_folder_of_transformers_is_one_line(
    fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = hf_models.save_model(tmp_path / "llama", "llama", ["the cat sat"] * 20, vocab=300)
    weights, config = folder / "model.safetensors", json.loads((folder / "config.json").read_text())
    if fault == "torn":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif fault == "header":
        weights.write_bytes(b"\xff" * 8 + weights.read_bytes()[8:])
    elif fault == "empty":
        weights.write_bytes(b"")
    elif fault in ("shape", "int32", "bool"):
        tensors = safetensors.torch.load_file(weights)
        norm = tensors["model.norm.weight"]
        tensors["model.norm.weight"] = torch.ones(7) if fault == "shape" else norm.to(getattr(torch, fault))
        safetensors.torch.save_file(tensors, weights, {"format": "pt"})
    elif fault == "tokenizer":
        (folder / "tokenizer.json").write_text('{"version": "1.0", "model": 3}')
    else:
        changed: Any = {
            "list": [],
            "type": {**config, "model_type": "nonesuch"},
            "value": {**config, "hidden_size": "wide"},
        }
        text = "[" * 100_000 if fault == "nested" else json.dumps(changed[fault])
        (folder / "config.json").write_text(text)
    refused(folder, tmp_path, capsys)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("variant", ["hope", "hope_paper", "titans_mac", "transformer", "llama"])
def test_half_precision_is_scored(variant: str, dtype: str, corpora: Path, tmp_path: Path) -> None:
    """Within the rounding of the weights of what float32 gives; both as an argument and as saved."""
    mirror = hf_models.write_mirror(tmp_path / "mirror", 4)
    if variant == "llama":
        folder = hf_models.save_model(tmp_path / "hf", "llama", hf_models.texts_of(mirror), init=0.05)
    else:
        source = save(tmp_path / "checkpoint", corpora / "tokenizer", 320, variant)
        folder = hf.export(source, corpora / "tokenizer", tmp_path / "hf")
    import transformers

    kind = getattr(torch, dtype)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=kind)
    saved = shutil.copytree(folder, tmp_path / "half")
    model.save_pretrained(saved)
    exact, given, loaded = HopeLM(folder), HopeLM(folder, dtype=dtype), HopeLM(saved)
    assert {p.dtype for p in loaded.loaded.model.model.parameters()} == {kind}
    np.testing.assert_allclose(ask(given), ask(loaded), atol=1e-4)
    for (a, _), (b, _) in zip(ask(given), ask(exact), strict=True):
        assert a == pytest.approx(b, rel=0.1, abs=0.1)
    [result] = suite.evaluate(loaded, ["arc_easy"], mirror)
    assert result.metrics[0].n == 4
