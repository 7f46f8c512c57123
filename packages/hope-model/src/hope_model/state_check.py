"""Whether a state fits a model: structure, shapes, types, device and positions of all that it holds.

A template is a state with shapes in the place of tensors; `check_state` walks both side by side.

Letters: B sequences, H heads, d head width, m hidden width and R number of memories, D width, h hidden width of a
level, n tokens that wait for their teach signal, V vocabulary.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hope_model.blocks import BUILT_IN, MIXERS, variant_parts
from hope_model.config import CMSConfig, MemoryConfig, ModelConfig
from hope_model.errors import InputError
from hope_model.layers.attention import AttentionState
from hope_model.layers.cms import LevelState
from hope_model.layers.deltanet import DeltaState
from hope_model.layers.titans import TitansState
from hope_model.layers.titans_attention import MACState, MAGState
from hope_model.ops.cms import LevelWeights
from hope_model.ops.deep_memory import BANK, FastWeights, MemoryState
from hope_model.ranges import check_value, shown
from hope_model.shapes import without_values
from hope_model.state import BlockState, MemorySettings, Pending, State, Teach
from hope_model.tree import tensors, tree_map

MOST = 2**62  # tokens of a stream


class Like(NamedTuple):
    """A tensor of this shape; `kind`: `precise` (as fast weights are), `float` (of any precision) or `int` (tokens)."""

    shape: tuple[int, ...]
    kind: str


class Maybe(NamedTuple):
    """None, or what the template says."""

    template: Any


class Each(NamedTuple):
    """A tuple of any length; the function gives the template of each part."""

    template: Callable[[Any], Any]


class UpTo(NamedTuple):
    """A whole number from 0 on."""

    most: int


def check_state(
    state: Any, config: ModelConfig, level_width: int, parameter: Tensor, batch: int | None = None
) -> None:
    """Raise `InputError`, which names the part and both shapes, unless a state fits a model.

    Args:
        state: What is checked.
        config: Of the model.
        level_width: Hidden width h of a CMS level; 0 for models without a CMS.
        parameter: The model's embedding, for device, precision and vocabulary.
        batch: Sequences that the state must hold; None: as many as its first tensor.
    """
    if not isinstance(state, State):
        raise InputError(f"the state is {shown(state)}; give what `initial` or an earlier call returned")
    check_settings(state.settings, len(config.cms.chunks()) if level_width else 0)
    B = next((len(x) for x in tensors(state.blocks) if x.dim()), 0)
    if batch is not None and batch != B:
        raise InputError(
            f"the state holds {B} sequences, the tokens {batch}; see hope_model.state.repeat and select"
        )
    compare("state.position", state.position, UpTo(MOST), ())
    precise = torch.promote_types(parameter.dtype, torch.float32)
    compare("state", state, _template(config, level_width, B, state), (precise, parameter.device))
    if state.pending is not None:
        check_range("state.pending.tokens_Bn", state.pending.tokens_Bn, len(parameter))


def check_range(name: str, tokens: Tensor, vocabulary: int) -> None:
    """Raise `InputError` at a token that the model does not have; on other devices that would wait for them."""
    if tokens.device.type == "cpu" and not (int(tokens.min()) >= 0 and int(tokens.max()) < vocabulary):
        raise InputError(
            f"{name} are from {int(tokens.min())} to {int(tokens.max())}; the model has 0 to {vocabulary - 1}"
        )


def check_batch(batch: Any) -> None:
    """Raise `InputError` unless so many sequences can be read at once."""
    if type(batch) is not int or not 1 <= batch < 2**31:
        raise InputError(f"batch is {shown(batch)}; it must be a whole number of sequences, at least 1")


def check_settings(settings: Any, levels: int) -> None:
    """Raise `InputError` unless memories can be written as `settings` say, in a model with so many CMS levels."""
    if not isinstance(settings, MemorySettings):
        raise InputError(f"settings is {shown(settings)}; give MemorySettings")
    for name in ("teach_scale", "teach_clip", "surprise_threshold"):
        check_value(getattr(settings, name), f"settings.{name}", CMSConfig, name)
    if type(settings.chunk) is not int or settings.chunk:  # 0: as configured
        check_value(settings.chunk, "settings.chunk", MemoryConfig, "chunk")
    known = ("titans", *(f"cms.{n}" for n in range(levels)))
    writes, rates = settings.writes, settings.rates
    if writes is not None and not (isinstance(writes, tuple) and all(name in known for name in writes)):
        raise InputError(
            f"settings.writes is {shown(writes)}; it must be None or a tuple of {', '.join(known)}"
        )
    if rates is not None and not (isinstance(rates, tuple) and len(rates) == levels):
        raise InputError(f"settings.rates is {shown(rates)}; it must be None or a tuple of {levels} numbers")
    for n, rate in enumerate(rates or ()):
        check_value(rate, f"settings.rates[{n}]", CMSConfig, "lr")


def like(*shape: int, kind: str = "float") -> Any:
    """Return the template of a tensor, to stand where a template's type says Tensor."""
    return Like(shape, kind)


def _template(config: ModelConfig, level_width: int, B: int, state: State) -> State:
    """The state of this model after as many tokens as `state` has seen."""
    levels, pending, n = len(config.cms.chunks()), None, 0
    if level_width and isinstance(state.pending, Pending):
        tokens = state.pending.tokens_Bn
        n = tokens.shape[1] if isinstance(tokens, Tensor) and tokens.dim() == 2 else 1
        n = max(1, min(n, state.position, *config.cms.chunks()))
        by_layer = config.cms.signal == "layer"
        start = _blocks(config, level_width, B, state.position - n, 0) if by_layer else None
        logits = None if by_layer else like(B, n, config.vocab_size)
        pending = Pending(like(B, n, kind="int"), logits, start)
    signals: Any = UpTo(MOST)
    teach: Any = Maybe(Teach(like(), (like(),) * levels, signals)) if level_width else None
    blocks = _blocks(config, level_width, B, state.position, n)
    return State(state.position, blocks, pending, teach, state.settings)


def _blocks(config: ModelConfig, level_width: int, B: int, position: int, n: int) -> tuple[BlockState, ...]:
    channel = None
    if level_width:
        up, down = (B, level_width, config.dim), (B, config.dim, level_width)
        weights: Any = Maybe(LevelWeights(like(*up, kind="precise"), like(*down, kind="precise")))

        def tokens_and_signals(part: Any) -> Any:
            first = part[0] if isinstance(part, tuple) and part else None
            tokens = first.shape[1] if isinstance(first, Tensor) and first.dim() == 3 else 1
            return (like(B, max(tokens, 1), config.dim),) * 2

        seen: Any = Each(tokens_and_signals)
        waiting = like(B, n, config.dim) if n else None
        channel = (LevelState(weights, weights, seen, waiting, weights),) * len(config.cms.chunks())
    added = variant_parts(config)[0] not in BUILT_IN
    mixer = _added_mixer(config, B) if added else _mixer(config, B, position)
    return (BlockState(mixer, channel),) * config.layers


def _added_mixer(config: ModelConfig, B: int) -> Any:
    """Tensors of the shapes that it begins with."""
    with without_values():
        initial = MIXERS[variant_parts(config)[0]](config, 0.0, 0.0).initial(B)  # type: ignore[operator]
    return tree_map(lambda x: like(*x.shape), initial)


def _mixer(config: ModelConfig, B: int, position: int) -> Any:
    mixer, _ = variant_parts(config)
    D, H, d, m = config.dim, config.heads, config.head_dim, config.memory_hidden
    window, seen = config.attention.window, UpTo(position)

    def memory(R: int, *, momentum: bool) -> Any:
        fast = FastWeights(like(B, H, R, m, d, kind="precise"), like(B, H, R, d, m, kind="precise"))
        counted: Any = seen
        return MemoryState(fast, fast, fast if momentum else None, counted)

    kept = like(B, config.kv_heads, min(position, window - 1) if window else position, d)
    attention = AttentionState(kept, kept, position)
    tail = like(B, config.conv - 1, D if mixer == "self_modifying" else 3 * D)
    if mixer == "attention":
        return attention
    if mixer == "gated_deltanet":
        return DeltaState(like(B, H, d, d, kind="precise"), tail)
    if mixer == "self_modifying":
        R = len(BANK) if config.memory.self_modify else 1
        return TitansState(memory(R, momentum=config.memory.bank_momentum), tail)
    titans = TitansState(memory(1, momentum=config.memory.momentum), tail)
    if mixer == "titans_mag":
        return MAGState(attention, titans)
    if mixer == "titans_mac":
        of_segment = like(B, config.kv_heads, 2 * ((position - 1) % window + 1) if position else 0, d)
        return MACState(titans, titans.memory, tail, of_segment, of_segment, position)
    return titans


def compare(name: str, part: Any, template: Any, place: tuple[Any, ...]) -> None:
    """Raise at the first part that does not fit; `place`: precision of fast weights, and device."""
    kind = type(template)
    if kind is Like:
        _check_tensor(name, part, template, place)
    elif kind is Maybe:
        if part is not None:
            compare(name, part, template.template, place)
    elif kind is Each:
        compare(name, part, tuple(map(template.template, part)) if type(part) is tuple else (), place)
    elif kind is UpTo:
        if type(part) is not int or not 0 <= part <= template.most:
            raise InputError(f"{name} is {_kind(part)}; it must be a whole number from 0 to {template.most}")
    elif isinstance(template, tuple):
        _compare_parts(name, part, template, place)
    elif type(part) is not kind or part != template:
        raise InputError(f"{name} is {_kind(part)}; it must be {shown(template)}")


def _compare_parts(name: str, part: Any, template: tuple[Any, ...], place: tuple[Any, ...]) -> None:
    kind = type(template)
    if type(part) is not kind or len(part) != len(template):
        raise InputError(f"{name} is {_kind(part)}, which is not the {kind.__name__} of this model")
    fields = getattr(template, "_fields", None)
    for n, (inner, expected) in enumerate(zip(part, template, strict=True)):
        if inner is not expected:
            compare(f"{name}.{fields[n]}" if fields else f"{name}[{n}]", inner, expected, place)


def _check_tensor(name: str, part: Any, like: Like, place: tuple[Any, ...]) -> None:
    precise, device = place
    if not isinstance(part, Tensor):
        raise InputError(f"{name} is {_kind(part)}, not a tensor of shape {list(like.shape)}")
    if part.shape != like.shape:
        raise InputError(f"{name} has shape {list(part.shape)}, not {list(like.shape)}")
    floats = tuple(dict.fromkeys((precise, torch.float32, torch.bfloat16, torch.float16)))
    allowed = {"precise": (precise,), "int": (torch.int64,)}.get(like.kind, floats)
    if part.dtype not in allowed:
        raise InputError(f"{name} is of {part.dtype}, not of {' or '.join(map(str, allowed))}")
    if part.layout != torch.strided:
        raise InputError(f"{name} is of layout {part.layout}, not of {torch.strided}")
    if part.device != device:
        raise InputError(f"{name} is on {part.device}, the model on {device}")


def _kind(part: Any) -> str:
    if isinstance(part, Tensor):
        return f"a tensor of shape {list(part.shape)}"
    return f"a {type(part).__name__} of {len(part)} parts" if isinstance(part, tuple) else shown(part)
