"""Models in bfloat16 and float16: forward, any split, decoding, a state on disk and gradients, in every variant.

What is learned in a sequence stays in float32: fast weights, deltas and the sums that lead to them.
"""

import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from hope_model import AttentionConfig, CMSConfig, LanguageModel, MemoryConfig, ModelConfig
from hope_model.config import VARIANTS, WINDOWED
from hope_model.layers.cms import LevelState
from hope_model.ops.deep_memory import MemoryState
from hope_model.stream import load_state, save_state
from hope_model.tree import tensors

# Of the largest logit: between a whole sequence and one in pieces, and between half and single precision.
SPLIT = {torch.bfloat16: 0.03, torch.float16: 0.005}
SINGLE = {torch.bfloat16: 0.06, torch.float16: 0.01}
FORMS: list[tuple[str, dict[str, Any]]] = [
    *((variant, {}) for variant in VARIANTS),
    ("hope_deltanet", {"signal": "layer"}),
    ("hope_deltanet", {"delta_rule": True}),
    ("hope_deltanet", {"wiring": "nested"}),
    ("hope_deltanet", {"wiring": "independent"}),
    ("hope_deltanet", {"second_order": True}),
    ("hope_deltanet", {"second_order": True, "signal": "layer"}),
]


def precise(part: Any) -> list[torch.Tensor]:
    """Fast weights and deltas, wherever they lie in a state."""
    if isinstance(part, MemoryState):
        return tensors(part)
    if isinstance(part, LevelState):
        return tensors((part.delta, part.total, part.origin))
    return [x for inner in part for x in precise(inner)] if isinstance(part, tuple) else []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("variant", "cms"), FORMS, ids=str)
def test_half_precision(variant: str, cms: dict[str, Any], dtype: torch.dtype, tmp_path: Path) -> None:
    """The first write of the CMS, after 64 tokens, used to crash."""
    torch.manual_seed(0)
    config = ModelConfig(
        variant=variant, dim=32, head_dim=16, layers=2, vocab_size=50, init_std=0.1,
        memory=MemoryConfig(eta_max=0.003 if variant == "hope_paper" else 0.1),
        attention=AttentionConfig(window=24 if variant in WINDOWED else 0),
        cms=CMSConfig(**{"smallest": 16, "levels": 3, "ratio": 2, "teach_scale": 0.3} | cms),
    )  # fmt: skip
    model, tokens = LanguageModel(config), torch.randint(50, (2, 75))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        single, _ = model(tokens)
        model = model.to(dtype)
        whole, _ = model(tokens)
        pieces, state = [], model.initial(2)
        for piece in torch.split(tokens, [1, 16, 20, 1, 1, 36], 1):
            logits, state = model(piece, state)
            pieces.append(logits)
            save_state(tmp_path / "state", model, state)
            state = load_state(tmp_path / "state", model)
    assert whole.dtype == dtype
    assert {x.dtype for x in precise(state)} <= {torch.float32}
    size = single.abs().max()
    assert (torch.cat(pieces, 1) - whole).float().abs().max() < SPLIT[dtype] * size
    assert (whole.float() - single).abs().max() < SINGLE[dtype] * size
    logits, _ = model(tokens[:, :-1])
    F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == dtype
        assert parameter.grad.isfinite().all(), name


def test_delta_of_a_half_precision_model_is_rounded_once_where_it_is_read() -> None:
    """A delta far below bfloat16's steps at theta still adds up: it is kept in float32."""
    torch.manual_seed(0)
    config = ModelConfig(variant="hope_deltanet", dim=16, head_dim=8, layers=1, vocab_size=16)
    config = ModelConfig.from_dict(config.to_dict() | {"cms": {"periods": [2], "teach_scale": 1e-4}})
    model, state = LanguageModel(config).bfloat16(), None
    norms = []
    with torch.no_grad():
        for _ in range(6):
            _, state = model(torch.full((1, 4), 3), state)
            norms.append(float(state.blocks[0].channel[0].delta.down.norm()))
    assert all(later > 1.2 * former for former, later in pairwise(norms[:4]))
