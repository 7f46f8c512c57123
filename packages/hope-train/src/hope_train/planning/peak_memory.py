"""Peak memory of a training step, foreseen without allocating it, and measured.

The step runs on fake tensors, which know their size and hold nothing; what is alive at the worst moment is counted.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hope_model import LanguageModel, counting
from hope_model.cpu import prepare_cpu
from hope_model.ops.native.build import SWITCH, without_kernels
from hope_train.config import TrainConfig, dump, load
from hope_train.network import Network
from hope_train.optim import Optimizer

# What a process on a CPU holds, of what it needs at its worst moment: freed blocks are kept for speed, and the heap
# between them cannot be given back (1.20 to 1.51 in seven measurements at smoke scale, mean 1.35).
KEPT = 1.35
# Bytes per parameter that the optimisers remember, in float32.
SLOTS = {"adamw": 8, "muon": 4, "m3": 20}


class _Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of storages from their first use to their end."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        out = function(*arguments, **(keywords or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def activations(
    config: TrainConfig, sequences: int, length: int, *, bf16: bool, gradients: bool = False
) -> float:
    """Bytes that forward and backward of one part of a batch need beside weights and gradients.

    Counted for two and for three layers and drawn on in a straight line.

    Args:
        config: of the run.
        sequences: in one part.
        length: tokens predicted per sequence.
        bf16: under autocast.
        gradients: they are there from the start, as in every part but the first, and in DDP's buckets.
    """
    few, more = (
        foreseen_peak(config, layers, sequences, length, bf16=bf16, gradients=gradients) for layers in (2, 3)
    )
    return few + (config.model.layers - 2) * (more - few)


def foreseen_peak(
    config: TrainConfig, layers: int, sequences: int, length: int, *, bf16: bool, gradients: bool = False
) -> float:
    """`activations` of so many layers, counted."""
    with FakeTensorMode(allow_non_fake_inputs=True), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
        return counted_peak(config, layers, sequences, length, bf16=bf16, gradients=gradients)


def counted_peak(
    config: TrainConfig, layers: int, sequences: int, length: int, *, bf16: bool, gradients: bool = False
) -> float:
    """The same on whatever tensors are made here: real ones, unless a mode says otherwise. In torch, as on a GPU."""
    model_config = dataclasses.replace(config.model, layers=layers)
    with without_kernels(), _Alive() as alive:
        # Nothing is compiled here: what its kernels keep is not known.
        network = Network(LanguageModel(model_config), dataclasses.replace(config, compile=False))
        for p in network.parameters():
            p.grad = torch.zeros_like(p) if gradients else None
        tokens = torch.zeros(sequences, length, dtype=torch.int64)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            losses_BT, state = network(tokens, tokens)
        loss = losses_BT.mean()
        del losses_BT, state
        loss.backward()
        weights = sum(p.numel() * p.element_size() for p in network.parameters())
    return float(alive.peak - 2 * weights)


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device, at the worst moment of a step."""

    weights: float
    gradients: float
    optimizer: float
    activations: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations


def foresee(config: TrainConfig, devices: int, *, bf16: bool) -> Memory:
    """Memory of each device; FSDP and ZeRO gather weights and gradients whole, and share out what is kept."""
    groups = counting.parameter_groups(counting.build_meta(config.model))
    sizes = {name: sum(p.numel() for _, p in members) for name, members in groups.items()}
    slots = sizes["matrix"] * SLOTS[config.optim.name] + sizes["other"] * SLOTS["adamw"]
    weights = 4.0 * sum(sizes.values())
    share = 1 if config.parallel == "ddp" else devices
    kept = weights / share if share > 1 else 0.0
    sequences = max(1, config.batch_size // (devices * config.accumulate))
    early = config.accumulate > 1 or (devices > 1 and config.parallel == "ddp")
    alive = activations(config, sequences, config.length, bf16=bf16, gradients=early)
    # When activations are gone, logged steps hold the weights from before the update, and then either every
    # matrix's update (float32, and bfloat16 once orthogonal on an accelerator) or what has changed.
    updates = 6.0 * sizes["matrix"] if config.optim.name != "adamw" else 0.0
    late = (weights + max(updates, weights)) / share
    return Memory(weights + kept, weights + kept, slots / share, max(alive, late))


def measure(config: TrainConfig, *, keep: bool = False) -> float:
    """Peak bytes of two real steps of one part of a batch on this CPU, in torch as on a GPU, in a process of their own.

    Args:
        config: of the run.
        keep: count also what was freed and is kept for later, as a run does for speed (`prepare_cpu`);
            otherwise blocks from 64 KiB on go back at once, and the peak is what was needed.
    """
    environment = os.environ | {SWITCH: "0"} | ({} if keep else {"MALLOC_MMAP_THRESHOLD_": "65536"})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(dump(config), encoding="utf-8")
        command = [
            sys.executable,
            "-c",
            f"import sys; from {__name__} import _child; _child(sys.argv[1], keep=sys.argv[2] == 'True')",
        ]
        done = subprocess.run(
            [*command, str(path), str(keep)], stdout=subprocess.PIPE, text=True, check=True, env=environment
        )
    return float(json.loads(done.stdout.splitlines()[-1]))


def _child(path: str, *, keep: bool) -> None:
    config = load(Path(path))
    if keep:
        prepare_cpu()
    # Something tiny first: libraries set up what they need, and it shall not count.
    model = dataclasses.replace(config.model, vocab_size=64, dim=64, head_dim=32, layers=1)
    _steps(dataclasses.replace(config, model=model, length=64, lengths={}), 1)
    before = _resident("VmRSS")
    _steps(config, config.batch_size // config.accumulate)
    sys.stdout.write(json.dumps(_resident("VmHWM") - before) + "\n")


def _resident(key: str) -> int:
    """Bytes, now or at the peak; getrusage's peak would be the parent's where that was larger."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))


def _steps(config: TrainConfig, sequences: int) -> None:
    model = LanguageModel(config.model)
    network, optimizer = Network(model, config), Optimizer(counting.parameter_groups(model), config.optim)
    tokens = torch.randint(config.model.vocab_size, (sequences, config.length))
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16"):
            loss = network(tokens, tokens)[0].mean()
        loss.backward()
        optimizer.clip()
        optimizer.step(1.0)
