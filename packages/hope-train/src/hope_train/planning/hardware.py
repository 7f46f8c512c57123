"""What accelerators can do, for `plan` and for the model FLOPs utilisation of a run."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Device:
    """One kind of accelerator.

    Attributes:
        flops: dense bf16 floating-point operations per second, from the maker's data sheet.
        memory: bytes.
        share: of `flops` that `plan` assumes a run reaches.
    """

    flops: float
    memory: float
    share: float = 0.35


GIB = 2**30
# The key is part of the name that CUDA gives; the first that fits counts.
DEVICES = {
    "H200": Device(989e12, 141e9),
    "H100": Device(989e12, 80e9),
    "A100": Device(312e12, 80e9),
    "L40S": Device(362e12, 48e9),
    "RTX 6000": Device(182e12, 48e9),
    "RTX 4090": Device(165e12, 24e9),
    "RTX 3090": Device(71e12, 24e9),
}


def peak_flops(device: torch.device) -> float:
    """Of one device in bf16; 0 where unknown, as for CPUs."""
    if device.type != "cuda":
        return 0.0
    name = torch.cuda.get_device_name(device)
    return next((kind.flops for key, kind in DEVICES.items() if key in name), 0.0)
