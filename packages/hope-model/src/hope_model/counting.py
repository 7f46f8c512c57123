"""What a model costs: parameters, floating-point operations, bytes of state.

Letters: T tokens, D width, d head width, m hidden width of a memory, C chunk.
"""

import torch
from torch import nn

from hope_model.blocks import parameter_count, variant_parts
from hope_model.config import ModelConfig
from hope_model.model import LanguageModel
from hope_model.state import n_bytes


def build_meta(config: ModelConfig) -> LanguageModel:
    """The model without memory behind its tensors."""
    with torch.device("meta"):
        return LanguageModel(config)


def parameters(config: ModelConfig) -> int:
    """Number of parameters, a tied embedding counted once."""
    return parameter_count(build_meta(config))


def state_bytes(config: ModelConfig, length: int) -> int:
    """Bytes that one sequence's state holds after `length` tokens, measured on a CPU: for small models."""
    model = LanguageModel(config)
    with torch.no_grad():
        _, state = model(torch.zeros(1, length, dtype=torch.long))
    return n_bytes(state)


def parameter_groups(model: nn.Module) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """Parameters by optimiser: "matrix" (hidden matrices, for Muon) and "other" (for AdamW).

    Embedding and head, norms, scalar gates, convolutions and stacked memories are "other".
    """
    groups: dict[str, list[tuple[str, nn.Parameter]]] = {"matrix": [], "other": []}
    for name, parameter in model.named_parameters():
        outside = name.startswith(("embed.", "head.")) or ".conv." in name
        hidden = parameter.dim() == 2 and min(parameter.shape) >= 32 and not outside
        groups["matrix" if hidden else "other"].append((name, parameter))
    return groups


def flops_per_token(config: ModelConfig, length: int) -> float:
    """Forward floating-point operations per token at sequence length `length` (a multiply and an add are two).

    Every matrix counts twice its elements; on top comes what depends on length and chunk.
    """
    model = build_meta(config)
    matrices = sum(p.numel() for n, p in model.named_parameters() if p.dim() == 2 and ".conv." not in n)
    if not config.tied_embedding:
        matrices -= model.embed.weight.numel()
    mixer, channel = variant_parts(config)
    D, d, m, C = config.dim, config.head_dim, config.memory_hidden, config.memory.chunk
    titans = 30 * D * m + D * C * (3 * m / d + 4)  # states, momenta and first weights
    per_layer = 0.0
    if mixer == "attention":
        per_layer += 4 * D * _keys_seen(config, length)
    elif mixer == "gated_deltanet":
        per_layer += 6 * D * d + 5 * D * C
    elif mixer == "titans":
        per_layer += titans
    elif mixer == "titans_mag":
        per_layer += titans + 4 * D * (_keys_seen(config, length) + config.memory.persistent)
    elif mixer == "titans_mac":
        # Attention within a segment, two keys a token; the memory's projections once more for what it retrieves.
        segment = min(length, config.attention.window)
        per_layer += titans + 4 * D * (segment + config.memory.persistent) + 10 * D * D + 4 * D * m
    elif mixer == "self_modifying":
        per_layer += 104 * D * m + D * C * (5 * 2 * m / d + 12)
    teaches = channel == "cms" and config.cms.teach_scale > 0
    if teaches:
        per_layer += _cms_writes(config, model, length)
    signal = 0 if not teaches else 2 * matrices if config.cms.signal == "layer" else 2 * D * config.vocab_size
    return 2 * matrices + config.layers * per_layer + signal


def _keys_seen(config: ModelConfig, length: int) -> float:
    """Keys that a query sees, on average over the sequence."""
    window = min(length, config.attention.window or length)
    return window * (1 - window / (2 * length))


def _cms_writes(config: ModelConfig, model: LanguageModel, length: int) -> float:
    """Closed-form writes: one product for the hidden layer, one back through it, two outer products."""
    hidden = model.get_parameter("blocks.0.channel.levels.0.up").shape[0]
    written = sum(period < length for period in config.cms.chunks())
    return written * 4 * 2 * hidden * config.dim
