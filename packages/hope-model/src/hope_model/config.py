"""The model's configuration: one home for every default; `from_dict` refuses unknown keys."""

import dataclasses
import typing
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from hope_model.errors import InputError
from hope_model.ranges import check_ranges, one_of, shown, within

# Variants that are a form of another one: the keys that make them so.
FORMS: dict[str, dict[str, dict[str, Any]]] = {
    "hope_paper": {"memory": {"tied_gates": True, "output_rule": "gradient", "decay_to": "zero"}}
}
# Of each variant, the names of its mixer (`blocks.MIXERS`) and of its channel mixer.
VARIANTS: dict[str, tuple[str, str]] = {
    "hope": ("self_modifying", "cms"),
    "hope_paper": ("self_modifying", "cms"),  # tied gates, gradient output rule (FORMS)
    "hope_attention": ("attention", "cms"),
    "hope_deltanet": ("gated_deltanet", "cms"),
    "self_modifying_titans": ("self_modifying", "swiglu"),
    "titans": ("titans", "swiglu"),
    "titans_mag": ("titans_mag", "swiglu"),
    "titans_mac": ("titans_mac", "swiglu"),
    "gated_deltanet": ("gated_deltanet", "swiglu"),
    "transformer": ("attention", "swiglu"),
    "transformer_window": ("attention", "swiglu"),
}
# The papers' forms, whole; conf/run has the same. docs/model.md lists what still differs.
PRESETS: dict[str, dict[str, Any]] = {
    "titans_paper": {
        "variant": "titans",
        "memory": {
            "output_rule": "gradient",
            "decay_to": "zero",
            "eta_max": 0.01,
            "momentum_sum": True,
            "normalise": "qk",
            "prefix": 8,
        },
    },
    "hope_paper": {
        "variant": "hope_paper",
        "memory": {
            "activation": "gelu",
            "eta_max": 0.01,
            "inner_clip": 1.0,
            "erase_layers": "both",
            "read": "before",
            "bank_momentum": True,
            "momentum_sum": True,
            "normalise": "qk",
        },
        "cms": {"signal": "layer"},
    },
}
WINDOWED, WINDOW = ("transformer_window", "titans_mag", "titans_mac"), 512
ATTENDING = ("transformer", "hope_attention", *WINDOWED)
LEVELS, LARGEST = 64, 1e13  # of the CMS; parameters


@dataclass(frozen=True)
class RopeConfig:
    """Rotary frequencies for contexts longer than those of training; see `layers.rotary`."""

    scaling: str = field(default="none", metadata=one_of("none", "linear", "llama3", "yarn"))
    factor: float = field(default=1.0, metadata=within(1, 1e6))  # what low frequencies are divided by
    original: int = field(default=8192, metadata=within(1, 2**40))  # tokens of the context before scaling
    # Turns within that context: frequencies with fewer than `low` are divided, those with more than `high` stay.
    low: float = field(default=1.0, metadata=within(0, 1e6, above=True))
    high: float = field(default=4.0, metadata=within(0, 1e6, above=True))
    magnitude: float = field(
        default=1.0, metadata=within(0, 1_000, above=True)
    )  # of rotated queries and keys
    truncate: bool = True  # yarn: the ramp begins and ends at whole dimensions

    def __post_init__(self) -> None:
        """Refuse a ramp without a slope."""
        check_ranges(self, "model.attention.rope")
        if self.scaling in ("llama3", "yarn") and not self.low < self.high:
            raise InputError(
                f"model.attention.rope.low {self.low:g} must be less than model.attention.rope.high {self.high:g}"
            )


@dataclass(frozen=True)
class AttentionConfig:
    """Softmax attention with rotary positions."""

    # Tokens a query sees, itself included; 0: all, or 512 where a variant needs a window.
    window: int = field(default=0, metadata=within(0, 2**40))
    heads: int = field(default=0, metadata=within(0, 4096))  # of queries; 0: dim / head_dim
    kv_heads: int = field(default=0, metadata=within(0, 4096))  # of keys and values; 0: as many
    qk_norm: bool = False  # an RMS norm of every query and key before it is rotated
    bias: str = field(default="none", metadata=one_of("none", "qkv", "all"))  # of the projections
    rope_base: float = field(default=10_000.0, metadata=within(1, 1e12))
    rope: RopeConfig = field(default_factory=RopeConfig)


@dataclass(frozen=True)
class MemoryConfig:
    """Deep memories (Titans, self-modifying Titans) and the delta rule they are written with."""

    # Tokens that share one gradient point (eq. 90); 1 is the exact token rule.
    chunk: int = field(default=32, metadata=within(1, 4096))
    # Of k, v, eta and alpha, whose chunk is another than `memory`'s; 0: the same.
    bank_chunk: int = field(default=0, metadata=within(0, 4096))
    # Width m of a memory's hidden layer; 0: the head's, half of it in Titans.
    hidden: int = field(default=0, metadata=within(0, 4096))
    activation: str = field(default="leaky_relu", metadata=one_of("leaky_relu", "relu", "gelu", "silu"))
    # Bound of the hidden layer's inner learning rate, times 2 at most.
    eta_max: float = field(default=0.1, metadata=within(0, 100))
    # "delta" (stable) or "gradient" (the paper's).
    output_rule: str = field(default="delta", metadata=one_of("delta", "gradient"))
    # Soft bound of a token's inner gradients where the output rule is "gradient"; 0: none.
    inner_clip: float = field(default=0.0, metadata=within(0, 1e6))
    tied_gates: bool = False  # the paper's one gate for erasing and writing
    # What retention pulls fast weights to: the initial ones, or "zero" (the paper's).
    decay_to: str = field(default="initial", metadata=one_of("initial", "zero"))
    erase_hidden: bool = False  # a delta rule at the hidden layer too, with a gate of its own
    # Layers that the erase gate reaches (eq. 88: "both"); the output rule "delta" erases in the output layer anyway.
    erase_layers: str = field(default="hidden", metadata=one_of("hidden", "both", "none"))
    # A token reads "after" its own write, "before" it (eq. 83, 86, 94), or the weights of the "chunk"'s start (eq. 90).
    read: str = field(default="after", metadata=one_of("after", "before", "chunk"))
    self_modify: bool = True  # False: k, v, eta, alpha keep their initial memories
    momentum: bool = True  # of Titans' memory
    bank_momentum: bool = False  # of the five memories of self-modifying Titans
    momentum_sum: bool = False  # a decayed sum of surprises (Titans, eq. 10), not their average
    # What gets norm 1: "qk" (the paper's), or all of q, k, x, v and (output rule "delta") every memory's target.
    normalise: str = field(default="all", metadata=one_of("all", "qk"))
    # False: what is written is a constant for the outer gradient, as in prior art.
    through_writes: bool = True
    # Titans' learned tokens before the sequence, which the memory is written with as a chunk of their own.
    prefix: int = field(default=0, metadata=within(0, 65_536))
    # Titans with attention only: learned tokens that every query sees.
    persistent: int = field(default=8, metadata=within(0, 65_536))


@dataclass(frozen=True)
class CMSConfig:
    """Continuum memory system (eq. 70-73): a chain of MLP levels and how they are written."""

    levels: int = field(default=4, metadata=within(1, LEVELS))
    # Tokens of the fastest level's chunk, and of a segment.
    smallest: int = field(default=64, metadata=within(1, 2**40))
    ratio: int = field(default=4, metadata=within(1, 2**20))  # each next level is this much slower
    # Explicit chunk lengths; empty: smallest * ratio^l.
    periods: list[int] = field(default_factory=list, metadata=within(1, 2**62, most=LEVELS))
    teach_scale: float = field(default=0.1, metadata=within(0, 1_000))  # 0: no fast weights
    # Largest norm of a token's teach signal.
    teach_clip: float = field(default=1.0, metadata=within(0, 1e12, above=True))
    # Tokens with a smaller teach signal write nothing.
    surprise_threshold: float = field(default=0.0, metadata=within(0, 1e12))
    lr: float = field(default=1.0, metadata=within(0, 1_000))
    retention: float = field(
        default=1.0, metadata=within(0, 1)
    )  # rho: what a write keeps of the former delta
    # Largest norm of a delta's matrix, times its slow matrix's; 0: no bound.
    delta_bound: float = field(default=0.1, metadata=within(0, 1_000))
    # "output" (the last hidden state's, for all blocks) or "layer" (each block's own).
    signal: str = field(default="output", metadata=one_of("output", "layer"))
    wiring: str = field(default="sequential", metadata=one_of("sequential", "nested", "independent"))
    delta_rule: bool = False  # DGD (eq. 57) as the write
    second_order: bool = False  # differentiate through the teach signal

    @property
    def fused(self) -> bool:
        """Whether a call of several segments takes the fast form, of the default rule and wiring."""
        other = self.delta_rule or self.second_order or self.signal == "layer"
        return self.wiring == "sequential" and not other

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

    variant: str = "hope"  # see VARIANTS
    vocab_size: int = field(default=4096, metadata=within(1, 2**31 - 1))
    dim: int = field(default=256, metadata=within(1, 2**20))
    layers: int = field(default=4, metadata=within(1, 4096))
    head_dim: int = field(default=64, metadata=within(1, 4096))
    # Width of the SwiGLU's hidden layer, or of each CMS level's; 0: as many parameters as a Transformer's block.
    hidden: int = field(default=0, metadata=within(0, 2**22))
    mlp_bias: bool = False  # of the SwiGLU
    norm_eps: float = field(
        default=1e-6, metadata=within(0, 1, above=True)
    )  # of the blocks' and the last norm
    conv: int = field(default=4, metadata=within(1, 1024))  # width of the causal convolution before a memory
    tied_embedding: bool = True
    init_std: float = field(default=0.02, metadata=within(0, 10))
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    cms: CMSConfig = field(default_factory=CMSConfig)

    def __post_init__(self) -> None:
        check_ranges(self, "model")
        self._check_heads()
        for part, changes in FORMS.get(self.variant, {}).items():
            object.__setattr__(self, part, dataclasses.replace(getattr(self, part), **changes))
        if self.variant in WINDOWED and not self.attention.window:
            object.__setattr__(self, "attention", dataclasses.replace(self.attention, window=WINDOW))
        if self.variant in ATTENDING and self.head_dim % 2:
            raise InputError(
                f"model.head_dim is {self.head_dim}; rotary positions of {self.variant} need an even one"
            )
        self._check_periods()
        if self._size() > LARGEST:
            raise InputError(
                f"model.dim {self.dim}, model.layers {self.layers} and model.vocab_size {self.vocab_size} make "
                f"{self._size():.0e} parameters; at most {LARGEST:.0e} are allowed"
            )

    def _check_heads(self) -> None:
        attention = self.attention
        if attention.heads and self.variant in ("titans_mag", "titans_mac"):
            raise InputError(
                f"model.attention.heads is {attention.heads}; {self.variant} needs 0, as many as its memory has"
            )
        free = attention.heads and self.variant in ("transformer", "transformer_window")
        if self.dim % self.head_dim and not free:
            raise InputError(f"model.dim {self.dim} is not a multiple of model.head_dim {self.head_dim}")
        if self.variant in ATTENDING and self.query_heads % self.kv_heads:
            raise InputError(
                f"model.attention.kv_heads {attention.kv_heads} does not divide the {self.query_heads} heads of queries"
            )

    def _check_periods(self) -> None:
        periods = self.cms.chunks()
        if max(periods) > 2**62:
            raise InputError(
                f"model.cms.levels {self.cms.levels} and model.cms.ratio {self.cms.ratio} make a period of more "
                "than 2^62 tokens; lower one of them"
            )
        if any(period % min(periods) for period in periods):
            raise InputError(f"model.cms.periods {periods} must be multiples of the smallest")
        if self.cms.wiring == "nested" and any(slow % fast for fast, slow in pairwise(periods)):
            raise InputError(
                f"model.cms.periods {periods}: nested levels need each period to be a multiple of the former"
            )

    def _size(self) -> float:
        """Parameters, roughly and never too few by much: told before anything is built."""
        embeddings = (1 if self.tied_embedding else 2) * self.vocab_size * self.dim
        # A block weighs what a Transformer's does, or what its memories do where these alone are more.
        learned = self.memory.persistent + self.memory.prefix
        memories = 10 * self.dim * self.memory_hidden + self.dim * (3 * self.conv + learned)
        attention = 4 * self.dim * self.attention.heads * self.head_dim
        channel = 3 * self.dim * self.hidden * len(self.cms.chunks())
        return float(embeddings + self.layers * (12 * self.dim**2 + memories + attention + channel))

    @property
    def heads(self) -> int:
        return self.dim // self.head_dim

    @property
    def query_heads(self) -> int:
        """Number of heads of softmax attention."""
        return self.attention.heads or self.heads

    @property
    def kv_heads(self) -> int:
        """Number of heads that keys and values have in softmax attention."""
        return self.attention.kv_heads or self.query_heads

    @property
    def memory_hidden(self) -> int:
        """Hidden width m of a deep memory; Titans' memories need not tell keys from values, matrices do."""
        parts = 2 if self.variant.startswith("titans") else 1
        return self.memory.hidden or max(self.head_dim // parts, 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dictionary, the inverse of `from_dict`."""
        return dataclasses.asdict(self)

    @staticmethod
    def named(name: str, **changes: Any) -> "ModelConfig":
        """Return the preset of this name, else the variant, with `changes` (of parts: mappings) on top."""
        form = dict(PRESETS.get(name, {"variant": name}))
        for key, value in changes.items():
            form[key] = {**form.get(key, {}), **value} if isinstance(value, Mapping) else value
        return ModelConfig.from_dict(form)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "ModelConfig":
        """Build from a nested dictionary; an unknown key or a wrong type raises `InputError`."""
        return _build(ModelConfig, values, "model")


T = typing.TypeVar("T")


def _build(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Make nested dataclasses of nested mappings; `check_ranges` then sees to the values."""
    if not isinstance(values, Mapping):
        raise InputError(f"{where} must be a mapping, not {shown(values)}")
    hints = typing.get_type_hints(cls)
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if key not in hints:
            raise InputError(f"unknown key {where}.{str(key)[:80]}; known: {', '.join(hints)}")
        kind = hints[key]
        if dataclasses.is_dataclass(kind):
            value = _build(typing.cast(type, kind), value, f"{where}.{key}")
        elif kind is float and isinstance(value, int) and not isinstance(value, bool):
            with suppress(OverflowError):
                value = float(value)
        arguments[key] = value
    return cls(**arguments)
