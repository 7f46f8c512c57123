"""One process or many: who am I, how weights are shared, and the few sums that everybody needs.

DTensor and FSDP2 are imported by those who share weights: they bring seconds of start-up with them.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hope_data.errors import InputError as DataInputError
from hope_model.errors import InputError

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor


@dataclass(frozen=True)
class World:
    """The processes of a run; torchrun and Slurm start them, alone there is one.

    Attributes:
        rank: of this process.
        size: number of processes.
        device: of this process.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this process is the one that talks and writes."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each value added up over processes."""
        if self.size == 1:
            return list(values)
        total: list[float] = self.total(
            torch.tensor(values, dtype=torch.float64, device=self.device)
        ).tolist()
        return total

    def total(self, values: Tensor) -> Tensor:
        """A tensor on this process's device, which now is the sum over processes; nothing waits for it."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, data: bytes) -> list[bytes]:
        """The bytes of every process, in their order; all of the same number."""
        if self.size == 1:
            return [data]
        mine = torch.frombuffer(bytearray(data), dtype=torch.uint8).to(self.device)
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(parts, mine)
        return [part.cpu().numpy().tobytes() for part in parts]

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """Around what may find wrong input in one process only: then all of them stop, none waits for another.

        Raises:
            InputError: here, or in another process.
        """
        error: DataInputError | InputError | None = None
        try:
            yield
        except (DataInputError, InputError) as found:
            error = found
        failed = self.sum([float(error is not None)])[0]
        if error:
            raise error
        if failed:
            raise InputError("another process of this run found wrong input and says which")

    def barrier(self) -> None:
        self.sum([0.0])


@contextmanager
def join(device: str) -> Iterator[World]:
    """Meet the processes that the launcher started (variables RANK, WORLD_SIZE, LOCAL_RANK).

    Args:
        device: `auto`, `cpu`, `cuda` or `cuda:1`; with several processes each takes the GPU of its local rank.

    Raises:
        InputError: a device that is not there.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size > 1 and device in ("auto", "cuda") and torch.cuda.is_available():
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    chosen = pick_device(device)
    if size == 1:
        yield World(0, 1, chosen)
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    dist.init_process_group("cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield World(dist.get_rank(), size, chosen)
    finally:
        dist.destroy_process_group()


def pick_device(name: str) -> torch.device:
    """`auto` takes the GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # not on `meta`, which computes nothing
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"device '{name}': {str(error).splitlines()[0]}") from None
    return device


def share(network: nn.Module, parallel: str, world: World, groups: Iterable[nn.Module] = ()) -> nn.Module:
    """The network as every process runs it; alone, the network itself.

    FSDP2 gets a group for each of `groups`, parts of the network, and one of all that is left. Weights stay whole from
    a group's first use, since writes of fast weights need them between two segments, to the end of its backward; then
    its gradients are summed while the next group's backward runs.
    """
    if world.size == 1:
        return network
    if parallel == "fsdp":
        from torch.distributed.device_mesh import init_device_mesh  # noqa: PLC0415
        from torch.distributed.fsdp import fully_shard  # noqa: PLC0415

        # States hold views, and nothing changes them in place.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
        mesh = init_device_mesh(world.device.type, (world.size,))
        wrapped = [fully_shard(group, mesh=mesh, reshard_after_forward=False) for group in groups]
        for (
            group
        ) in wrapped:  # all are whole already; by default one that is done would be gathered once more
            group.set_modules_to_backward_prefetch(wrapped[:1])
        fully_shard(network, mesh=mesh, reshard_after_forward=False)
        return network
    return DistributedDataParallel(network, gradient_as_bucket_view=True)


def accumulating(network: nn.Module, *, last: bool) -> AbstractContextManager[None]:
    """Around the forward and backward of one part of a batch: gradients meet after the last."""
    if _is_fsdp(network):
        network.set_requires_gradient_sync(last)
        network.set_reshard_after_backward(last)
    if _is_engine(network):
        network.set_gradient_accumulation_boundary(last)
    if isinstance(network, DistributedDataParallel) and not last:
        return network.no_sync()
    return nullcontext()


def backward(network: nn.Module, loss: Tensor) -> None:
    """Add a loss's gradients to those of the step."""
    if _is_engine(network):
        network.backward(loss)
    else:
        loss.backward()  # type: ignore[no-untyped-call]


def at_rest(network: nn.Module) -> None:
    """Give gathered weights back after a forward without backward."""
    for module in network.modules():
        if _is_fsdp(module):
            module.reshard()


def _is_fsdp(network: nn.Module) -> TypeGuard[FSDPModule]:
    return hasattr(network, "set_requires_gradient_sync")


def _is_engine(network: nn.Module) -> TypeGuard[DeepSpeedEngine]:
    return hasattr(network, "set_gradient_accumulation_boundary")


def is_shared(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether processes hold a part of it each."""
    return hasattr(tensor, "to_local")


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor; a collective where it is shared out."""
    return tensor.full_tensor() if is_shared(tensor) else tensor


def mine(tensor: Tensor) -> Tensor:
    """This process's part of a tensor."""
    return tensor.to_local() if is_shared(tensor) else tensor
