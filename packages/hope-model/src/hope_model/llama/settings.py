"""The configuration of a Llama-family model, from Hugging Face's `config.json` to ours and back."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hope_model.config import AttentionConfig, CMSConfig, MemoryConfig, ModelConfig, RopeConfig
from hope_model.errors import InputError
from hope_model.ranges import shown

# Heads of keys and values, and the window, that a configuration without the key means.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"architectures": ["LlamaForCausalLM"], "num_key_value_heads": None, "sliding_window": None},
    "mistral": {"architectures": ["MistralForCausalLM"], "num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "num_key_value_heads": 32, "sliding_window": 4096},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "num_key_value_heads": 32, "sliding_window": 4096},
}
SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
SCALINGS = ("default", "linear", "llama3", "yarn")


def to_ours(values: Mapping[str, Any]) -> ModelConfig:
    """Return the configuration of ours that computes what a `config.json` describes.

    Raises:
        InputError: names the key that cannot be represented; it begins with the key's name.
    """
    family = _family(values)
    for key in SIZES:
        _count(key, values.get(key))
    heads = values["num_attention_heads"]
    head_dim = values.get("head_dim") or (128 if family == "qwen3" else values["hidden_size"] // heads)
    _count("head_dim", head_dim)
    kv_heads = values.get("num_key_value_heads", FAMILIES[family]["num_key_value_heads"]) or heads
    _count("num_key_value_heads", kv_heads)
    if values.get("hidden_act", "silu") not in ("silu", "swish"):
        raise InputError(f"hidden_act is {shown(values['hidden_act'])}; only silu can be represented")
    every = bool(values.get("attention_bias", False)) and family in ("llama", "qwen3")
    base, rope = _rope(values)
    attention = AttentionConfig(
        window=_window(family, values),
        heads=heads,
        kv_heads=kv_heads,
        qk_norm=family == "qwen3",
        bias="all" if every else "qkv" if family == "qwen2" else "none",
        rope_base=base,
        rope=rope,
    )
    return ModelConfig(
        variant="transformer",
        vocab_size=values["vocab_size"],
        dim=values["hidden_size"],
        layers=values["num_hidden_layers"],
        head_dim=head_dim,
        hidden=values["intermediate_size"],
        mlp_bias=family == "llama" and bool(values.get("mlp_bias", False)),
        norm_eps=_number("rms_norm_eps", values.get("rms_norm_eps", 1e-6)),
        tied_embedding=bool(values.get("tie_word_embeddings", False)),
        init_std=_number("initializer_range", values.get("initializer_range", 0.02)),
        attention=attention,
    )


def from_ours(config: ModelConfig, hidden: int, length: int, family: str = "") -> dict[str, Any]:
    """Return the `config.json` of a Transformer of ours.

    Args:
        config: of the model.
        hidden: width of its SwiGLU's hidden layer.
        length: tokens of context it was trained with.
        family: key of `FAMILIES`; empty: the first that fits.

    Raises:
        InputError: no architecture of the Llama family computes what the model does.
    """
    if config.variant not in ("transformer", "transformer_window"):
        raise InputError(f"model.variant {config.variant} is no architecture of the Llama family")
    attention = config.attention
    plain = replace(
        config,
        variant="transformer",
        hidden=hidden,
        conv=ModelConfig.conv,
        attention=replace(attention, heads=config.query_heads, kv_heads=config.kv_heads),
        memory=MemoryConfig(),
        cms=CMSConfig(),
    )
    for name in (family,) if family else FAMILIES:
        values = {
            "architectures": FAMILIES[name]["architectures"],
            "model_type": name,
            "vocab_size": config.vocab_size,
            "hidden_size": config.dim,
            "intermediate_size": hidden,
            "num_hidden_layers": config.layers,
            "num_attention_heads": config.query_heads,
            "num_key_value_heads": config.kv_heads,
            "head_dim": config.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": length,
            "initializer_range": config.init_std,
            "rms_norm_eps": config.norm_eps,
            "tie_word_embeddings": config.tied_embedding,
            "rope_theta": attention.rope_base,
            "rope_scaling": _rope_scaling(attention.rope),
            "sliding_window": attention.window or None,
            "attention_bias": attention.bias == "all",
        }
        if name == "llama":
            values["mlp_bias"] = config.mlp_bias
        if name.startswith("qwen"):
            values |= {"use_sliding_window": bool(attention.window), "max_window_layers": 0}
        if to_ours(values) == plain:
            return values
    settings = f"bias {attention.bias}, qk_norm {attention.qk_norm}, window {attention.window}"
    raise InputError(
        f"no architecture among {', '.join(FAMILIES)} has model.attention with {settings} "
        f"and mlp_bias {config.mlp_bias}"
    )


def _family(values: Mapping[str, Any]) -> str:
    family = values.get("model_type")
    if values.get("auto_map"):
        raise InputError(
            "auto_map: this model runs code of its own (trust_remote_code), which is never run here"
        )
    if family not in FAMILIES:
        raise InputError(f"model_type is {shown(family)}; {', '.join(FAMILIES)} can be converted")
    if values.get("quantization_config"):
        raise InputError(
            "quantization_config: the weights are quantised; convert the model they were made of"
        )
    return str(family)


def _count(key: str, value: Any) -> None:
    if type(value) is not int or value < 1:
        raise InputError(f"{key} is {shown(value)}; it must be a whole number of at least 1")


def _number(key: str, value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise InputError(f"{key} is {shown(value)}; it must be a number")
    return float(value)


def _window(family: str, values: Mapping[str, Any]) -> int:
    """Tokens of the sliding window, the same in every layer; 0 without one."""
    window = values.get("sliding_window", FAMILIES[family]["sliding_window"])
    kinds = values.get("layer_types")
    if family in ("qwen2", "qwen3"):
        if not values.get("use_sliding_window", False):
            window = None
        layers, first = values["num_hidden_layers"], values.get("max_window_layers", 28)
        kinds = kinds or [
            "sliding_attention" if window and n >= first else "full_attention" for n in range(layers)
        ]
        if len(set(kinds)) > 1:
            raise InputError(
                f"layer_types (max_window_layers): {', '.join(sorted(set(kinds)))}; all layers must attend alike"
            )
        if kinds[0] not in ("full_attention", "sliding_attention"):
            raise InputError(f"layer_types: {shown(kinds[0])} cannot be represented")
        window = window if kinds[0] == "sliding_attention" else None
    elif family == "llama":
        window = None
    if window is None:
        return 0
    _count("sliding_window", window)
    return int(window)


def _rope(values: Mapping[str, Any]) -> tuple[float, RopeConfig]:
    """Base and scaling, from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling`."""
    given = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if not isinstance(given, Mapping) or any(isinstance(value, Mapping) for value in given.values()):
        raise InputError(f"rope_parameters is {shown(given)}; all layers must rotate alike")
    base = _number("rope_theta", given.get("rope_theta") or values.get("rope_theta") or 10_000.0)
    partial = given.get("partial_rotary_factor", values.get("partial_rotary_factor"))
    if partial not in (None, 1, 1.0):
        raise InputError(f"partial_rotary_factor is {shown(partial)}; only 1 can be represented")
    kind = given.get("rope_type") or given.get("type") or "default"
    if kind not in SCALINGS:
        raise InputError(f"rope_type is {shown(kind)}; {', '.join(SCALINGS)} can be represented")
    if kind == "default":
        return base, RopeConfig()
    length = values.get("max_position_embeddings", 2048)
    original = (
        values.get("original_max_position_embeddings")
        or given.get("original_max_position_embeddings")
        or length
    )
    _count("original_max_position_embeddings", original)
    factor = given.get("factor")
    factor = _number("rope factor", length / original if factor is None and kind == "yarn" else factor)
    if kind == "linear":
        return base, RopeConfig("linear", factor)
    if kind == "llama3":
        low, high = (_number(key, given.get(key)) for key in ("low_freq_factor", "high_freq_factor"))
        return base, RopeConfig("llama3", factor, original, low, high)
    low, high = (
        _number(key, given.get(key) or default) for key, default in (("beta_slow", 1), ("beta_fast", 32))
    )
    magnitude = given.get("attention_factor")
    if magnitude is None:
        one, whole = given.get("mscale"), given.get("mscale_all_dim")
        magnitude = _mscale(factor, one) / _mscale(factor, whole) if one and whole else _mscale(factor, 1)
    truncate = bool(given.get("truncate", True))
    return base, RopeConfig(
        "yarn", factor, original, low, high, _number("attention_factor", magnitude), truncate
    )


def _mscale(factor: float, scale: Any) -> float:
    return 1.0 if factor <= 1 else 0.1 * _number("mscale", scale) * math.log(factor) + 1.0


def _rope_scaling(rope: RopeConfig) -> dict[str, Any] | None:
    if rope.scaling == "none":
        return None
    values: dict[str, Any] = {"rope_type": rope.scaling, "factor": rope.factor}
    if rope.scaling == "linear":
        return values
    values["original_max_position_embeddings"] = rope.original
    if rope.scaling == "llama3":
        return values | {"low_freq_factor": rope.low, "high_freq_factor": rope.high}
    return values | {
        "beta_slow": rope.low,
        "beta_fast": rope.high,
        "attention_factor": rope.magnitude,
        "truncate": rope.truncate,
    }
