"""What a run will cost: parameters, operations, memory, time, and whether it fits."""

from typing import Any

from hope_model import counting
from hope_model.errors import InputError
from hope_model.launches import LAUNCH_SECONDS, training_launches
from hope_train.config import TrainConfig
from hope_train.planning.hardware import DEVICES, GIB
from hope_train.planning.peak_memory import KEPT, SLOTS, foresee, measure


def plan(config: TrainConfig, device: str, count: int) -> dict[str, Any]:
    """Numbers for one configuration on `count` devices of one kind.

    Args:
        config: of the run.
        device: a key of `hardware.DEVICES`.
        count: number of devices.

    Returns:
        Flat numbers; memory per device in GiB, `launches` of one part of a batch on one device (0: not counted),
        `tokens_per_s` of all devices at the assumed share of their peak, with `LAUNCH_SECONDS` for each launch.

    Raises:
        InputError: a device that is not in the table.
    """
    if count < 1:
        raise InputError(f"--count {count}: it must be at least 1")
    if device not in DEVICES:
        raise InputError(f"--device {device}: choose one of {', '.join(DEVICES)}")
    kind = DEVICES[device]
    groups = counting.parameter_groups(counting.build_meta(config.model))
    matrix, other = (sum(p.numel() for _, p in groups[name]) for name in ("matrix", "other"))
    memory = foresee(config, count, bf16=config.precision != "fp32")
    flops = counting.training_flops_per_token(config.model, config.length)
    again = counting.flops_per_token(config.model, config.length) if config.activation_checkpoint else 0.0
    bf16 = config.precision != "fp32"
    sequences = max(1, config.batch_size // (count * config.accumulate))
    started = _launches(config, sequences, bf16=bf16)
    part = sequences * config.length
    seconds = part * (flops + again) / (kind.flops * kind.share) + started * LAUNCH_SECONDS
    speed = count * part / seconds
    tokens = config.steps * config.batch_size * config.length
    saved = 4 * (matrix + other) + matrix * SLOTS[config.optim.name] + other * SLOTS["adamw"]
    return {
        "run": config.run,
        "variant": config.model.variant,
        "device": device,
        "count": count,
        "parameters": matrix + other,
        "parameters_matrix": matrix,
        "flops_per_token": flops,
        "tokens": tokens,
        "weights_gib": memory.weights / GIB,
        "gradients_gib": memory.gradients / GIB,
        "optimizer_gib": memory.optimizer / GIB,
        "activations_gib": memory.activations / GIB,
        "total_gib": memory.total / GIB,
        "fits": memory.total < 0.92 * kind.memory,
        "share_of_peak": kind.share,
        "launches": started,
        "tokens_per_s": speed,
        "days": tokens / speed / 86400,
        "checkpoint_gib": saved / GIB,
    }


def _launches(config: TrainConfig, sequences: int, *, bf16: bool) -> int:
    """Of forward, backward, and the forward again where blocks are recomputed; not of the optimiser."""
    try:
        forward, backward = training_launches(config.model, sequences, config.length, bf16=bf16)
    except InputError:
        return 0
    return forward * (2 if config.activation_checkpoint else 1) + backward


def check(config: TrainConfig) -> dict[str, float]:
    """One part of a batch on this CPU, foreseen and measured, in GiB: in use, and held by the process (`KEPT`)."""
    foreseen = foresee(config, 1, bf16=config.precision == "bf16").total / GIB
    measured, resident = (measure(config, keep=keep) / GIB for keep in (False, True))
    return {
        "foreseen_gib": foreseen,
        "measured_gib": measured,
        "ratio": foreseen / measured,
        "resident_gib": resident,
        "resident_ratio": KEPT * foreseen / resident,
    }


def table(numbers: dict[str, Any]) -> str:
    n = numbers
    return "\n".join(
        (
            f"{n['run']} ({n['variant']}) on {n['count']} x {n['device']}",
            f"  parameters      {n['parameters']:,} ({n['parameters_matrix']:,} in hidden matrices)",
            f"  FLOPs per token {n['flops_per_token']:.3g}, tokens {n['tokens']:,}",
            f"  memory per GPU  {n['total_gib']:.1f} GiB: weights {n['weights_gib']:.1f}, gradients "
            f"{n['gradients_gib']:.1f}, optimiser {n['optimizer_gib']:.1f}, activations {n['activations_gib']:.1f}; "
            + ("fits" if n["fits"] else "DOES NOT FIT: raise accumulate or set activation_checkpoint"),
            f"  time            {n['days']:.2f} days at {n['tokens_per_s']:,.0f} tokens/s, assuming "
            f"{n['share_of_peak']:.0%} of the bf16 peak and "
            + (
                f"{LAUNCH_SECONDS * 1e6:g} µs for each of {n['launches']:,} launches"
                if n["launches"]
                else "no time for launches, which are counted where there is a C++ compiler"
            ),
            f"  checkpoint      {n['checkpoint_gib']:.2f} GiB",
        )
    )
