"""Whether a state and its settings fit an attached memory; the parts of `hope_model.state_check` for another state.

Letters: B sequences, n tokens of one piece, h hidden width, D width, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

from hope_model.adapt.host import Memory
from hope_model.adapt.memory import AttachedLayer, AttachedState, Options
from hope_model.adapt.targets import Mlp, theta
from hope_model.errors import InputError
from hope_model.ranges import check_value, shown
from hope_model.state import MemorySettings, Teach
from hope_model.state_check import MOST, Maybe, UpTo, check_range, compare, like
from hope_model.tree import tensors

FIELDS = {"teach_scale": "scale", "teach_clip": "clip", "surprise_threshold": "threshold"}


def check_memory(memory: Memory, state: Any, batch: int | None = None) -> None:
    """Raise `InputError`, which names the part and both shapes, unless a state fits a memory.

    Args:
        memory: Of the model that reads on.
        state: What is checked.
        batch: Sequences that the state must hold; None: as many as its first tensor.
    """
    if not isinstance(state, AttachedState):
        raise InputError(f"the state is {shown(state)}; give what `initial` or an earlier call returned")
    check_settings(state.settings, len(memory.mlps))
    compare("state.position", state.position, UpTo(MOST), ())
    memory.host.check(state.inner, state.position)
    B = next((len(x) for x in tensors((state.inner, state.layers, state.pending)) if x.dim()), batch or 0)
    if batch is not None and batch != B:
        raise InputError(f"the state holds {B} sequences, the tokens {batch}; see hope_model.state.select")
    head, segment = memory.host.head, min(memory.options.periods)
    lengths = _lengths(state.pending)
    if sum(lengths) > min(state.position, (state.position - 1) % segment + 1):
        raise InputError(
            f"state.pending holds {sum(lengths)} tokens after {state.position}; a segment has {segment}"
        )
    pieces = tuple((like(B, n, kind="int"), like(B, n, len(head))) for n in lengths)
    compare("state.pending", state.pending, pieces, _place(head))
    for n, (tokens, _) in enumerate(state.pending):
        check_range(f"state.pending[{n}][0]", tokens, len(head))
    signals: Any = UpTo(MOST)
    compare("state.teach", state.teach, Maybe(Teach(like(), (like(),), signals)), _place(head))
    if not isinstance(state.layers, tuple) or len(state.layers) != len(memory.mlps):
        raise InputError(f"state.layers is not of the memory's {len(memory.mlps)} MLPs")
    for n, (mlp, layer) in enumerate(zip(memory.mlps, state.layers, strict=True)):
        compare(f"state.layers[{n}]", layer, _layer(mlp, B, lengths), _place(theta(mlp.down)))


def check_settings(settings: Any, mlps: int) -> None:
    """Raise `InputError` unless a memory of so many MLPs can be written as `settings` say."""
    if not isinstance(settings, MemorySettings):
        raise InputError(f"settings is {shown(settings)}; give MemorySettings")
    for name, option in FIELDS.items():
        check_value(getattr(settings, name), f"settings.{name}", Options, option)
    rates = settings.rates
    if rates is not None and not (isinstance(rates, tuple) and len(rates) == mlps):
        raise InputError(f"settings.rates is {shown(rates)}; it must be None or a tuple of {mlps} numbers")
    for n, rate in enumerate(rates or ()):
        check_value(rate, f"settings.rates[{n}]", Options, "scale")
    if settings.writes is not None or type(settings.chunk) is not int or settings.chunk:
        raise InputError(
            f"settings.writes is {shown(settings.writes)} and settings.chunk {shown(settings.chunk)}; "
            "an attached memory takes None and 0: give `rates` to write some MLPs only"
        )


def _lengths(pending: Any) -> list[int]:
    """Tokens of each piece of an unfinished segment."""
    if not isinstance(pending, tuple):
        raise InputError(f"state.pending is {shown(pending)}; it must be a tuple of tokens and logits")
    firsts = [piece[0] if isinstance(piece, tuple) and piece else None for piece in pending]
    return [x.shape[1] if isinstance(x, Tensor) and x.dim() == 2 else 1 for x in firsts]


def _place(parameter: Tensor) -> tuple[torch.dtype, torch.device]:
    return torch.promote_types(parameter.dtype, torch.float32), parameter.device


def _layer(mlp: Mlp, B: int, lengths: list[int]) -> AttachedLayer:
    """The template of one MLP's part of a state."""
    h = theta(mlp.down).shape[1]
    written: Any = Maybe(tuple(like(B, *theta(module).shape, kind="precise") for module in mlp.written))

    def recorded(n: int) -> tuple[Any, ...]:
        if not mlp.inputs:
            return (like(B, n, h),)
        width = theta(mlp.inputs[0]).shape[1]
        return (like(B, n, h), like(B, n, width), *(like(B, n, h) for _ in range(1 + mlp.gated)))

    return AttachedLayer(written, written, tuple(recorded(n) for n in lengths))
