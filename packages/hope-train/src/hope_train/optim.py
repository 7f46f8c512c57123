"""The outer optimiser: Muon on hidden matrices with AdamW on the rest, or AdamW alone, as one object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from hope_train.config import OptimConfig

Named = Sequence[tuple[str, nn.Parameter]]


class Optimizer:
    """All optimisers of a run behind one step.

    Args:
        groups: named parameters under `matrix` and `other`, as `hope_model.counting.parameter_groups` gives.
        config: learning rates and the rest.
    """

    def __init__(self, groups: Mapping[str, Named], config: OptimConfig) -> None:
        muon = list(groups["matrix"]) if config.name == "muon" else []
        adamw = [*groups["other"], *([] if muon else groups["matrix"])]
        self.names = {"muon": [n for n, _ in muon], "adamw": [n for n, _ in adamw]}
        self.parameters = [p for _, p in (*muon, *adamw)]
        self._parts: list[tuple[torch.optim.Optimizer, dict[int, str]]] = []
        if muon:
            self._add(
                torch.optim.Muon(
                    [p for _, p in muon],
                    lr=config.matrix_lr,
                    weight_decay=config.weight_decay,
                    momentum=config.momentum,
                    adjust_lr_fn="match_rms_adamw",
                ),
                muon,
            )
        if adamw:
            self._add(
                torch.optim.AdamW(
                    [
                        {"params": [p for _, p in adamw if p.ndim >= 2], "weight_decay": config.weight_decay},
                        {"params": [p for _, p in adamw if p.ndim < 2], "weight_decay": 0.0},
                    ],
                    lr=config.lr,
                    betas=(config.beta1, config.beta2),
                    eps=config.eps,
                    fused=True,
                ),
                adamw,
            )
        self._clip = config.clip or float("inf")

    def _add(self, part: torch.optim.Optimizer, named: Named) -> None:
        for group in part.param_groups:
            group["peak"] = group["lr"]
        self._parts.append((part, {id(p): n for n, p in named}))

    def counts(self) -> dict[str, int]:
        """Number of parameters under each optimiser."""
        return {
            type(part).__name__.lower(): sum(p.numel() for g in part.param_groups for p in g["params"])
            for part, _ in self._parts
        }

    def clip(self) -> Tensor:
        """Clip the global gradient norm; return what it was before, as a scalar tensor."""
        return nn.utils.clip_grad_norm_(self.parameters, self._clip)

    def step(self, factor: float) -> None:
        """One step at this factor of the peak learning rates; gradients are gone afterwards."""
        for part, _ in self._parts:
            for group in part.param_groups:
                group["lr"] = group["peak"] * factor
            part.step()
            part.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """Everything the optimisers remember, as `parameter/slot`."""
        return {
            f"{names[id(p)]}/{slot}": value
            for part, names in self._parts
            for p, slots in part.state.items()
            for slot, value in slots.items()
        }

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `tensors` gave; parameters must carry the same names."""
        slots: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            name, slot = key.rsplit("/", 1)
            slots.setdefault(name, {})[slot] = value
        for part, names in self._parts:
            order = [names[id(p)] for group in part.param_groups for p in group["params"]]
            state = {i: slots[name] for i, name in enumerate(order) if name in slots}
            part.load_state_dict({"state": state, "param_groups": part.state_dict()["param_groups"]})
