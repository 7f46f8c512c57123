"""The model's configuration: one home for every default; `from_dict` refuses unknown keys."""

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from hope_model.errors import InputError

# Variants that are a form of another one: the keys that make them so.
FORMS: dict[str, dict[str, dict[str, Any]]] = {
    "hope_paper": {"memory": {"tied_gates": True, "output_rule": "gradient", "decay_to": "zero"}},
}
WINDOWED, WINDOW = ("transformer_window", "titans_mag", "titans_mac"), 512


@dataclass(frozen=True)
class AttentionConfig:
    """Softmax attention with rotary positions."""

    window: int = 0  # tokens a query sees, itself included; 0: all, or 512 where a variant needs a window
    rope_base: float = 10_000.0


@dataclass(frozen=True)
class MemoryConfig:
    """Deep memories (Titans, self-modifying Titans) and the delta rule they are written with."""

    chunk: int = 32  # tokens that share one gradient point (eq. 90); 1 is the exact token rule
    hidden: int = 0  # width m of a memory's hidden layer; 0: the head's, half of it in Titans
    activation: str = "leaky_relu"
    eta_max: float = 0.1  # bound of the hidden layer's inner learning rate, times 2 at most
    output_rule: str = "delta"  # "delta" (stable) or "gradient" (the paper's)
    tied_gates: bool = False  # the paper's one gate for erasing and writing
    decay_to: str = "initial"  # what retention pulls fast weights to: these, or "zero" (the paper's)
    erase_hidden: bool = False  # a delta rule at the hidden layer too, with a gate of its own
    self_modify: bool = True  # False: k, v, eta, alpha keep their initial memories
    momentum: bool = True  # Titans only
    through_writes: bool = (
        True  # False: what is written is a constant for the outer gradient, as in prior art
    )
    persistent: int = 8  # Titans with attention only: learned tokens that every query sees


@dataclass(frozen=True)
class CMSConfig:
    """Continuum memory system (eq. 70-73): a chain of MLP levels and how they are written."""

    levels: int = 4
    smallest: int = 64  # tokens of the fastest level's chunk, and of a segment
    ratio: int = 4  # each next level is this much slower
    periods: list[int] = field(default_factory=list)  # explicit chunk lengths; empty: smallest * ratio^l
    teach_scale: float = 0.1  # 0: no fast weights
    teach_clip: float = 1.0  # largest norm of a token's teach signal
    surprise_threshold: float = 0.0  # tokens with a smaller teach signal write nothing
    lr: float = 1.0
    retention: float = 1.0  # rho: what a write keeps of the former delta
    delta_bound: float = 0.1  # largest norm of a delta's matrix, times its slow matrix's; 0: no bound
    signal: str = "output"  # "output" (the last hidden state's, for all blocks) or "layer" (each block's own)
    wiring: str = "sequential"  # "sequential", "nested" or "independent"
    delta_rule: bool = False  # DGD (eq. 57) as the write
    second_order: bool = False  # differentiate through the teach signal

    @property
    def differentiable_twice(self) -> bool:
        """Whether mixers must be: a second-order `layer` signal is a gradient that has a gradient."""
        return self.second_order and self.signal == "layer"

    def chunks(self) -> tuple[int, ...]:
        """Chunk length of every level, fastest first."""
        return tuple(self.periods) or tuple(self.smallest * self.ratio**n for n in range(self.levels))


@dataclass(frozen=True)
class ModelConfig:
    """One model; `dim` and `layers` size it, the rest is derived or named."""

    variant: str = "hope"  # see blocks.VARIANTS
    vocab_size: int = 4096
    dim: int = 256
    layers: int = 4
    head_dim: int = 64
    conv: int = 4  # width of the causal convolution before a memory
    tied_embedding: bool = True
    init_std: float = 0.02
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    cms: CMSConfig = field(default_factory=CMSConfig)

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        if self.dim % self.head_dim:
            raise InputError(f"model.dim {self.dim} is not a multiple of model.head_dim {self.head_dim}")
        for part, changes in FORMS.get(self.variant, {}).items():
            object.__setattr__(self, part, dataclasses.replace(getattr(self, part), **changes))
        if self.variant in WINDOWED and not self.attention.window:
            object.__setattr__(self, "attention", dataclasses.replace(self.attention, window=WINDOW))
        choices = {
            "memory.activation": (self.memory.activation, ("leaky_relu", "relu", "gelu", "silu")),
            "memory.decay_to": (self.memory.decay_to, ("initial", "zero")),
            "memory.output_rule": (self.memory.output_rule, ("delta", "gradient")),
            "cms.signal": (self.cms.signal, ("output", "layer")),
            "cms.wiring": (self.cms.wiring, ("sequential", "nested", "independent")),
        }
        for key, (value, allowed) in choices.items():
            if value not in allowed:
                raise InputError(f"model.{key} is {value!r}; choose one of {', '.join(allowed)}")
        if self.cms.delta_bound < 0:
            raise InputError(
                f"model.cms.delta_bound is {self.cms.delta_bound}; it must be positive, or 0 for none"
            )
        if self.memory.chunk < 1 or min(self.cms.chunks(), default=1) < 1:
            raise InputError("model.memory.chunk and model.cms.periods must be at least 1")
        fastest = min(self.cms.chunks(), default=1)
        if any(period % fastest for period in self.cms.chunks()):
            raise InputError(f"model.cms.periods {self.cms.chunks()} must be multiples of the smallest")
        if self.cms.wiring == "nested" and any(slow % fast for fast, slow in pairwise(self.cms.chunks())):
            raise InputError(
                f"model.cms.periods {self.cms.chunks()}: nested levels need each period to be a multiple of the former"
            )

    @property
    def heads(self) -> int:
        """Number of heads."""
        return self.dim // self.head_dim

    @property
    def memory_hidden(self) -> int:
        """Hidden width m of a deep memory; Titans' memories need not tell keys from values, matrices do."""
        parts = 2 if self.variant.startswith("titans") else 1
        return self.memory.hidden or max(self.head_dim // parts, 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dictionary, the inverse of `from_dict`."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "ModelConfig":
        """Build from a nested dictionary; an unknown key or a wrong type raises `InputError`."""
        return _build(ModelConfig, values, "model")


T = typing.TypeVar("T")


def _build(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    hints = typing.get_type_hints(cls)
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if key not in hints:
            raise InputError(f"unknown key {where}.{key}; known: {', '.join(hints)}")
        kind = hints[key]
        if dataclasses.is_dataclass(kind):
            if not isinstance(value, Mapping):
                raise InputError(f"{where}.{key} must be a mapping, not {value!r}")
            arguments[key] = _build(typing.cast(type, kind), value, f"{where}.{key}")
            continue
        plain = typing.get_origin(kind) or kind
        if plain is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, plain) or (isinstance(value, bool) and plain is not bool):
            raise InputError(f"{where}.{key} must be {plain.__name__}, not {value!r}")
        arguments[key] = value
    return cls(**arguments)
