"""What `hope-model bench` measures, and on which processor; without torch, so that --help is quick."""

import platform
from dataclasses import dataclass, field
from pathlib import Path

from hope_model.config import PRESETS, VARIANTS, ModelConfig
from hope_model.ranges import one_of, within

TRAIN_VARIANTS = ("transformer", "gated_deltanet", "titans", "self_modifying_titans", "hope")
UNBOUNDED = ("transformer", "hope_attention")  # states that grow with every token


def _threads() -> int:
    import torch  # noqa: PLC0415 (slow to import, and --help needs none)

    return torch.get_num_threads()


@dataclass(frozen=True)
class BenchSettings:
    """What is measured; by default in the precision and on the threads that a training run takes."""

    variants: tuple[str, ...] = TRAIN_VARIANTS
    length: int = field(default=1024, metadata=within(1, 2**24))
    dim: int = 256
    layers: int = 4
    head_dim: int = 64
    vocab_size: int = 4096
    batch_size: int = field(default=4, metadata=within(1, 2**20))
    repeats: int = field(default=5, metadata=within(1))
    threads: int = field(default_factory=_threads, metadata=within(1, 1024))
    device: str = "cpu"
    precision: str = field(default="auto", metadata=one_of("auto", "fp32", "bf16"))
    seed: int = field(default=0, metadata=within(0, 2**63 - 1))


def model_config(settings: BenchSettings, variant: str) -> ModelConfig:
    """The configuration that is measured: all defaults beside the size."""
    size = {name: getattr(settings, name) for name in ("dim", "layers", "head_dim", "vocab_size")}
    return ModelConfig.named(variant, **size)


def choices() -> list[str]:
    """Variants, and presets that have no variant's name."""
    return list(dict.fromkeys((*VARIANTS, *PRESETS)))


def cpu_name() -> str:
    """Of the processor, as it tells it itself, with family and model: hosts hide generations behind one name."""
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
        rows = (line.partition(":")[::2] for line in first.splitlines())
        fields = {key.strip(): value.strip() for key, value in rows}
        return f"{fields['model name']} ({fields['cpu family']}/{fields['model']})"
    except (OSError, KeyError):
        return platform.processor() or platform.machine()
