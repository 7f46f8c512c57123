"""Fast deltas of a trained model's MLPs as a value, and how a period of tokens is written into them (eq. 71).

Letters: B sequences, n tokens, D width, h hidden width, I and O inputs and outputs of one matrix, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hope_model.adapt.targets import Mlp, theta
from hope_model.errors import InputError
from hope_model.ops.cms import cms_written, mlp_backward
from hope_model.precision import full_precision
from hope_model.ranges import check_ranges, one_of, shown, within
from hope_model.state import MemorySettings, Teach, size


class AttachedLayer(NamedTuple):
    """Fast weights of one MLP."""

    delta: tuple[Tensor, ...] | None  # of every written matrix [B, O, I]; None: zero
    total: tuple[Tensor, ...] | None  # their gradient over the segments of this period that have ended
    waiting: tuple[tuple[Tensor, ...], ...]  # what the gradient needs of tokens whose signal is not known yet


class AttachedState(NamedTuple):
    """Everything that a stream through a model with an attached memory carries from one call to the next."""

    position: int
    inner: Any  # the model's own: a `State`, or keys and values of its attention
    layers: tuple[AttachedLayer, ...]
    pending: tuple[
        tuple[Tensor, Tensor], ...
    ]  # tokens and logits [B, n, V] of the segment that has not ended
    teach: Teach | None
    settings: MemorySettings


class Ladder(NamedTuple):
    """Periods that grow with depth: the layers fall into `levels` groups, each `ratio` times slower than the former."""

    smallest: int
    ratio: int = 4
    levels: int = 4


@dataclass(frozen=True)
class Options:
    """What `attach_memory` was given, checked."""

    periods: list[int] = field(default_factory=list, metadata=within(1, 2**62))
    scale: float = field(default=0.1, metadata=within(0, 1_000))
    clip: float = field(default=1.0, metadata=within(0, 1e12, above=True))
    threshold: float = field(default=0.0, metadata=within(0, 1e12))
    bound: float = field(default=0.5, metadata=within(0, 1_000))
    retention: float = field(default=1.0, metadata=within(0, 1))
    matrices: str = field(default="down", metadata=one_of("down", "up", "all"))

    def __post_init__(self) -> None:
        check_ranges(self, "attach_memory")
        if any(period % min(self.periods) for period in self.periods):
            raise InputError(f"attach_memory.periods {self.periods} must be multiples of the smallest")


def metrics(state: AttachedState) -> dict[str, float]:
    """What a memory holds and what taught it: the numbers of `hope_model.state.metrics`, `delta_norm` over all MLPs."""
    result: dict[str, float] = {}
    if state.teach is not None and state.teach.signals:
        norm, (hits,), signals = state.teach
        result = {"teach_norm": float(norm) / signals, "gate_hit_rate": float(hits) / signals}
    sizes = [size(layer.delta) for layer in state.layers if layer.delta is not None]
    return result | ({"delta_norm": sum(sizes) / len(sizes)} if sizes else {})


def periods_of(given: int | Sequence[int] | Ladder, layers: int) -> list[int]:
    """One period for each of `layers` MLPs, as they were asked for."""
    if isinstance(given, Ladder):
        for key, part in given._asdict().items():
            if type(part) is not int or not 1 <= part <= 2**62:
                raise InputError(f"Ladder.{key} is {shown(part)}; it must be a whole number, at least 1")
        if given.levels > layers:
            raise InputError(f"attach_memory: a ladder of {given.levels} levels over {layers} MLPs")
        return [given.smallest * given.ratio ** (n * given.levels // layers) for n in range(layers)]
    if type(given) is int:
        return [given] * layers
    if not isinstance(given, list | tuple):
        raise InputError(
            f"attach_memory.periods is {shown(given)}; give a whole number, one for each MLP, or a Ladder"
        )
    if len(given) != layers:
        raise InputError(
            f"attach_memory.periods has {len(given)} entries, the model {layers} MLPs; give one for each, or one number"
        )
    return list(given)


def taught(
    mlps: Sequence[Mlp], state: AttachedState, signal_BnD: Tensor, options: Options
) -> tuple[AttachedLayer, ...]:
    """Return the layers after a segment whose teach signals are known; those whose period ends are written."""
    settings, segment = state.settings, min(options.periods)
    scales = settings.scales(len(mlps))
    layers = []
    for mlp, layer, period, scale in zip(mlps, state.layers, options.periods, scales, strict=True):
        parts = tuple(torch.cat(piece, 1) for piece in zip(*layer.waiting, strict=True))
        total = _gradient(mlp, layer, parts, signal_BnD, segment)
        if state.position % period:
            layers.append(AttachedLayer(layer.delta, total, ()))
            continue
        slow = tuple(theta(module).detach() for module in mlp.written)
        rule = {"step": scale, "retention": options.retention, "bound": options.bound}
        layers.append(AttachedLayer(cms_written(layer.delta, total, slow, **rule), None, ()))
    return tuple(layers)


def _gradient(
    mlp: Mlp, layer: AttachedLayer, parts: tuple[Tensor, ...], signal_BnD: Tensor, segment: int
) -> tuple[Tensor, ...]:
    """Mean over the segment of the gradient of <MLP(u_t), signal_t>, added to what the period has so far."""
    with full_precision(signal_BnD) as cast:
        teach = cast(signal_BnD) / segment
        phi, *rest = (cast(part) for part in parts)
        pairs = [(teach, phi)]
        if mlp.inputs:
            u, *hidden = rest
            down = cast(theta(mlp.down).detach())
            if layer.delta is not None and mlp.down is mlp.written[0]:
                down = down + layer.delta[0]
            z, value = hidden if len(hidden) == 2 else (hidden[0], None)
            _, at_z, at_value = mlp_backward(teach, z, down, mlp.activation, value)
            backs = [at_z] if at_value is None else [at_z, at_value]
            if len(mlp.inputs) < len(backs):  # one fused matrix
                backs = [torch.cat(backs, -1)]
            pairs = [*(pairs if mlp.down is mlp.written[0] else ()), *((back, u) for back in backs)]
        if layer.total is None:
            return tuple(g.transpose(-1, -2) @ x for g, x in pairs)
        return tuple(
            torch.baddbmm(old, g.transpose(-1, -2), x) for old, (g, x) in zip(layer.total, pairs, strict=True)
        )


def recorded(mlp: Mlp, calls: dict[int, tuple[Tensor, Tensor]]) -> tuple[Tensor, ...]:
    """What the gradient needs of one forward pass: the input of `down`, then input and pre-activations."""
    phi, _ = calls[id(mlp.down)]
    if not mlp.inputs:
        return (phi.detach(),)
    u, _ = calls[id(mlp.inputs[0])]
    hidden = [calls[id(module)][1] for module in mlp.inputs]
    if mlp.gated and len(hidden) == 1:
        hidden = list(hidden[0].chunk(2, -1))
    return (phi.detach(), u.detach(), *(z.detach() for z in hidden))
