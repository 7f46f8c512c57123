"""The model's configuration: one home for every default; `from_dict` refuses unknown keys."""

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hope_model.errors import InputError


@dataclass(frozen=True)
class AttentionConfig:
    """Softmax attention with rotary positions."""

    window: int = 0  # tokens a query sees, itself included; 0: all
    rope_base: float = 10_000.0


@dataclass(frozen=True)
class MemoryConfig:
    """Deep memories (Titans, self-modifying Titans) and the delta rule they are written with."""

    chunk: int = 64  # tokens that share one gradient point (eq. 90); 1 is the exact token rule
    hidden: int = 0  # width m of a memory's hidden layer; 0: the head's width
    activation: str = "relu"
    eta_max: float = 0.1  # bound of the hidden layer's inner learning rate, times 2 at most
    output_rule: str = "delta"  # "delta" (stable) or "gradient" (the paper's)
    tied_gates: bool = False  # the paper's one gate for erasing and writing
    self_modify: bool = True  # False: k, v, eta, alpha keep their initial memories
    momentum: bool = True  # Titans only
    form: str = "lmm"  # Titans only: lmm, mag or mac
    persistent: int = 8  # Titans mag and mac: learned tokens before the window


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
    signal: str = "output"  # "output" or "layer"
    wiring: str = "sequential"  # "sequential", "nested" or "independent"
    delta_rule: bool = False  # DGD (eq. 57) as the write
    second_order: bool = False  # differentiate through the teach signal

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
        choices = {
            "memory.activation": (self.memory.activation, ("relu", "gelu", "silu")),
            "memory.output_rule": (self.memory.output_rule, ("delta", "gradient")),
            "memory.form": (self.memory.form, ("lmm", "mag", "mac")),
            "cms.signal": (self.cms.signal, ("output", "layer")),
            "cms.wiring": (self.cms.wiring, ("sequential", "nested", "independent")),
        }
        for key, (value, allowed) in choices.items():
            if value not in allowed:
                raise InputError(f"model.{key} is {value!r}; choose one of {', '.join(allowed)}")
        missing: dict[str, tuple[object, object]] = {
            "memory.form": (self.memory.form, "lmm"),
            "cms.signal": (self.cms.signal, "output"),
            "cms.delta_rule": (self.cms.delta_rule, False),
        }
        for key, (wanted, built) in missing.items():
            if wanted != built:
                raise InputError(f"model.{key}: {wanted!r} is not built yet; only {built!r} is")
        if self.cms.wiring == "nested":
            raise InputError(
                "model.cms.wiring: 'nested' is not built yet; only 'sequential' and 'independent' are"
            )
        if self.memory.chunk < 1 or min(self.cms.chunks(), default=1) < 1:
            raise InputError("model.memory.chunk and model.cms.periods must be at least 1")
        fastest = min(self.cms.chunks(), default=1)
        if any(period % fastest for period in self.cms.chunks()):
            raise InputError(f"model.cms.periods {self.cms.chunks()} must be multiples of the smallest")

    @property
    def heads(self) -> int:
        """Number of heads."""
        return self.dim // self.head_dim

    @property
    def memory_hidden(self) -> int:
        """Hidden width m of a deep memory."""
        return self.memory.hidden or self.head_dim

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
