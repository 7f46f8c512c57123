"""Operations by formula equal those that torch counts, forward and in training.

Torch counts products of matrices. Two things that the formulas leave out are taken from both sides here: pairs of
tokens that a mask hides (the plain form of attention computes them), and what a written-out backward computes again
(the forms that autograd differentiates keep it).
"""

import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hope_model import AttentionConfig, CMSConfig, LanguageModel, MemoryConfig, ModelConfig, counting
from hope_model.config import PRESETS, VARIANTS
from hope_model.counting import build_meta
from hope_model.ops.deep_memory import chunk
from hope_model.ops.native.build import without_kernels

BATCH, LENGTH, SEGMENT = 1, 64, 16


def config(variant: str, memory: dict[str, Any], cms: dict[str, Any]) -> ModelConfig:
    windowed = variant in ("transformer_window", "titans_mag", "titans_mac")
    return ModelConfig(
        variant=variant,
        dim=128,
        head_dim=32,
        layers=2,
        vocab_size=512,
        attention=AttentionConfig(window=32 if windowed else 0),
        memory=MemoryConfig(**{"eta_max": 0.003, "chunk": SEGMENT, "persistent": 1} | memory),
        cms=CMSConfig(**{"levels": 3, "smallest": SEGMENT, "ratio": 2} | cms),
    )


def whole(name: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    form = PRESETS[name]
    return form["variant"], form["memory"], form.get("cms", {})


def keys_computed(settings: ModelConfig, length: int) -> float:
    """Keys that a query meets, hidden ones included, on average."""
    window = settings.attention.window
    if settings.variant.startswith("hope"):  # a segment at a time, on the cache of those before
        return (length + SEGMENT) / 2
    if not window or window >= length:
        return length
    return (window + (length / window - 1) * (2 * window - 1)) / (length / window)


def attended(q: tuple[int, ...], k: tuple[int, ...], *_: Any, **__: Any) -> int:
    """Operations of the CPU's fused attention, which torch has no formula for."""
    return 4 * math.prod(q) * k[2]


def attended_back(_: Any, q: tuple[int, ...], *__: Any, **___: Any) -> float:
    """Twice the forward's, of as many keys."""
    return 8 * math.prod(q) * (LENGTH + SEGMENT) / 2


FUSED = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attended,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: attended_back,
}


def counted(settings: ModelConfig) -> tuple[float, float]:
    """Operations per token of a forward pass and of a training step, as torch counts them."""
    torch.manual_seed(0)
    model, tokens = LanguageModel(settings), torch.randint(512, (BATCH, LENGTH))
    with without_kernels(), sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False, custom_mapping=FUSED) as forward:
            logits, _ = model(tokens)
        with FlopCounterMode(display=False, custom_mapping=FUSED) as backward:
            torch.autograd.backward(logits.sum())
    numbers = [mode.get_total_flops() / (BATCH * LENGTH) for mode in (forward, backward)]
    return numbers[0], sum(numbers)


ERASE = {"erase_hidden": True}
DEFAULTS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [(variant, {}, {}) for variant in VARIANTS]


@pytest.mark.parametrize(
    ("variant", "memory", "cms", "within"),
    [
        *((*case, 0.025) for case in DEFAULTS),
        ("hope", {}, {"second_order": True}, 0.01),
        ("hope_deltanet", {}, {"delta_rule": True}, 0.01),
        ("titans", {"momentum": False}, {}, 0.01),
        ("titans", {"through_writes": False}, {}, 0.03),
        ("titans", {"output_rule": "gradient"}, {}, 0.05),
        ("self_modifying_titans", {"erase_hidden": True}, {}, 0.03),
        ("self_modifying_titans", {"self_modify": False}, {}, 0.01),
        ("self_modifying_titans", {"through_writes": False}, {}, 0.03),
        ("hope_deltanet", {}, {"signal": "layer"}, 0.07),
        ("hope", {}, {"signal": "layer"}, 0.03),
        # The first momentum is a constant; reads of the chunk's start leave the last chunk's writes without a backward.
        ("self_modifying_titans", {"bank_momentum": True}, {}, 0.03),
        ("self_modifying_titans", {"output_rule": "gradient", "erase_layers": "both"} | ERASE, {}, 0.01),
        ("self_modifying_titans", {"read": "before", "erase_layers": "none"} | ERASE, {}, 0.01),
        ("self_modifying_titans", {"read": "chunk", "bank_momentum": True}, {}, 0.13),
        ("self_modifying_titans", {"bank_chunk": 8, "read": "before"}, {}, 0.03),
        (*whole("titans_paper"), 0.05),
        (*whole("hope_paper"), 0.05),
    ],
)
def test_formulas_equal_what_torch_counts(
    variant: str, memory: dict[str, Any], cms: dict[str, Any], within: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunk, "_has_written_backward", lambda *_: False)
    monkeypatch.setattr(counting, "_keys_seen", keys_computed)
    settings = config(variant, memory, cms)
    forward, training = counted(settings)
    assert counting.flops_per_token(settings, LENGTH) == pytest.approx(forward, rel=within)
    assert counting.training_flops_per_token(settings, LENGTH) == pytest.approx(training, rel=within)


def test_writes_and_teach_signal_count_once_in_first_order() -> None:
    """At the pilot's size, tripling everything would give HOPE 29 % too many operations."""
    settings = ModelConfig(variant="hope", dim=768, layers=19, vocab_size=32_000)
    forward = counting.forward_flops(settings, 2048)
    training = counting.training_flops_per_token(settings, 2048)
    assert training == 3 * forward.differentiated + forward.constant
    assert 3 * counting.flops_per_token(settings, 2048) / training == pytest.approx(1.293, abs=0.001)
    still = ModelConfig(variant="hope", cms=CMSConfig(teach_scale=0.0))
    assert counting.forward_flops(still, 512).constant == 0


def test_hidden_keys_are_not_counted() -> None:
    """A query sees half of the keys on average, and in a window at most as many as that has."""
    size: dict[str, Any] = {"dim": 64, "layers": 1, "vocab_size": 16}
    full = counting.flops_per_token(ModelConfig(variant="transformer", **size), 1024)
    narrow = ModelConfig(variant="transformer_window", attention=AttentionConfig(window=64), **size)
    assert full - counting.flops_per_token(narrow, 1024) == 4 * 64 * (512 - 64 * (1 - 64 / 2048))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_model_without_values_has_the_shapes_and_types_of_one_with_them(variant: str) -> None:
    config = ModelConfig(variant=variant, vocab_size=64, dim=32, layers=2, head_dim=16)
    empty, model = build_meta(config), LanguageModel(config)
    assert all(p.is_meta for p in empty.parameters())
    shapes = [{n: (p.shape, p.dtype) for n, p in m.named_parameters()} for m in (empty, model)]
    assert shapes[0] == shapes[1]


def test_counting_a_model_does_not_import_the_compiler() -> None:
    """It takes five seconds of a CPU, at the start of every command that opens a checkpoint."""
    program = (
        "import sys; from hope_model import ModelConfig; from hope_model.counting import parameters; "
        "assert parameters(ModelConfig()) > 1e6; sys.exit(any(n in sys.modules for n in ('torch._dynamo', 'sympy')))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
