"""Counts for `hope_model.launches`, in a process of its own: a JSON object of variants and sizes in, rows out."""

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hope_model import LanguageModel, ModelConfig
from hope_model.counting import memory_flops
from hope_model.ops.triton import launch

STILL = {"empty", "new_empty", "empty_like", "empty_strided", "detach", "promote_types", "alias", "_unsafe_view",
         "lift_fresh", "is_same_size"}  # fmt: skip
# Of an H200: 40 % of what it multiplies a second (989 and 495 TFLOP in bfloat16 and TF32), 70 % of its memory's bytes.
HALF, SINGLE, MEMORY = 0.4 * 989e12, 0.4 * 495e12, 0.7 * 4.8e12
WRITTEN = {"copy_", "zero_", "fill_"}  # operators that do not read what they change
SEVERAL = {"embedding_dense_backward": 4, "rms_norm_back": 2, "attention_back": 3}  # kernels of one operator

LIBRARY: Any = torch.library
library = LIBRARY.Library("hope_launches", "DEF")
for schema in (
    "rms_norm(Tensor x, Tensor w) -> Tensor",
    "rms_norm_back(Tensor g, Tensor x, Tensor w) -> (Tensor, Tensor)",
    "attention(Tensor q, Tensor k, Tensor v) -> Tensor",
    "attention_back(Tensor g, Tensor q, Tensor k, Tensor v) -> (Tensor, Tensor, Tensor)",
):
    library.define(schema)
    first = 0 if "_back" not in schema else 1
    count = schema.split("->")[1].count("Tensor")
    torch.library.register_fake(
        f"hope_launches::{schema.split('(')[0]}",
        lambda *x, first=first, count=count: (
            torch.empty_like(x[0]) if count == 1 else tuple(map(torch.empty_like, x[first:]))
        ),
        lib=library,
    )
# A build for CPUs would take it apart on any other device.
aten = LIBRARY.Library("aten", "IMPL")
aten.impl("silu_backward", lambda _, x: torch.empty_like(x), "CUDA")


class Fused(torch.autograd.Function):
    """What CUDA has as one kernel, and a build for CPUs takes apart."""

    @staticmethod
    def forward(ctx: Any, name: str, *tensors: Tensor) -> Tensor:
        ctx.name = name
        ctx.save_for_backward(*tensors)
        result: Tensor = getattr(torch.ops.hope_launches, name)(*tensors)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        return None, *getattr(torch.ops.hope_launches, f"{ctx.name}_back")(*grads, *ctx.saved_tensors)


FUSED: Callable[..., Any] = Fused.apply


def attention(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> Tensor:
    """In the precision of autocast, of any mask."""
    half = (x.to(torch.bfloat16) if torch.is_autocast_enabled("cuda") else x for x in (q, k, v))
    result: Tensor = FUSED("attention", *half)
    return result


class Launches(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operators that make or change a tensor on the device, and estimates what it takes for them.

    Args:
        memory_flops: Of a token in the forward of a layer's memory kernel.
    """

    def __init__(self, memory_flops: float = 0.0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count, self.flops, self.seconds, self.memory_flops = 0, 0.0, 0.0, memory_flops

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, result = func.overloadpacket.__name__, func(*args, **kwargs or {})
        if func.namespace != "prim" and name not in STILL and not func.is_view:
            self.count += SEVERAL.get(name, 1)
            made = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
            read = args[1:] if name in WRITTEN else args
            given = [x for x in tree_leaves(read) if isinstance(x, Tensor)]
            half = any(x.dtype == torch.bfloat16 for x in made)
            flops = self._flops(name, args)
            self.flops += flops
            self.seconds += max(flops / (HALF if half else SINGLE), sum(map(_bytes, made + given)) / MEMORY)
        return result

    def _flops(self, name: str, args: Any) -> float:
        if name in ("mm", "bmm", "addmm", "baddbmm"):
            x, y = args[-2:] if name in ("mm", "bmm") else args[1:3]
            return float(2 * x.numel() * y.shape[-1])
        if name in ("attention", "attention_back"):
            q, k = args[-3:-1]
            # Of a square a half of all pairs; elsewhere a mask hides few.
            pairs = q.numel() * k.shape[-2] / (1 + (q.shape[-2] == k.shape[-2]))
            return float((4 if name == "attention" else 10) * pairs)
        if name == "triton" and args[0].startswith(("self_modifying", "titans")):
            # A backward redoes its chunks; what other kernels take off it is counted there.
            (N, H, T), part = args[2][:3], args[0].rsplit("_", 1)[-1]
            return float(self.memory_flops * N / H * T * {"forward": 1, "backward": 3}.get(part, 0))
        return 0.0


def _bytes(x: Tensor) -> int:
    """Of a tensor that may repeat what it holds."""
    return min(x.numel() * x.element_size(), x.untyped_storage().nbytes())


def model(variant: str, work: dict[str, Any], layers: int) -> LanguageModel:
    """Of a pilot's width, or as configured, on the device."""
    if "config" in work:
        config = ModelConfig.from_dict(work["config"] | {"layers": layers})
    else:
        size = {name: work[name] for name in ("vocab_size", "dim", "head_dim")}
        config = ModelConfig.named(variant, layers=layers, cms={"smallest": work["smallest"]}, **size)
    with torch.device("cuda"):
        return LanguageModel(config)


def training(network: LanguageModel, work: dict[str, Any]) -> tuple[float, ...]:
    """Launches of a microbatch that adds to gradients, forward and backward; seconds of the device; products' FLOPs."""
    tokens = torch.zeros(work["batch_size"], work["length"] + 1, dtype=torch.int64, device="cuda")
    for weight in network.parameters():
        weight.grad = torch.empty_like(weight)
    with Launches(sum(memory_flops(network.config))) as seen:
        with torch.autocast("cuda", torch.bfloat16, enabled=work.get("bf16", True)):
            logits, _ = network(tokens[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
        forward = seen.count
        torch.autograd.backward(loss)
    return forward, seen.count - forward, seen.seconds, seen.flops


def decoding(network: LanguageModel) -> int:
    """Of a token inside a memory's chunk and a segment, as most are: the third of a stream.

    Not in inference mode, where an operator that may return its input (a cast, a copy) is not seen.
    """
    state, token, count = None, torch.zeros(1, 1, dtype=torch.int64, device="cuda"), 0
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        for _ in range(3):
            with Launches() as seen:
                _, state = network(token, state)
            count = seen.count
    return count


def row(variant: str, work: dict[str, Any]) -> dict[str, Any]:
    """Layers are alike: those of one and of two say all."""
    trained, decoded = [], []
    for layers in (1, 2):
        with FakeTensorMode():
            network = model(variant, work, layers)
            trained.append(training(network, work))
            decoded.append(0 if "config" in work else decoding(network.eval()))
    forward, backward, seconds, flops = (
        one + (work["layers"] - 1) * (two - one) for one, two in zip(*trained, strict=True)
    )
    return {
        "variant": variant,
        "forward": forward,
        "backward": backward,
        "launches": forward + backward,
        "device_ms": round(1000 * seconds, 1),
        "tflop": round(flops / 1e12, 3),
        "decode_per_layer": decoded[1] - decoded[0],
    }


def main() -> None:
    work = json.loads(sys.argv[-1])
    for owner, name, stand_in in (
        (F, "rms_norm", lambda x, _, weight=None, eps=None: FUSED("rms_norm", x, weight)),  # noqa: ARG005
        (F, "scaled_dot_product_attention", attention),
        (torch.cuda, "is_bf16_supported", lambda *_, **__: True),
        (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
        (launch, "installed", lambda: True),  # counted, not run
    ):
        setattr(owner, name, stand_in)
    sys.stdout.write(json.dumps([row(variant, work) for variant in work["variants"]]))


if __name__ == "__main__":
    main()
