"""Speed, memory and operations of every variant in one process and one run, as ratios to `transformer`."""

import gc
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from hope_model.bench_settings import UNBOUNDED, BenchSettings, cpu_name, model_config
from hope_model.counting import flops_per_token, parameters, training_flops_per_token
from hope_model.cpu import prepare_cpu
from hope_model.model import LanguageModel
from hope_model.ops.native.build import kernels
from hope_model.precision import pick_precision
from hope_model.state import State, n_bytes

REFERENCE = "transformer"


def machine(settings: BenchSettings) -> dict[str, Any]:
    """Where and with what the numbers were taken."""
    on_gpu = settings.device.startswith("cuda")
    name = torch.cuda.get_device_name() if on_gpu else cpu_name()
    compiled = not on_gpu and kernels("gated_delta") is not None
    return {
        "machine": name,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "kernels": "C++" if compiled else "torch",
        "precision": pick_precision(settings.precision, torch.device(settings.device)),
        "threads": settings.threads,
    }


def bench_training(settings: BenchSettings, report: Callable[[str], None]) -> list[dict[str, Any]]:
    """Whole train steps (forward, loss, backward, zero) of every variant, interleaved so that a slow minute hits all.

    Returns:
        One row per variant: tokens/s (median), ratio to the transformer, GFLOP/s of training, peak MB, forward FLOPs
        per token.
    """
    prepare_cpu()
    torch.set_num_threads(settings.threads)
    steps, rows = {}, []
    for variant in settings.variants:
        torch.manual_seed(settings.seed)
        model = LanguageModel(model_config(settings, variant)).to(settings.device)
        steps[variant] = _train_step(model, settings)
    peaks = {}
    for variant, step in steps.items():
        report(f"warm-up and memory of {variant}")
        peaks[variant] = _peak_mb(step, settings)
    seconds: dict[str, list[float]] = {variant: [] for variant in steps}
    for n in range(settings.repeats):
        for variant, step in steps.items():
            report(f"round {n + 1} of {settings.repeats}: {variant}")
            seconds[variant].append(_timed(step, settings))
    tokens = settings.batch_size * settings.length
    for variant in steps:
        ratios = [r / v for r, v in zip(seconds.get(REFERENCE, []), seconds[variant], strict=False)]
        config = model_config(settings, variant)
        rate = tokens / statistics.median(seconds[variant])
        rows.append(
            {
                "variant": variant,
                "length": settings.length,
                "tokens_per_s": round(rate, 1),
                "ratio": round(statistics.median(ratios), 3) if ratios else None,
                "ratio_low": round(min(ratios), 3) if ratios else None,
                "ratio_high": round(max(ratios), 3) if ratios else None,
                "gflops_per_s": round(rate * training_flops_per_token(config, settings.length) / 1e9, 3),
                "peak_mb": round(peaks[variant], 1),
                "peak_ratio": round(peaks[variant] / peaks[REFERENCE], 3) if REFERENCE in peaks else None,
                "mflops_per_token": round(flops_per_token(config, settings.length) / 1e6, 3),
                "parameters": parameters(config),
                "repeats": settings.repeats,
            }
        )
    return rows


def _train_step(model: LanguageModel, settings: BenchSettings) -> Callable[[], None]:
    shape = (settings.batch_size, settings.length + 1)
    tokens = torch.randint(settings.vocab_size, shape, device=settings.device)
    device = torch.device(settings.device)
    half = pick_precision(settings.precision, device) == "bf16"

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            logits, _ = model(tokens[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
        torch.autograd.backward(loss)
        model.zero_grad(set_to_none=True)

    return step


def _timed(step: Callable[[], None], settings: BenchSettings) -> float:
    _synchronise(settings)
    start = time.perf_counter()
    step()
    _synchronise(settings)
    return time.perf_counter() - start


def _synchronise(settings: BenchSettings) -> None:
    if settings.device.startswith("cuda"):
        torch.cuda.synchronize()


def _peak_mb(step: Callable[[], None], settings: BenchSettings) -> float:
    """Peak of one step above what was held before it: the device's own count, or every allocation on CPU."""
    if settings.device.startswith("cuda"):
        step()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    step()
    gc.collect()
    profile = torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU])
    with _silent():
        profile.start()
    step()
    with _silent():
        profile.stop()
    held = peak = 0
    recorded: Any = profile.profiler
    for event in recorded.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak / 2**20


@contextmanager
def _silent() -> Iterator[None]:
    """Standard error closed to what is written past Python: lines that the profiler prints for tracers."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def bench_decode(
    settings: BenchSettings, positions: Sequence[int], report: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Time of one token and bytes of the state at far positions, reached by feeding the stream itself.

    Variants with full attention are left out: their state grows by design.
    """
    torch.set_num_threads(settings.threads)
    rows: list[dict[str, Any]] = []
    for variant in (v for v in settings.variants if v not in UNBOUNDED):
        torch.manual_seed(settings.seed)
        model = LanguageModel(model_config(settings, variant)).to(settings.device).eval()
        state, states = model.initial(1), []
        with torch.inference_mode():
            for target in sorted(positions):
                state = _advance(model, state, target, settings, report)
                states.append(state)
            rows += _decode_rows(model, states, settings)
    return rows


def _advance(
    model: LanguageModel, state: State, target: int, settings: BenchSettings, report: Callable[[str], None]
) -> State:
    piece = 4096
    while state.position < target:
        n = min(piece, target - state.position)
        tokens = torch.randint(settings.vocab_size, (1, n), device=settings.device)
        _, state = model(tokens, state)
        report(f"{model.config.variant}: at token {state.position:,} of {target:,}")
    return state


def _decode_rows(model: LanguageModel, states: list[State], settings: BenchSettings) -> list[dict[str, Any]]:
    """Median over 256 tokens (every phase of chunk and segment is met), and the state's largest size on the way.

    Positions take turns at every token, so that a slow moment hits them all.
    """
    begun = [state.position for state in states]
    times: list[list[float]] = [[] for _ in states]
    sizes = [0] * len(states)
    tokens = torch.randint(settings.vocab_size, (256, 1, 1), device=settings.device)
    for token in tokens:
        for n, state in enumerate(states):
            _synchronise(settings)
            start = time.perf_counter()
            _, states[n] = model(token, state)
            _synchronise(settings)
            times[n].append(time.perf_counter() - start)
            sizes[n] = max(sizes[n], n_bytes(states[n]))
    medians = [statistics.median(t) for t in times]
    return [
        {
            "variant": model.config.variant,
            "position": position,
            "microseconds": round(1e6 * median, 1),
            "state_bytes": size,
            "time_ratio": round(median / medians[0], 3),
            "bytes_ratio": round(size / sizes[0], 3),
        }
        for position, median, size in zip(begun, medians, sizes, strict=True)
    ]
