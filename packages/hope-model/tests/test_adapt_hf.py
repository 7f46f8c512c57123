"""A memory attached to causal models of transformers, each family built small with random weights."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hope_model import InputError, ModelConfig
from hope_model.adapt import Rule, attach_memory, load_memory, save_memory
from hope_model.teach import output_signal

if any(importlib.util.find_spec(name) is None for name in ("transformers", "sentencepiece")):
    pytest.skip("transformers is not installed: pip install 'hope-model[hf]'", allow_module_level=True)

import transformers as hf

from hope_model.hf import HopeConfig, HopeForCausalLM

B, T, V = 3, 29, 60
SIZES = {"vocab_size": V, "initializer_range": 0.3, "eos_token_id": 0, "bos_token_id": 0}
LLAMA = {
    **SIZES,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "max_position_embeddings": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
GEMMA = {**LLAMA, "head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8}
GPT2 = {**SIZES, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", LLAMA),
    "smollm": ("LlamaConfig", {**LLAMA, "tie_word_embeddings": True, "mlp_bias": True}),
    "mistral": ("MistralConfig", {**LLAMA, "sliding_window": 8}),
    "qwen2": ("Qwen2Config", LLAMA),
    "qwen3": ("Qwen3Config", {**LLAMA, "head_dim": 8}),
    "gemma": ("GemmaConfig", {**LLAMA, "head_dim": 8}),
    "gemma2": ("Gemma2Config", {**GEMMA, "final_logit_softcapping": 5.0}),
    "gemma3": ("Gemma3TextConfig", GEMMA),
    "gpt_neox": ("GPTNeoXConfig", LLAMA),
    "gpt2": ("GPT2Config", GPT2),
    "gptj": ("GPTJConfig", {**GPT2, "rotary_dim": 8}),
    "phi": ("PhiConfig", LLAMA),
    "phi3": ("Phi3Config", LLAMA),
    "cohere": ("CohereConfig", {**LLAMA, "logit_scale": 0.25}),
    "granite": ("GraniteConfig", {**LLAMA, "logits_scaling": 4.0}),
    "opt": (
        "OPTConfig",
        {
            "vocab_size": V,
            "hidden_size": 32,
            "ffn_dim": 48,
            "num_hidden_layers": 2,
            "init_std": 0.3,
            "num_attention_heads": 4,
            "max_position_embeddings": 128,
            "word_embed_proj_dim": 32,
        },
    ),
}
FLOAT32_ATTENTION = ("gemma2", "gptj")  # in transformers, whatever the model's precision


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    level = hf.logging.get_verbosity()
    hf.logging.set_verbosity_error()
    yield
    hf.logging.set_verbosity(level)


def build(family: str) -> Any:
    torch.manual_seed(0)
    if family == "hope":
        sizes = {"variant": "titans", "vocab_size": V, "dim": 16, "layers": 2, "head_dim": 8, "init_std": 0.2}
        return HopeForCausalLM(HopeConfig(ModelConfig.from_dict(sizes).to_dict())).double().eval()
    name, values = FAMILIES[family]
    return hf.AutoModelForCausalLM.from_config(getattr(hf, name)(**values)).double().eval()


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(1, V, (B, T), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", [*FAMILIES, "hope"])
@torch.no_grad()
def test_family(family: str, tokens: Tensor, tmp_path: Path) -> None:
    """Bitwise the model without writes; with them any split, rows alone, causal to the bit, generation our loop."""
    model, within = build(family), 1e-5 if family in FLOAT32_ATTENTION else 1e-9
    traces = [dict(vars(module)) for module in model.modules()]
    plain = model(tokens).logits
    with attach_memory(model, periods=[4, 8], scale=0) as memory:
        assert torch.equal(model(tokens).logits, plain)
        assert torch.equal(memory(tokens)[0], plain)
    with attach_memory(model, periods=[4, 8], scale=0.5, matrices="all") as memory:
        whole, _ = memory(tokens)
        assert (whole - plain).abs().max() > 0.1
        assert torch.equal(whole[:, :4], memory(tokens[:, :4])[0])
        assert torch.equal(model(tokens).logits, whole)
        assert torch.equal(model(tokens, logits_to_keep=1).logits, whole[:, -1:])
        for lengths in ([1, 5, 1, 9, 12, 1], [1] * T):
            state, outputs = None, []
            for piece in tokens.split(lengths, 1):
                logits, state = memory(piece, state)
                outputs.append(logits)
            assert (torch.cat(outputs, 1) - whole).abs().max() < within
        assert (memory(tokens[1:2])[0] - whole[1:2]).abs().max() < within
        changed = tokens.clone()
        changed[1, 14] = 1 + changed[1, 14] % (V - 1)
        other, _ = memory(changed)
        assert torch.equal(other[[0, 2]], whole[[0, 2]])
        assert torch.equal(other[1, :14], whole[1, :14])
        _, middle = memory(tokens[:, :13])
        save_memory(tmp_path / "stream", memory, middle)
        resumed, _ = memory(tokens[:, 13:], load_memory(tmp_path / "stream", memory))
        assert (resumed - whole[:, 13:]).abs().max() < within
        rows = torch.tensor([2, 2, 0])
        forked, _ = memory(tokens[rows, 13:], memory.select(middle, rows))
        assert (forked - whole[rows, 13:]).abs().max() < within
        expected, _ = greedy(memory, tokens[:, :11], 14)
        options = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        assert torch.equal(model.generate(tokens[:, :11], max_new_tokens=14, **options), expected)
        first = model.generate(tokens[:, :11], max_new_tokens=6, return_dict_in_generate=True, **options)
        rest = model.generate(
            first.sequences, past_key_values=first.past_key_values, max_new_tokens=8, **options
        )
        assert torch.equal(rest, expected)
    assert torch.equal(model(tokens).logits, plain)
    assert [dict(vars(module)) for module in model.modules()] == traces


def greedy(memory: Any, tokens: Tensor, steps: int) -> tuple[Tensor, Any]:
    state, new = None, tokens
    for _ in range(steps):
        logits, state = memory(new, state)
        new = logits[:, -1].argmax(-1)[:, None]
        tokens = torch.cat((tokens, new), 1)
    return tokens, state


@pytest.mark.parametrize("family", ["llama", "gemma2", "cohere", "granite", "gpt2"])
def test_teach_signal_is_the_gradient_at_the_heads_input(family: str, tokens: Tensor) -> None:
    model = build(family)
    given: list[Tensor] = []

    def leaf(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        given.append(inputs[0].detach().requires_grad_())
        return (given[-1],)

    hook = model.get_output_embeddings().register_forward_pre_hook(leaf)
    logits = model(tokens).logits
    hook.remove()
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum")
    (right,) = torch.autograd.grad(loss, given[0])
    memory = attach_memory(model)
    with torch.no_grad():
        memory(tokens[:, :1])
        host = memory.host
        signal = output_signal(logits[:, :-1], tokens[:, 1:], host.head, host.slope(logits[:, :-1]))
    assert (signal - right[:, :-1]).abs().max() < 1e-7


@torch.no_grad()
def test_beams_carry_their_own_memories(tokens: Tensor) -> None:
    """Beam search equals a search that reads every beam anew."""
    model = build("llama")
    memory = attach_memory(model, periods=4, scale=0.5)
    found = model.generate(
        tokens[:1, :7], max_new_tokens=9, num_beams=3, do_sample=False, pad_token_id=0, eos_token_id=None
    )
    beams, scores = tokens[:1, :7], torch.zeros(1, dtype=torch.float64)
    for _ in range(9):
        logp = memory(beams)[0][:, -1].log_softmax(-1) + scores[:, None]
        scores, best = logp.flatten().topk(3)
        beams = torch.cat((beams[best // V], best[:, None] % V), 1)
    assert torch.equal(found, beams[:1])


def test_loss_and_first_order_gradients(tokens: Tensor) -> None:
    model = build("llama").train()
    attach_memory(model, periods=4, scale=0.5)
    out = model(tokens, labels=tokens)
    right = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert (out.loss - right).abs() < 1e-6
    out.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    model.gradient_checkpointing_enable()
    with pytest.raises(InputError, match="a memory cannot be trained through with gradient checkpointing"):
        model(tokens)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@torch.no_grad()
def test_half_precision_keeps_deltas_in_float32(family: str, tokens: Tensor) -> None:
    model = build(family).bfloat16()
    memory = attach_memory(model, periods=4, scale=0.5, matrices="all")
    logits, state = memory(tokens)
    one, state = memory(tokens[:, :1], state)
    assert (logits.dtype, one.dtype) == (torch.bfloat16, torch.bfloat16)
    assert {delta.dtype for layer in state.layers for delta in layer.delta} == {torch.float32}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"attention_mask": torch.tensor([[0, 1, 1]])},
            "an attached memory reads every token: give prompts of equal length, without padding",
        ),
        (
            {"position_ids": torch.tensor([[3, 5, 4]])},
            "an attached memory reads tokens in order: leave out position_ids",
        ),
        (
            {"output_hidden_states": True},
            "an attached memory does not take output_hidden_states; detach it, or leave the argument out",
        ),
        (
            {"past_key_values": "static"},
            "the model keeps a StaticLayer; an attached memory needs a dynamic key-value cache",
        ),
    ],
)
def test_what_it_would_get_wrong_is_refused(arguments: dict[str, Any], message: str) -> None:
    model = build("llama")
    if arguments.get("past_key_values") == "static":
        arguments = {"past_key_values": hf.StaticCache(config=model.config, max_cache_len=16)}
    attach_memory(model, periods=4, scale=0.5)
    with pytest.raises(InputError) as error:
        model(torch.tensor([[1, 2, 3]]), **arguments)
    assert str(error.value) == message


def test_models_that_cannot_have_one() -> None:
    mamba = hf.MambaForCausalLM(hf.MambaConfig(vocab_size=V, hidden_size=16, num_hidden_layers=1))
    with pytest.raises(InputError, match="a memory needs a decoder whose only state is a key-value cache"):
        attach_memory(mamba)
    mixture = hf.MixtralForCausalLM(hf.MixtralConfig(**LLAMA, num_local_experts=2))
    with pytest.raises(
        InputError, match=r"its 2 layers have no down projection named channel.down, mlp.down_proj"
    ):
        attach_memory(mixture)
    quantised = build("llama")
    weight = torch.zeros(32, 48, dtype=torch.uint8)
    quantised.model.layers[0].mlp.down_proj.weight = nn.Parameter(weight, requires_grad=False)
    with pytest.raises(
        InputError, match=r"layers.0.mlp.down_proj holds torch.uint8 weights; load the model without"
    ):
        attach_memory(quantised)
    with pytest.raises(InputError, match="k_proj maps to 16, not to the model's width 32"):
        attach_memory(build("llama"), targets="self_attn.k_proj")
    with pytest.raises(InputError, match=r"Linear is neither a hope_model.LanguageModel nor a causal model"):
        attach_memory(nn.Linear(2, 2))


@torch.no_grad()
def test_matrices_named_by_hand(tokens: Tensor) -> None:
    """What the tables know, said by hand, gives the same; and one layer alone can be written."""
    model = build("gpt2")
    with attach_memory(model, periods=4, scale=0.5, matrices="all") as memory:
        expected, _ = memory(tokens)
    with attach_memory(
        model,
        periods=4,
        scale=0.5,
        matrices="all",
        targets=Rule("mlp.c_proj", up="c_fc", activation="gelu_tanh"),
    ) as memory:
        assert torch.equal(memory(tokens)[0], expected)
    with attach_memory(model, periods=4, scale=0.5, targets="h.1.mlp.c_proj") as memory:
        assert [mlp.name for mlp in memory.mlps] == ["transformer.h.1.mlp.c_proj"]
