"""Where a memory can be attached: the matrices of each MLP, found by the names of their modules.

Letters: D width, h hidden width of an MLP.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hope_model.errors import InputError
from hope_model.ops.activations import ACTIVATIONS
from hope_model.ranges import shown

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Rule:
    """Names of an MLP's modules.

    Attributes:
        down: end of the full name of the projection to the model's width, such as `mlp.down_proj`.
        up: its neighbour that maps the model's width to the hidden layer.
        gate: the neighbour whose activation multiplies `up`'s output; empty: the MLP has no gate.
        fused: one neighbour with the gate's rows and then `up`'s, in place of the two.
        activation: key of `ops.activations.ACTIVATIONS`; empty: what the model's configuration names.
    """

    down: str
    up: str = ""
    gate: str = ""
    fused: str = ""
    activation: str = ""


# Tried in this order; the first whose `down` is in every layer is taken.
RULES = (
    Rule("channel.down", fused="up", activation="silu"),  # ours
    Rule("mlp.down_proj", up="up_proj", gate="gate_proj"),  # Llama, Mistral, Qwen, Gemma, OLMo, SmolLM
    Rule("mlp.down_proj", fused="gate_up_proj"),  # Phi-3, GLM
    Rule("mlp.dense_4h_to_h", up="dense_h_to_4h"),  # GPT-NeoX, Falcon, BLOOM
    Rule("mlp.c_proj", up="c_fc"),  # GPT-2, StarCoder
    Rule("mlp.fc_out", up="fc_in"),  # GPT-J
    Rule("mlp.fc2", up="fc1"),  # Phi
    Rule("fc2", up="fc1"),  # OPT
)
ACTIVATION_NAMES = {
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


@dataclass(frozen=True)
class Mlp:
    """The modules of one MLP that are written, and what their gradient needs.

    Attributes:
        name: of the down projection.
        down: the down projection.
        inputs: `(up,)`, `(gate, up)`, or one fused module; empty: only `down` is written.
        gated: whether a gate multiplies.
        activation: key of `ops.activations.ACTIVATIONS`, where `inputs` are written.
        written: the modules that have a fast delta, in the order of the state's.
    """

    name: str
    down: nn.Module
    inputs: tuple[nn.Module, ...]
    gated: bool
    activation: str
    written: tuple[nn.Module, ...]


def theta(module: nn.Module) -> Tensor:
    """The slow matrix as [outputs, inputs]; transformers' Conv1D keeps it transposed."""
    weight = module.weight
    assert isinstance(weight, Tensor)  # noqa: S101
    return weight if isinstance(module, nn.Linear) else weight.T


def find(model: nn.Module, layers: int, width: int, matrices: str, rule: Rule | str | None) -> list[Mlp]:
    """Return the MLPs of a model, in order of depth.

    Args:
        model: any model.
        layers: how many blocks it has.
        width: D, to which a down projection must map.
        matrices: `down`, `up` (the matrices into the hidden layer, the gate's too) or `all`.
        rule: how the modules are named, or the end of the down projections' names; None: one of `RULES`.

    Raises:
        InputError: no rule fits, or what is named cannot be written; the message says how to name it.
    """
    if isinstance(rule, str):
        rule = Rule(rule)
    if rule is not None:
        _check_rule(rule)
    modules = dict(model.named_modules())
    fitting = [
        one for one in ([rule] if rule else RULES) if _complete(modules, one, layers, by_hand=bool(rule))
    ]
    if matrices != "down":
        fitting = [one for one in fitting if _has_inputs(modules, one)] or fitting
    if not fitting:
        raise InputError(_unknown(model, modules, layers, width, rule))
    return [
        _mlp(model, modules, name, fitting[0], width, matrices) for name in _ends(modules, fitting[0].down)
    ]


def _check_rule(rule: Any) -> None:
    """Refuse a rule that names no modules, or an activation that no gradient is known of."""
    if not isinstance(rule, Rule):
        raise InputError(f"attach_memory.targets is {shown(rule)}; give a Rule, or the end of a name as text")
    for part in ("down", "up", "gate", "fused", "activation"):
        if not isinstance(getattr(rule, part), str):
            raise InputError(f"Rule.{part} is {shown(getattr(rule, part))}; it must be text")
    if rule.activation and rule.activation not in ACTIVATIONS:
        raise InputError(
            f"Rule.activation is {shown(rule.activation)}; choose one of {', '.join(ACTIVATIONS)}"
        )


def _ends(modules: dict[str, nn.Module], end: str) -> list[str]:
    return [name for name in modules if name == end or name.endswith(f".{end}")]


def _complete(modules: dict[str, nn.Module], rule: Rule, layers: int, *, by_hand: bool) -> bool:
    count = len(_ends(modules, rule.down)) if rule.down else 0
    return count > 0 if by_hand else count == layers


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _neighbours(rule: Rule) -> tuple[str, ...]:
    return (rule.fused,) if rule.fused else tuple(part for part in (rule.gate, rule.up) if part)


def _has_inputs(modules: dict[str, nn.Module], rule: Rule) -> bool:
    parents = [_parent(name) for name in _ends(modules, rule.down)]
    names = _neighbours(rule)
    return bool(names) and all(
        f"{parent}.{part}".lstrip(".") in modules for parent in parents for part in names
    )


def _mlp(
    model: nn.Module, modules: dict[str, nn.Module], name: str, rule: Rule, width: int, matrices: str
) -> Mlp:
    down = modules[name]
    _check(name, down)
    if theta(down).shape[0] != width:
        raise InputError(
            f"{name} maps to {theta(down).shape[0]}, not to the model's width {width}; "
            "name the down projection with targets=Rule('mlp.NAME')"
        )
    if matrices == "down":
        return Mlp(name, down, (), gated=False, activation="", written=(down,))
    names = [f"{_parent(name)}.{part}".lstrip(".") for part in _neighbours(rule)]
    missing = [part for part in names if part not in modules]
    if not names or missing:
        raise InputError(
            f"{name}: {(missing or ['its input matrix'])[0]} is not in the model; name up, gate or fused with "
            "targets=Rule('mlp.down', up='up', gate='gate'), or write matrices='down' only"
        )
    inputs = tuple(modules[part] for part in names)
    hidden = theta(down).shape[1]
    rows = 2 * hidden if rule.fused else hidden
    for part, module in zip(names, inputs, strict=True):
        _check(part, module)
        if theta(module).shape[0] != rows:
            raise InputError(
                f"{part} maps to {theta(module).shape[0]}, not to the {rows} rows that {name} needs of it; name up, "
                "gate or fused with targets=Rule('mlp.down', up='up', gate='gate')"
            )
    activation = rule.activation or _activation(model, name)
    written = inputs if matrices == "up" else (down, *inputs)
    return Mlp(name, down, inputs, bool(rule.gate or rule.fused), activation, written)


def _check(name: str, module: nn.Module) -> None:
    """Refuse what is no plain matrix."""
    kind, weight = type(module).__name__, getattr(module, "weight", None)
    if not isinstance(module, nn.Linear) and kind != "Conv1D":
        raise InputError(f"{name} is a {kind}; only Linear and Conv1D modules can be written")
    if not isinstance(weight, Tensor) or weight.dtype not in FLOATS or weight.dim() != 2:
        what = getattr(weight, "dtype", None)
        raise InputError(f"{name} holds {what} weights; load the model without quantisation to write into it")


def _activation(model: nn.Module, name: str) -> str:
    config: Any = model.config
    for key in ("hidden_activation", "hidden_act", "activation_function", "activation"):
        value = getattr(config, key, None)
        if value in ACTIVATION_NAMES:
            return ACTIVATION_NAMES[value]
    raise InputError(
        f"{name}: the activation of the MLP is not one of {', '.join(ACTIVATION_NAMES)}; "
        "name it with targets=Rule(..., activation=...), or write matrices='down' only"
    )


def _unknown(
    model: nn.Module, modules: dict[str, nn.Module], layers: int, width: int, rule: Rule | None
) -> str:
    looked = [rule.down] if rule else list(dict.fromkeys(one.down for one in RULES))
    ends: Sequence[str] = sorted(
        {
            ".".join(name.split(".")[-2:])
            for name, module in modules.items()
            if getattr(getattr(module, "weight", None), "dim", lambda: 0)() == 2
            and width in module.weight.shape  # type: ignore[operator]
        }
    )
    return (
        f"{type(model).__name__}: its {layers} layers have no down projection named {', '.join(looked)}; "
        f"name it with targets=Rule('END OF ITS NAME'); matrices of width {width}: {', '.join(ends[:12])}"
    )
