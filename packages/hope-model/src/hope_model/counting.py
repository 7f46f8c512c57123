"""What a model costs: parameters, floating-point operations, bytes of state.

Letters: T tokens, D width, d head width, m hidden width of a memory, C chunk.
"""

from typing import NamedTuple

import torch
from torch import nn

from hope_model.blocks import BUILT_IN, MIXERS, parameter_count, variant_parts
from hope_model.config import ModelConfig
from hope_model.model import LanguageModel
from hope_model.shapes import without_values
from hope_model.state import n_bytes

DELTA_RULE_CHUNK = 64  # tokens at a time in `ops.cms.cms_delta_rule`


def build_meta(config: ModelConfig) -> LanguageModel:
    """The model without memory behind its tensors."""
    with without_values():
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


class Flops(NamedTuple):
    """Operations of a forward pass per token (a multiply and an add are two)."""

    differentiated: float  # the outer loss is differentiated through these
    constant: float  # these make values that are constants for the outer loss


def flops_per_token(config: ModelConfig, length: int) -> float:
    """Return the forward operations per token at sequence length `length`, teach signal and writes included."""
    return sum(forward_flops(config, length))


def training_flops_per_token(config: ModelConfig, length: int) -> float:
    """Return the operations per token of a training step: forward, and backward where there is one.

    The backward of a product is two products, so what is differentiated counts three times. The teach signal and
    the CMS's writes have no backward in first order and count once.
    """
    forward = forward_flops(config, length)
    return 3 * forward.differentiated + forward.constant


def forward_flops(config: ModelConfig, length: int) -> Flops:
    """Count the matrix products of one forward pass of training, per token.

    Not counted: elementwise operations, triangular systems inside chunks, masked pairs of tokens, and what a backward
    pass computes again to save memory. `tests/test_counting.py` compares the counts with torch's `FlopCounterMode`.
    """
    model = build_meta(config)
    products = sum(p.numel() for n, p in model.named_parameters() if p.dim() == 2 and ".conv." not in n)
    if not config.tied_embedding:
        products -= model.embed.weight.numel()
    mixer, constant = _mixer_flops(config, length)
    differentiated, constant = 2 * products + config.layers * mixer, config.layers * constant
    if variant_parts(config)[1] != "cms" or not config.cms.teach_scale:
        return Flops(differentiated, constant)
    head, last = config.dim * config.vocab_size, config.layers - 1
    signal: float = 2 * head
    if config.cms.signal == "layer":  # a backward to activations, down to the first block's output
        # Of a mixer one product for each: gradients of its weights and of its state are not asked for.
        signal += last * (2 * (products - head) / config.layers + mixer)
    signal *= _whole(min(config.cms.chunks()), length)
    taught = signal + config.layers * _cms_writes(config, model, length)
    if config.cms.second_order:
        return Flops(differentiated + taught, constant)
    return Flops(differentiated, constant + taught)


def _mixer_flops(config: ModelConfig, length: int) -> Flops:
    """Products of one layer's mixer beside its projections."""
    D, d, m, C = config.dim, config.head_dim, config.memory_hidden, config.memory.chunk
    mixer, _ = variant_parts(config)
    if mixer not in BUILT_IN:  # its projections are counted; it may know of more products
        own = getattr(MIXERS[mixer], "flops_per_token", None)
        return Flops(own(config, length) if own else 0, 0)
    persistent = config.memory.persistent
    if mixer == "attention":
        return Flops(4 * config.query_heads * d * _keys_seen(config, length), 0)
    if mixer == "gated_deltanet":
        return Flops(6 * D * d + 6 * D * C, 0)
    memory = memory_flops(config)
    if mixer == "self_modifying":
        return memory
    if mixer == "titans_mag":
        attention = 4 * D * (_keys_seen(config, length) + persistent)
    elif mixer == "titans_mac":
        # Two keys a token within a segment; what is retrieved passes the memory's and attention's projections too.
        segment = min(length, config.attention.window)
        attention = 4 * D * (2 * _keys_seen(config, segment) + persistent) + 16 * D * D + 4 * D * m
    else:
        attention = 0
    # The prefix is written once a batch, here as if it had one sequence.
    share = 1 + config.memory.prefix / length
    attention += (share - 1) * 2 * (5 * D * D + 4 * D * config.heads)
    return Flops(share * memory.differentiated + attention, share * memory.constant)


def memory_flops(config: ModelConfig) -> Flops:
    """Products of one layer's deep memory, as one kernel has them."""
    D, m, memory = config.dim, config.memory_hidden, config.memory
    if variant_parts(config)[0] != "self_modifying":
        return _memory_flops(config, 1, 4 * D * m, momentum=memory.momentum)
    # Four memories project; every written one reads keys and values.
    written = 5 if memory.self_modify else 1
    return _memory_flops(config, written, 16 * D * m + written * 8 * D * m, momentum=memory.bank_momentum)


def _memory_flops(config: ModelConfig, R: int, forward: float, *, momentum: bool) -> Flops:
    """Products of R memories that share keys, a chunk at a time; `forward`: of keys and targets, before any write."""
    D, m, memory = config.dim, config.memory_hidden, config.memory
    chunks = (memory.chunk, memory.bank_chunk if R > 1 and memory.bank_chunk else memory.chunk)
    C, inside = min(chunks), 1 - min(chunks) / max(chunks)  # share of pieces that begin inside a chunk
    exact, origin = memory.output_rule == "delta", memory.decay_to == "initial"
    erase = (memory.tied_gates or memory.erase_hidden) and memory.erase_layers != "none"
    exact |= erase and memory.erase_layers == "both"  # the same products, whether the rule is exact or not
    weights, wide, narrow = (
        2 * D * m,
        2 * C * D,
        2 * C * config.heads * m,
    )  # one product with weights, with tokens
    write, read = forward + R * weights, 2.0 * weights
    if exact:
        write += R * (narrow + origin * weights + momentum * (weights + wide))
    if erase:
        write += wide + R * (origin * weights + momentum * (weights + narrow))
    write += inside * R * weights * (exact + (erase and not origin))  # what is recalled is not known there
    if memory.read != "chunk":
        read += 2 * wide + 2 * narrow + origin * 2 * weights
        read += momentum * (2 * weights + exact * wide + erase * narrow)
    state = R * (2 + 2 * momentum) * weights + momentum * 2 * config.heads * C * C
    if memory.through_writes:
        return Flops(write + read + state, 0)
    return Flops(read, write + state)


def _keys_seen(config: ModelConfig, length: int) -> float:
    """Keys that a query sees, on average over the sequence."""
    window = min(length, config.attention.window or length)
    return window * (1 - window / (2 * length))


def _whole(period: int, length: int) -> float:
    """Share of a sequence's tokens in periods that end before its last token: only their signal is known in time."""
    return (length - 1) // period * period / length


def _cms_writes(config: ModelConfig, model: LanguageModel, length: int) -> float:
    """Products of one block's writes: of the hidden layer, back through it, and into both matrices."""
    h, D = model.get_parameter("blocks.0.channel.levels.0.up").shape
    operations = 0.0
    for period in config.cms.chunks():
        tokens = min(DELTA_RULE_CHUNK, period)
        rule = 12 * h * D + 6 * tokens * (h + D) if config.cms.delta_rule else 4 * h * D
        hidden = 0 if config.cms.fused else 2 * h * D  # of a call of several segments, the read's serves
        operations += _whole(period, length) * (hidden + 2 * h * D + rule)
    return operations
