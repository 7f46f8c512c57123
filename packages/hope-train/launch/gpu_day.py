"""All that a GPU lent for ten minutes should say: kernels against torch, decoding, then tokens/s, MFU and memory.

    python packages/hope-train/launch/gpu_day.py
    python packages/hope-train/launch/gpu_day.py --device cpu --dim 32 --layers 1 --lengths 64    # a rehearsal

Rows go to OUT/kernels.json, decoding.json and bench.json as soon as each is there; a part that fails is a row too.
"""

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from hope_data.files import write_json
from hope_model import LanguageModel
from hope_model.bench import bench_training, machine
from hope_model.bench_settings import TRAIN_VARIANTS, BenchSettings, model_config
from hope_model.counting import training_flops_per_token
from hope_model.ops.triton import launch
from hope_train.planning.hardware import peak_flops

KERNELS = ("titans", "self_modifying_titans", "hope")


def kernels(variant: str, settings: BenchSettings) -> dict[str, Any]:
    """One layer by Triton and by torch: largest difference of the results' largest entries, and seconds."""
    results, seconds = [], []
    for switch in ("0", "1"):
        os.environ[launch.SWITCH] = switch
        torch.manual_seed(0)
        model = LanguageModel(model_config(settings, variant)).to(settings.device)
        tokens = torch.randint(settings.vocab_size, (settings.batch_size, settings.length + 1)).to(
            settings.device
        )
        for _ in range(2):  # the first compiles
            start = time.perf_counter()
            logits, _ = model(tokens[:, :-1])
            loss = cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            results.append([x.detach().cpu() for x in (logits, *gradients)])
            seconds.append(time.perf_counter() - start)
    farthest = max(
        ((x - y).abs().max() / x.abs().max().clamp(min=1e-30)).item()
        for x, y in zip(results[1], results[3], strict=True)
    )
    applied = launch.available(tokens)
    return {"variant": variant, "triton": applied, "difference": farthest, "seconds_torch": seconds[1],
            "seconds_triton": seconds[3], "compiled_in": seconds[2]}  # fmt: skip


def decoding(variant: str, settings: BenchSettings) -> dict[str, Any]:
    """64 tokens one by one, by Triton and by torch: largest difference of logits, and microseconds a token."""
    logits, microseconds = [], []
    for switch in ("0", "1"):
        os.environ[launch.SWITCH] = switch
        torch.manual_seed(0)
        model = LanguageModel(model_config(settings, variant)).to(settings.device).eval()
        tokens = torch.randint(settings.vocab_size, (96, 1, 1)).to(settings.device)
        state, rows = None, []
        with torch.inference_mode():
            for n, token in enumerate(tokens):
                if n == len(tokens) - 64:  # kernels are compiled
                    rows[-1].cpu()  # waits for the device
                    start = time.perf_counter()
                row, state = model(token, state)
                rows.append(row)
            logits.append(torch.cat(rows).cpu())
        microseconds.append(1e6 * (time.perf_counter() - start) / 64)
    difference = ((logits[1] - logits[0]).abs().max() / logits[0].abs().max()).item()
    return {"variant": variant, "triton": launch.available(tokens), "difference": difference,
            "microseconds_torch": microseconds[0], "microseconds_triton": microseconds[1]}  # fmt: skip


def bench(variant: str, settings: BenchSettings) -> dict[str, Any]:
    """A Transformer and a variant in turns, with the share of the device's bf16 peak that training reaches."""
    pair = dataclasses.replace(settings, variants=tuple(dict.fromkeys(("transformer", variant))))
    row = bench_training(pair, lambda _: None)[-1]
    flops = row["tokens_per_s"] * training_flops_per_token(model_config(settings, variant), settings.length)
    peak = peak_flops(torch.device(settings.device))
    return {**row, "mfu": flops / peak if peak else None, **machine(settings)}


def main() -> int:
    """Do it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--lengths", default="2048,16384", help="tokens of a sequence; 16,384 tokens a batch")
    parser.add_argument("--minutes", type=float, default=9.5, help="nothing begins later")
    parser.add_argument("--out", type=Path, default=Path("reports/gpu"))
    arguments = parser.parse_args()
    if arguments.device != "cpu" and not torch.cuda.is_available():
        print("error: torch sees no CUDA device; --device cpu rehearses", file=sys.stderr)  # noqa: T201
        return 2
    end = time.perf_counter() + 60 * arguments.minutes
    lengths = [int(length) for length in arguments.lengths.split(",")]
    size = {"dim": arguments.dim, "head_dim": min(64, arguments.dim), "device": arguments.device}
    one = BenchSettings(**size, layers=1, length=lengths[0], batch_size=2, vocab_size=512)
    batch = 16_384 if arguments.device != "cpu" else 1  # tokens
    timed = [
        BenchSettings(**size, layers=arguments.layers, length=length, batch_size=max(1, batch // length), repeats=3,
                      precision="bf16")
        for length in lengths
    ]  # fmt: skip
    parts: list[tuple[str, Callable[..., dict[str, Any]], str, BenchSettings]] = [
        *(("kernels", kernels, variant, one) for variant in KERNELS),
        *(("decoding", decoding, variant, one) for variant in (*KERNELS, "gated_deltanet", "hope_deltanet")),
        *(("bench", bench, variant, settings) for settings in timed for variant in TRAIN_VARIANTS),
    ]
    rows: dict[str, list[dict[str, Any]]] = {"kernels": [], "decoding": [], "bench": []}
    for name, part, variant, settings in parts:
        if time.perf_counter() > end:
            row: dict[str, Any] = {"variant": variant, "length": settings.length, "error": "no time left"}
        else:
            try:
                row = part(variant, settings)
            except Exception as error:  # noqa: BLE001 (the next part may work)
                row = {
                    "variant": variant,
                    "length": settings.length,
                    "error": f"{type(error).__name__}: {error}"[:500],
                }
        os.environ.pop(launch.SWITCH, None)
        rows[name].append(row)
        write_json(arguments.out / f"{name}.json", {"rows": rows[name]})
        print(json.dumps(row), flush=True)  # noqa: T201
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
