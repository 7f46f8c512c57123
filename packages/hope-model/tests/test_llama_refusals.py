"""What of a Llama-family folder cannot be converted is one line that names it, and nothing is written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from hope_model import InputError, ModelConfig, llama
from hope_model.cli import main
from hope_model.llama.settings import from_ours, to_ours

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 9,
    "hidden_size": 8,
    "intermediate_size": 6,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
SHAPES = {
    "model.embed_tokens.weight": (9, 8),
    "model.norm.weight": (8,),
    "lm_head.weight": (9, 8),
    "model.layers.0.input_layernorm.weight": (8,),
    "model.layers.0.post_attention_layernorm.weight": (8,),
    "model.layers.0.self_attn.q_proj.weight": (8, 8),
    "model.layers.0.self_attn.k_proj.weight": (4, 8),
    "model.layers.0.self_attn.v_proj.weight": (4, 8),
    "model.layers.0.self_attn.o_proj.weight": (8, 8),
    "model.layers.0.mlp.gate_proj.weight": (6, 8),
    "model.layers.0.mlp.up_proj.weight": (6, 8),
    "model.layers.0.mlp.down_proj.weight": (8, 6),
}
TOKENIZER = {
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}},
    "added_tokens": [{"id": 2, "content": "<end>"}],
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    save(folder, {})
    return folder


def save(folder: Path, changes: dict[str, torch.Tensor | None], name: str = "model.safetensors") -> None:
    draw = torch.Generator().manual_seed(0)
    tensors = {key: torch.randn(shape, generator=draw) for key, shape in SHAPES.items()} | changes
    save_file({key: x for key, x in tensors.items() if x is not None}, folder / name)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err.removeprefix("error: ").strip()


def test_it_converts_as_it_is(source: Path, tmp_path: Path) -> None:
    assert llama.convert(source, tmp_path / "out") == tmp_path / "out"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("config.json", "meta.json", "model.safetensors", "tokenizer"),
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2'; llama, mistral, qwen2, qwen3 can be converted"),
        ({"model_type": None}, "model_type is None; llama, mistral, qwen2, qwen3 can be converted"),
        (
            {"auto_map": {"AutoModelForCausalLM": "modeling.Mine"}},
            "auto_map: this model runs code of its own (trust_remote_code), which is never run here",
        ),
        (
            {"quantization_config": {"quant_method": "gptq"}},
            "quantization_config: the weights are quantised; convert the model they were made of",
        ),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; only silu can be represented"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers is '2'; it must be a whole number of at least 1"),
        ({"vocab_size": None}, "vocab_size is None; it must be a whole number of at least 1"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; only 1 can be represented"),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2}},
            "rope_type is 'dynamic'; default, linear, llama3, yarn can be represented",
        ),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope factor is None; it must be a number"),
        ({"rope_scaling": [2]}, "rope_parameters is [2]; all layers must rotate alike"),
        ({"num_key_value_heads": 3}, "model.attention.kv_heads 3 does not divide the 2 heads of queries"),
        ({"rms_norm_eps": -1}, "model.norm_eps is -1.0; it must be above 0 and at most 1"),
        (
            {
                "model_type": "qwen3",
                "layer_types": ["sliding_attention", "full_attention"],
                "use_sliding_window": True,
            },
            "layer_types (max_window_layers): full_attention, sliding_attention; all layers must attend alike",
        ),
        (
            {"model_type": "qwen2", "layer_types": ["linear_attention"]},
            "layer_types: 'linear_attention' cannot be represented",
        ),
    ],
)
def test_configurations(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], message: str
) -> None:
    (source / "config.json").write_text(json.dumps(CONFIG | changes))
    assert refusal(capsys, "convert", source, tmp_path / "out") == f"{source / 'config.json'}: {message}"
    assert not (tmp_path / "out").exists()


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def no_shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    shards = dict.fromkeys(SHAPES, "model-00001-of-00002.safetensors") | {
        "lm_head.weight": "model-00002-of-00002.safetensors"
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))


def large_tokenizer(folder: Path) -> None:
    added = [{"id": 11, "content": "<end>"}]
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER | {"added_tokens": added}))


def torn(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])


GATE = "model.layers.0.mlp.gate_proj.weight"
Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (
            pickled,
            "{0} holds pickled weights only (pytorch_model.bin), which can run code and are never read; "
            "save the model as safetensors",
        ),
        (
            no_shard,
            "{0}/model-00002-of-00002.safetensors is missing, and model.safetensors.index.json names it; "
            "download it again",
        ),
        (
            lambda folder: (folder / "model.safetensors.index.json").write_text(
                '{"weight_map": {"a": "../b"}}'
            ),
            "{0}/model.safetensors.index.json has no weight_map from tensors to files of this folder",
        ),
        (
            lambda folder: (folder / "model.safetensors").unlink(),
            "{0}/model.safetensors is missing; is {0} a model of transformers?",
        ),
        (
            lambda folder: save(folder, {GATE: None}),
            f"{{0}}: the tensor {GATE} is missing; download the folder again",
        ),
        (
            lambda folder: save(folder, {GATE: torch.ones(6, 8, dtype=torch.int8)}),
            f"{{0}}/model.safetensors: {GATE} is of type I8, not F32, F16, BF16; "
            "quantised weights cannot be converted, others after saving them as one of these",
        ),
        (
            lambda folder: save(folder, {GATE: torch.ones(5, 8)}),
            f"{{0}}/model.safetensors: {GATE} has shape [5, 8], config.json says [6, 8]",
        ),
        (
            lambda folder: save(folder, {Q + "_scale": torch.ones(8)}),
            f"{{0}}/model.safetensors: '{Q}_scale' has no place in this architecture",
        ),
        (
            lambda folder: save(folder, {Q: torch.ones(8, 8, dtype=torch.bfloat16)}),
            "blocks.0.mixer.qkv.weight: its parts are of torch.bfloat16, torch.float32, not of one type",
        ),
        (
            lambda folder: (folder / "tokenizer.json").unlink(),
            "{0}/tokenizer.json is missing; save the tokenizer with transformers as a fast one, or name its folder "
            "with --tokenizer",
        ),
        (
            large_tokenizer,
            "{0}/tokenizer.json has 12 tokens, more than the vocab_size 9 of the model; "
            "name the tokenizer it was trained with",
        ),
        (
            lambda folder: (folder / "tokenizer_config.json").write_text(
                '{"auto_map": {"AutoTokenizer": "a.B"}}'
            ),
            "{0}/tokenizer_config.json: auto_map: this tokenizer runs code of its own, which is never run here",
        ),
        (
            lambda folder: (folder / "tokenizer.json").write_text('{"seal": "ours"}'),
            "{0}/tokenizer.json is no tokenizer of Hugging Face: it has no model with a vocab",
        ),
        (
            lambda folder: (folder / "config.json").unlink(),
            "{0}/config.json: No such file or directory; is it a model of transformers?",
        ),
        (
            lambda folder: (folder / "config.json").write_text("[1]"),
            "{0}/config.json must hold a JSON object",
        ),
    ],
)
def test_folders(
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    break_it: Callable[[Path], None],
    message: str,
) -> None:
    break_it(source)
    assert refusal(capsys, "convert", source, tmp_path / "out") == message.format(source)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_torn_file_and_a_folder_that_exists(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    assert (
        refusal(capsys, "convert", source, tmp_path / "out")
        == f"{tmp_path / 'out'} exists; name a new folder"
    )
    torn(source)
    expected = f"{source / 'model.safetensors'} cannot be read as safetensors: "
    assert refusal(capsys, "convert", source, tmp_path / "new").startswith(expected)


def test_a_head_that_is_not_the_embedding_it_is_tied_to(source: Path, tmp_path: Path) -> None:
    (source / "config.json").write_text(json.dumps(CONFIG | {"tie_word_embeddings": True}))
    with pytest.raises(InputError, match=r"'lm_head.weight' has no place in this architecture"):
        llama.convert(source, tmp_path / "out")
    save(source, {"model.embed_tokens.weight": torch.ones(9, 8), "lm_head.weight": torch.ones(9, 8)})
    llama.convert(source, tmp_path / "out")


def test_exports_need_a_whole_checkpoint_and_its_own_tokenizer(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, other = llama.convert(source, tmp_path / "ours"), tmp_path / "other"
    shutil.copytree(ours / "tokenizer", other)
    (other / "tokenizer.json").write_text(json.dumps(TOKENIZER) + "\n")
    message = refusal(capsys, "export", ours, tmp_path / "back", "--tokenizer", other)
    assert message.startswith(f"{other / 'tokenizer.json'}: not the tokenizer of {ours} (")
    (ours / "tokenizer" / "tokenizer.json").write_text(json.dumps(TOKENIZER) + "\n")
    message = refusal(capsys, "export", ours, tmp_path / "back")
    assert message == (
        f"{ours / 'tokenizer' / 'tokenizer.json'} does not match the hash in meta.json: torn or changed after saving"
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"variant": "hope_attention"},
            "model.variant hope_attention is no architecture of the Llama family",
        ),
        (
            {"variant": "transformer", "attention": {"qk_norm": True, "bias": "qkv"}},
            "no architecture among llama, mistral, qwen2, qwen3 has model.attention with bias qkv, qk_norm True, "
            "window 0 and mlp_bias False",
        ),
    ],
)
def test_what_no_architecture_of_theirs_computes(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        from_ours(ModelConfig.from_dict(values), 64, 512)
    assert str(error.value) == message


def test_the_first_architecture_that_fits_is_taken() -> None:
    for attention, family in (
        ({}, "llama"),
        ({"window": 7}, "mistral"),
        ({"bias": "qkv"}, "qwen2"),
        ({"qk_norm": True, "window": 7}, "qwen3"),
    ):
        config = ModelConfig.from_dict({"variant": "transformer", "attention": attention})
        values = from_ours(config, 64, 512)
        assert values["model_type"] == family
        assert to_ours(values).attention.window == config.attention.window


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors",
        "model.safetensors.index.json",
    ],
)
def test_a_pipe_in_the_place_of_a_file_is_one_line(
    name: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (source / name).unlink(missing_ok=True)
    os.mkfifo(source / name)
    assert main(["convert", str(source), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert name in error
    assert not (tmp_path / "out").exists()
