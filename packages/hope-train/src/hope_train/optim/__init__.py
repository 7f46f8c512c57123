"""The outer optimiser: Muon or M3 on hidden matrices with AdamW on the rest, or AdamW alone, as one object."""

import math
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from hope_model.errors import InputError
from hope_train.config import OptimConfig
from hope_train.optim.muon import M3, Muon
from hope_train.parallel.distributed import is_shared, mine, whole

Named = Sequence[tuple[str, nn.Parameter]]
# A tensor by name, laid out as another is; whole where there is none.
Read = Callable[[str, Tensor | None], Tensor]


class Optimizer:
    """All optimisers of a run behind one step.

    Args:
        groups: named parameters under `matrix` and `other`, as `hope_model.counting.parameter_groups` gives.
        config: learning rates and the rest.

    Raises:
        InputError: an exception that fits no parameter.
    """

    def __init__(self, groups: Mapping[str, Named], config: OptimConfig) -> None:
        matrix = [] if config.name == "adamw" else list(groups["matrix"])
        adamw = [*groups["other"], *([] if matrix else groups["matrix"])]
        self.named = dict((*matrix, *adamw))
        self.shapes = {name: list(p.shape) for name, p in self.named.items()}
        self.parameters = list(self.named.values())
        self.names = {config.name: [n for n, _ in matrix]} if matrix else {}
        self.names["adamw"] = [n for n, _ in adamw]
        self._config = config
        for rule in config.groups:
            if not any(fnmatchcase(name, rule.match) for name in self.named):
                raise InputError(
                    f"optim.groups: '{rule.match}' fits no parameter; names are such as {next(iter(self.named))}"
                )
        self._parts: list[torch.optim.Optimizer] = []
        if matrix:
            self._parts.append(_matrix_optimizer(config, self._split(matrix)))
        if adamw:
            betas = (config.beta1, config.beta2)
            groups_ = [
                *self._split([(n, p) for n, p in adamw if p.ndim >= 2]),
                *({**g, "weight_decay": 0.0} for g in self._split([(n, p) for n, p in adamw if p.ndim < 2])),
            ]
            decay = config.weight_decay
            self._parts.append(torch.optim.AdamW(groups_, config.lr, betas, config.eps, decay, fused=True))
        for part in self._parts:
            for group in part.param_groups:
                group["peak"] = group["lr"]
        self._clip = config.clip or float("inf")

    def _split(self, named: Named) -> list[dict[str, object]]:
        """Parameter groups by the exception that fits them; -1: none."""
        rules = [rule.match for rule in self._config.groups]
        parts: dict[int, list[nn.Parameter]] = {}
        for name, p in named:
            rule = next((i for i, pattern in enumerate(rules) if fnmatchcase(name, pattern)), -1)
            parts.setdefault(rule, []).append(p)
        return [{"params": params, "rule": rule} for rule, params in parts.items()]

    def counts(self) -> dict[str, int]:
        """Number of parameters under each optimiser."""
        return {
            kind: sum(math.prod(self.shapes[n]) for n in names) for kind, names in self.names.items() if names
        }

    def clip(self) -> Tensor:
        """Clip the global gradient norm; return what it was before, as a scalar tensor."""
        return whole(nn.utils.clip_grad_norm_(self.parameters, self._clip))

    def step(self, factor: float, exceptions: Sequence[float] = ()) -> None:
        """One step; gradients are gone afterwards.

        Args:
            factor: of the peak learning rates.
            exceptions: the same for each of `OptimConfig.groups`.
        """
        self._pace([*exceptions, factor])
        for part in self._parts:
            part.step()
            part.zero_grad(set_to_none=True)

    def _pace(self, factors: Sequence[float]) -> None:
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = group["peak"] * factors[group["rule"]]

    def weights(self) -> dict[str, Tensor]:
        """This process's part of every parameter, float32."""
        return {name: mine(p.detach()) for name, p in self.named.items()}

    def gradients(self) -> dict[str, Tensor]:
        """This process's part of every gradient there is, after clipping."""
        return {name: mine(p.grad) for name, p in self.named.items() if p.grad is not None}

    def whole(self, name: str) -> Tensor:
        """All of one parameter; a collective where it is shared out."""
        return whole(self.named[name].detach())

    @torch.no_grad()
    def load_weights(self, read: Read) -> None:
        """Take every parameter from `read`, laid out over processes as it is here."""
        for name, p in self.named.items():
            p.copy_(read(name, p))

    @property
    def sharded(self) -> bool:
        """Whether each process holds a part of the parameters only."""
        return is_shared(self.parameters[0])

    def squares(self, values: Mapping[str, Tensor]) -> list[float]:
        """Per optimiser, the sum of squares of `values`, which go by parameter name."""
        kinds = [
            [values[n].float().square().sum() for n in names if n in values] for names in self.names.values()
        ]
        return [float(torch.stack(parts).sum()) if parts else 0.0 for parts in kinds]

    def tensors(self) -> dict[str, Tensor]:
        """Everything the optimisers remember, as `parameter/slot`; with shared weights each process calls it."""
        names: dict[Tensor, str] = {p: n for n, p in self.named.items()}
        return {
            f"{names[p]}/{slot}": value
            for part in self._parts
            for p, slots in part.state.items()
            for slot, value in slots.items()
        }

    def load_tensors(self, keys: Sequence[str], read: Read) -> None:
        """Take back what `tensors` gave under these keys; parameters must carry the same names."""
        slots: dict[str, dict[str, Tensor]] = {}
        for key in keys:
            name, slot = key.rsplit("/", 1)
            slots.setdefault(name, {})[slot] = read(key, self.named[name])
        names = {p: n for n, p in self.named.items()}
        for part in self._parts:
            order = [names[p] for group in part.param_groups for p in group["params"]]
            state = {i: slots[name] for i, name in enumerate(order) if name in slots}
            part.load_state_dict({"state": state, "param_groups": part.state_dict()["param_groups"]})


def _matrix_optimizer(config: OptimConfig, groups: list[dict[str, object]]) -> torch.optim.Optimizer:
    if config.name == "muon":
        return Muon(groups, config.matrix_lr, config.weight_decay, config.momentum)
    return M3(
        groups,
        config.matrix_lr,
        config.weight_decay,
        momentum=config.momentum,
        beta2=config.beta2,
        eps=config.eps,
        every=config.slow_every,
        slow_momentum=config.slow_momentum,
        share=config.slow_share,
    )
