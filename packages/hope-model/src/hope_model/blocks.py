"""A block is a mixer and a channel mixer chosen by name; nothing else branches on the variant.

Letters: B sequences, T tokens, D width.
"""

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

import torch
from torch import Tensor, nn

from hope_model.config import VARIANTS, ModelConfig
from hope_model.errors import InputError
from hope_model.layers.attention import Attention
from hope_model.layers.basic import SwiGLU
from hope_model.layers.cms import CMS
from hope_model.layers.deltanet import GatedDeltaNet
from hope_model.layers.self_modifying import SelfModifyingTitans
from hope_model.layers.titans import Titans
from hope_model.layers.titans_attention import TitansMAC, TitansMAG
from hope_model.shapes import without_values
from hope_model.state import BlockState, MemorySettings, detach

MIXERS: dict[str, Callable[[ModelConfig, float, float], nn.Module]] = {
    "attention": Attention,
    "gated_deltanet": GatedDeltaNet,
    "titans": Titans,
    "titans_mag": TitansMAG,
    "titans_mac": TitansMAC,
    "self_modifying": SelfModifyingTitans,
}

BUILT_IN = frozenset(MIXERS)


def add_mixer(name: str, mixer: Callable[[ModelConfig, float, float], nn.Module]) -> None:
    """Add a variant with a mixer of your own, beside a SwiGLU; docs/reading.md shows what a mixer has to be."""
    MIXERS[name], VARIANTS[name] = mixer, (name, "swiglu")


def variant_parts(config: ModelConfig) -> tuple[str, str]:
    """Names of mixer and channel mixer; an unknown variant may be an installed package's mixer."""
    if config.variant not in VARIANTS:
        for entry in entry_points(group="hope_model.mixers", name=config.variant):
            add_mixer(config.variant, entry.load())
    if config.variant not in VARIANTS:
        raise InputError(f"model.variant is {config.variant!r}; choose one of {', '.join(VARIANTS)}")
    return VARIANTS[config.variant]


def compile_refusal(config: ModelConfig) -> str:
    """Return why torch.compile does not work for a model, or '' where it does (with graph breaks)."""
    mixer, channel = variant_parts(config)
    if mixer == "self_modifying":
        return f"{config.variant} rewrites its memories in place, which torch.compile cannot trace"
    if channel == "cms":
        return (
            f"the state of {config.variant} changes its structure from segment to segment, "
            "so torch.compile would start anew at each, for minutes"
        )
    return ""


# Raised with what a part computes: results of before are of another model.
EQUATIONS = {"attention": 1, "memory": 1, "cms": 1}


def identity(config: ModelConfig) -> dict[str, Any]:
    """What decides what a model computes: without settings of parts that it has not, with the numbers of EQUATIONS."""
    mixer, channel = variant_parts(config)
    added = mixer not in BUILT_IN  # may read any setting
    has = {
        "attention": added or mixer in ("attention", "titans_mag", "titans_mac"),
        "memory": added or mixer in ("titans", "titans_mag", "titans_mac", "self_modifying"),
        "cms": channel == "cms",
    }
    values = config.to_dict()
    for part, number in EQUATIONS.items():
        if has[part]:
            values[part]["equations"] = number
        else:
            del values[part]
    return values


def parameter_count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def channel_budget(config: ModelConfig) -> int:
    """Parameters that the channel mixer may have, so that every variant's block weighs what a Transformer's does."""
    dim = config.dim
    swiglu = 3 * dim * round(8 * dim / 3)
    with without_values():
        spent = parameter_count(MIXERS[variant_parts(config)[0]](config, 0.0, 0.0))
    return 4 * dim * dim + swiglu - spent


class Block(nn.Module):
    """x + mixer(norm x), then x + channel(norm x)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        mixer, channel = variant_parts(config)
        std, out_std = config.init_std, config.init_std / (2 * config.layers) ** 0.5
        self.mixer_norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.mixer = MIXERS[mixer](config, std, out_std)
        self.channel_norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        budget = channel_budget(config) // config.dim
        if channel == "cms":
            levels = len(config.cms.chunks())
            hidden = config.hidden or _round(budget / (2 * levels))
            self.channel: nn.Module = CMS(config, hidden, std, out_std)
        else:
            hidden = config.hidden or _round(budget / 3)
            self.channel = SwiGLU(config.dim, hidden, std, out_std, bias=config.mlp_bias)

    def initial(self, batch: int) -> BlockState:
        return self.begin(batch)._replace(mixer=self.mixer.initial(batch))  # type: ignore[operator]

    def begin(self, batch: int) -> BlockState:
        """`initial` without the mixer's state, which `forward` then makes: there weights are whole under FSDP2."""
        return BlockState(None, self.channel.initial(batch) if isinstance(self.channel, CMS) else None)

    def forward(
        self, x_BTD: Tensor, state: BlockState, settings: MemorySettings
    ) -> tuple[Tensor, BlockState]:
        """Map [B, T, D] to [B, T, D]."""
        write = settings.writes is None or "titans" in settings.writes
        before = state.mixer
        if before is None:
            before = self.mixer.initial(len(x_BTD))  # type: ignore[operator]
            # Views of weights that were made without history still ask for gradients: torch's counters refuse them.
            before = before if torch.is_grad_enabled() else detach(before)
        y, mixer = self.mixer(self.mixer_norm(x_BTD), before, write=write, chunk=settings.chunk)
        x_BTD = x_BTD + y
        u = self.channel_norm(x_BTD)
        if isinstance(self.channel, CMS):
            y, channel = self.channel(u, state.channel, teach=settings.teach_scale > 0)
            return x_BTD + y, BlockState(mixer, channel)
        return x_BTD + self.channel(u), BlockState(mixer, None)


def _round(width: float) -> int:
    """To multiples of 8, which hardware likes; where that would change a small model's size, to the next integer."""
    return 8 * round(width / 8) if width >= 64 else max(1, round(width))
