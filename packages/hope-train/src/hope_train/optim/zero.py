"""DeepSpeed's ZeRO: optimiser (stage 1), gradients (2) and weights (3) in slices over processes; extra `deepspeed`.

A slice is a run of a flattened group's elements, so only optimisers that look at single elements work on it: AdamW,
not Muon or M3. Checkpoints are the loop's own and hold whole tensors, so that a run can go on under any `parallel`;
DeepSpeed's pickles are not used.
"""

import importlib
import logging
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hope_model.errors import InputError
from hope_train.config import OptimConfig, TrainConfig
from hope_train.optim import Named, Optimizer, Read
from hope_train.parallel.distributed import World

SLOTS = ("exp_avg", "exp_avg_sq")
ANY_SIZE = 2**40
STAGES = {"zero1": 1, "zero2": 2, "zero3": 3}


def share(
    network: nn.Module, groups: Mapping[str, Named], config: TrainConfig, world: World, precision: str
) -> tuple[nn.Module, "ZeroOptimizer"]:
    """The network as every process runs it, and its optimiser.

    Under stage 3 all weights are gathered after a step and sliced before the next, for the reasons of
    `parallel.distributed.share`: DeepSpeed's own hooks would gather a module's weights around its forward only.

    Args:
        network: with whole weights.
        groups: its named parameters, as `Optimizer` takes them.
        config: of the run.
        world: two processes or more.
        precision: `fp32` or `bf16` (autocast; gradients meet in float32 as under DDP).

    Raises:
        InputError: DeepSpeed is not there.
    """
    deepspeed = _import(config.parallel)
    optimizer = ZeroOptimizer(groups, config.optim, STAGES[config.parallel], world)
    engine, optimizer.zero, *_ = deepspeed.initialize(
        model=network,
        optimizer=optimizer.adamw,
        config={
            # The loop splits batches itself, and tells the engine which part is the last.
            "train_micro_batch_size_per_gpu": config.batch_size // world.size,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": config.optim.clip,
            "zero_optimization": {"stage": optimizer.stage, "stage3_param_persistence_threshold": ANY_SIZE},
            "zero_allow_untested_optimizer": True,
            "torch_autocast": {
                "enabled": precision == "bf16",
                "dtype": "bfloat16",
                "lower_precision_safe_modules": [],
            },
            "steps_per_print": None,
        },
    )
    optimizer.engine = engine
    if optimizer.stage == 3:
        everything: list[Any] = list(network.parameters())
        everything[0].all_gather(everything)
    return engine, optimizer


def _import(parallel: str) -> Any:
    """DeepSpeed with its kernels left unbuilt and its log quiet."""
    os.environ.setdefault("LOCAL_RANK", "0")
    try:
        deepspeed = importlib.import_module("deepspeed")
    except ImportError as error:
        raise InputError(
            f"'parallel' {parallel} needs DeepSpeed ({error}): DS_BUILD_OPS=0 pip install 'hope-train[deepspeed]', "
            "or choose ddp or fsdp"
        ) from None
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    return deepspeed


class ZeroOptimizer(Optimizer):
    """AdamW on this process's slice of everything, inside DeepSpeed's engine.

    Attributes:
        stage: of ZeRO.
        engine: steps.
        zero: DeepSpeed's optimiser around AdamW.
    """

    engine: Any
    zero: Any

    def __init__(self, groups: Mapping[str, Named], config: OptimConfig, stage: int, world: World) -> None:
        super().__init__(groups, config)
        self.stage, self._world, self._factor = stage, world, 1.0
        (self.adamw,) = self._parts

    @property
    def sharded(self) -> bool:
        """Each process holds a slice."""
        return True

    def clip(self) -> Tensor:
        """The global gradient norm, as a scalar tensor; clipping itself is part of the engine's step."""
        self._factor = 1.0
        squares = sum(self.squares(self.gradients()))
        norm = self._world.sum([squares])[0] ** 0.5
        # The step clips by the same rule.
        self._factor = min(1.0, self._clip / (norm + 1e-6))
        return torch.tensor(norm)

    def step(self, factor: float, exceptions: Sequence[float] = ()) -> None:
        self._pace([*exceptions, factor])
        self.engine.step()

    def weights(self) -> dict[str, Tensor]:
        """This process's slice of every parameter, flat, float32."""
        return {name: self._slice(p) for name, p in self.named.items()}

    def gradients(self) -> dict[str, Tensor]:
        """This process's slice of every gradient, flat, after clipping."""
        return {name: self._gradient(p) * self._factor for name, p in self.named.items()}

    def whole(self, name: str) -> Tensor:
        """All of one parameter, float32; a collective."""
        return self._gather(name)

    @torch.no_grad()
    def load_weights(self, read: Read) -> None:
        """Take every parameter from `read`, into the model and AdamW's own copy."""
        for name, p in self.named.items():
            value = read(name, None).to(self._world.device)
            p.copy_(value)
            self._put(p, value, None)
            if self.stage == 3:
                first, count = self._first(p), self._count(p)
                p.ds_tensor[:count].copy_(value.flatten()[first : first + count])  # type: ignore[attr-defined]

    def tensors(self) -> dict[str, Tensor]:
        """As `Optimizer.tensors`, whole tensors on the first process and nothing on the others."""
        if not self.adamw.state:
            return {}
        step = next(iter(self.adamw.state.values()))["step"]
        parts: dict[str, Tensor] = {}
        for name in self.named:
            for slot in SLOTS:
                full = self._gather(name, slot)
                if self._world.main:
                    parts[f"{name}/{slot}"] = full.cpu()
            if self._world.main:
                parts[f"{name}/step"] = step.clone()
        return parts

    def load_tensors(self, keys: Sequence[str], read: Read) -> None:
        if not keys:
            return
        step = read(next(key for key in keys if key.endswith("/step")), None)
        for flat in self._flats():
            slots = {slot: torch.zeros_like(flat) for slot in SLOTS}
            self.adamw.state[flat] = {"step": step.clone().to(flat.device), **slots}
        for name, p in self.named.items():
            for slot in SLOTS:
                self._put(p, read(f"{name}/{slot}", None), slot)

    def _flats(self) -> list[Tensor]:
        """This process's slice of every group."""
        zero = self.zero
        flats = zero.fp32_partitioned_groups_flat if self.stage == 3 else zero.single_partition_of_fp32_groups
        return list(flats)

    def _gather(self, name: str, slot: str | None = None) -> Tensor:
        """All of a parameter, or of what AdamW remembers of it, from everybody's slices."""
        p = self.named[name]
        mine = self._slice(p, slot)
        full = torch.zeros(math.prod(self.shapes[name]), device=self._world.device)
        first = self._first(p)
        full[first : first + mine.numel()] = mine
        dist.all_reduce(full)
        return full.view(self.shapes[name])

    def _put(self, p: Any, value: Tensor, slot: str | None) -> None:
        """This process's slice of `value` into AdamW's copy of a parameter, or what AdamW remembers of it."""
        mine, first = self._slice(p, slot), self._first(p)
        mine.copy_(value.flatten()[first : first + mine.numel()])

    def _slice(self, p: Any, slot: str | None = None) -> Tensor:
        """A view, flat."""
        from deepspeed import utils  # noqa: PLC0415

        if self.stage == 3:
            get = utils.safe_get_local_optimizer_state
            local: Tensor = get(p, slot) if slot else utils.safe_get_local_fp32_param(p)
            return local.detach()[: self._count(p)]
        part = p._hp_mapping
        if part is None:
            return torch.empty(0, device=self._world.device)
        # DeepSpeed's own way to a slot serves the first group only (0.19.8: linked before the others have stepped).
        flat = self._flats()[part.param_group_index]
        where = part.get_hp_fragment_address()
        whole: Tensor = self.adamw.state[flat][slot] if slot else flat.detach()
        return whole.narrow(0, where.start, where.numel)

    def _gradient(self, p: Any) -> Tensor:
        from deepspeed import utils  # noqa: PLC0415

        if self.stage == 3:
            local: Tensor = utils.safe_get_local_grad(p)
            return local[: self._count(p)]
        if p._hp_mapping is None:
            return torch.empty(0, device=self._world.device)
        part: Tensor = p._hp_mapping.get_lp_grad_fragment(p._index_in_param_group)
        return part.float().flatten()

    def _first(self, p: Any) -> int:
        """Place of the slice in the flat parameter."""
        if self.stage == 3:
            return min(self._world.rank * int(p.ds_tensor.numel()), int(p.ds_numel))
        return 0 if p._hp_mapping is None else int(p._hp_mapping.lp_fragment_address.start)

    def _count(self, p: Any) -> int:
        """Elements of the slice under stage 3; the last one may end in padding."""
        return min(int(p.ds_tensor.numel()), int(p.ds_numel) - self._first(p))
