"""Llama-family folders of transformers as checkpoints of ours: the same logits, the same text, the same bits back."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

if any(importlib.util.find_spec(name) is None for name in ("transformers", "tokenizers")):
    pytest.skip("transformers is not installed: pip install 'hope-model[hf]'", allow_module_level=True)

import tokenizers
import transformers

from hope_model import ModelConfig, checkpoint, llama
from hope_model.cli import main
from hope_model.llama.settings import from_ours, to_ours

SMALL: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 72,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 64}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama_one_kv_head_wide_heads": ("Llama", {"num_key_value_heads": 1, "head_dim": 12}),
    "llama_all_heads_tied": ("Llama", {"num_key_value_heads": 4, "tie_word_embeddings": True}),
    "llama_biases": ("Llama", {"attention_bias": True, "mlp_bias": True, "rms_norm_eps": 1e-3}),
    "llama_linear": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0}},
    ),
    "llama_3": (
        "Llama",
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, **LLAMA3}},
    ),
    "llama_yarn": ("Llama", {"rope_parameters": YARN}),
    "llama_yarn_by_mscale": (
        "Llama",
        {
            "rope_parameters": YARN
            | {"mscale": 0.7, "mscale_all_dim": 0.3, "truncate": False, "beta_fast": 16}
        },
    ),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral_window": ("Mistral", {"sliding_window": 5}),
    "qwen2": ("Qwen2", {}),
    "qwen2_window": ("Qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 0}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen3_biases": ("Qwen3", {"head_dim": 8, "attention_bias": True, "tie_word_embeddings": True}),
}
TOKENS = torch.randint(97, (2, 23), generator=torch.Generator().manual_seed(1))


def save_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer of at most 97 tokens would not hold all bytes; letters do here."""
    inner = tokenizers.Tokenizer(tokenizers.models.BPE({"<end>": 0, "a": 1, "b": 2, "ab": 3}, [("a", "b")]))
    special = {"eos_token": "<end>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **special).save_pretrained(folder)


def build(kind: str, changes: dict[str, Any]) -> Any:
    """A model with random weights, norms and biases too, so that none is a one or a zero."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SMALL | changes)
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    for name, parameter in model.named_parameters():
        if name.endswith(("bias", "norm.weight")):
            parameter.data += torch.randn_like(parameter) * 0.3
    return model.eval()


@pytest.fixture(scope="module", params=MODELS)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp(request.param)
    build(*MODELS[request.param]).save_pretrained(folder, max_shard_size="30KB")
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def converted(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama.convert(source, tmp_path_factory.mktemp("converted") / "ours")


@pytest.fixture
def all_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms and rotary angles of transformers are computed in float32 whatever the model is in; here in float64."""
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch, "float", torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def test_logits_are_those_of_transformers(source: Path, converted: Path) -> None:
    theirs = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    ours, meta = checkpoint.load(converted)
    with torch.no_grad():
        logits, _ = ours(TOKENS)
        torch.testing.assert_close(logits, theirs(TOKENS).logits, rtol=0, atol=1e-4)
    assert logits.std() > 0.5
    assert meta["length"] == 256


def test_logits_in_float64(source: Path, converted: Path, request: pytest.FixtureRequest) -> None:
    with torch.no_grad():
        ours, _ = checkpoint.load(converted)[0].double()(TOKENS)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float64)
        request.getfixturevalue("all_in_float64")
        theirs.model.rotary_emb = type(theirs.model.rotary_emb)(theirs.config)
        torch.testing.assert_close(ours, theirs(TOKENS).logits, rtol=0, atol=1e-9)


def test_generation_is_token_by_token_theirs(source: Path, converted: Path) -> None:
    theirs = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    options = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    expected = theirs.generate(TOKENS, **options)
    model, _ = checkpoint.load(converted)
    with torch.no_grad():
        logits, state = model(TOKENS)
        made = [TOKENS, logits[:, -1:].argmax(-1)]
        while len(made) <= 24:
            logits, state = model(made[-1], state)
            made.append(logits[:, -1:].argmax(-1))
    assert torch.equal(torch.cat(made, 1), expected)


def test_generate_writes_their_text(
    source: Path, converted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command finds the tokenizer inside the checkpoint."""
    theirs = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    prompt = torch.tensor([[start, *tokenizer.encode("the green hill", add_special_tokens=False)]])
    options = {"do_sample": False, "pad_token_id": 0, "eos_token_id": tokenizer.eos_token_id}
    # Ids that the tokenizer lacks are never written.
    options["suppress_tokens"] = list(range(len(tokenizer), theirs.config.vocab_size)) or None
    ids = theirs.generate(prompt, max_new_tokens=12, **options)[0, prompt.shape[1] :]
    expected = tokenizer.decode(ids, skip_special_tokens=True)
    assert main(["generate", str(converted), "the green hill", "--tokens", "12", "--temperature", "0"]) == 0
    printable = "".join(c for c in expected if c.isprintable() or c in "\n\t")
    assert capsys.readouterr().out == f"the green hill{printable}\n"


def test_the_way_back_is_bitwise(source: Path, converted: Path, tmp_path: Path) -> None:
    assert main(["export", str(converted), str(tmp_path / "back")]) == 0
    before: dict[str, torch.Tensor] = {}
    for path in source.glob("*.safetensors"):
        before |= load_file(path)
    after = load_file(tmp_path / "back" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    for name in ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"):
        assert json.loads((source / name).read_text()) == json.loads((tmp_path / "back" / name).read_text())


def test_a_configuration_of_our_own_words_means_the_same(source: Path, converted: Path) -> None:
    config = ModelConfig.from_dict(json.loads((converted / "config.json").read_text()))
    values = from_ours(
        config, config.hidden, 256, json.loads((source / "config.json").read_text())["model_type"]
    )
    assert to_ours(values) == config
    again = transformers.AutoConfig.for_model(**values)
    model = transformers.AutoModelForCausalLM.from_config(again).eval()
    weights = {k: v for path in source.glob("*.safetensors") for k, v in load_file(path).items()}
    model.load_state_dict(weights, strict=not config.tied_embedding)
    model.tie_weights()
    with torch.no_grad():
        ours, _ = checkpoint.load(converted)[0](TOKENS)
        torch.testing.assert_close(model(TOKENS).logits, ours, rtol=0, atol=1e-4)
