"""Does it stay finite? Training at three times the default rate, and inference far beyond the training length.

python stability.py train --variant hope --steps 2000 --resume FILE     (stop and go on as you like)
python stability.py infer --length 16384
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from hope_model import CMSConfig, LanguageModel, MemoryConfig, ModelConfig
from hope_model.state import metrics

LR, V = 3 * 1e-2, 64  # three times hope-train's AdamW rate


def build(variant: str, **memory: int) -> LanguageModel:
    torch.manual_seed(0)
    cms = CMSConfig(periods=[16, 64, 256])
    size = {"vocab_size": V, "dim": 32, "layers": 2, "head_dim": 16}
    return LanguageModel(ModelConfig(variant=variant, cms=cms, memory=MemoryConfig(**memory), **size))


def text(batch: int, length: int, seed: int) -> torch.Tensor:
    """Each sequence walks a graph of its own, 12 tokens with two successors each: only a memory can learn it."""
    draw = torch.Generator().manual_seed(seed)
    names = torch.stack([torch.randperm(V, generator=draw)[:12] for _ in range(batch)])
    successors = torch.randint(12, (batch, 12, 2), generator=draw)
    at, rows = torch.zeros(batch, dtype=torch.int64), []
    for pick in torch.randint(2, (length, batch), generator=draw):
        at = successors[torch.arange(batch), at, pick]
        rows.append(at)
    return names.gather(1, torch.stack(rows, 1))


def train(arguments: argparse.Namespace) -> dict[str, object]:
    """Steps of 2 x 128 tokens until done or out of time; the file holds weights, moments and the step."""
    model, end = build(arguments.variant), time.monotonic() + arguments.seconds
    names = [n for n, _ in model.named_parameters()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.1, betas=(0.9, 0.95))
    done = 0
    if arguments.resume and arguments.resume.exists():
        saved = load_file(arguments.resume)
        done = int(saved["done"])
        for n, p in zip(names, model.parameters(), strict=True):
            p.data.copy_(saved[n])
            moments = {"exp_avg": saved[f"{n}/1"], "exp_avg_sq": saved[f"{n}/2"]}
            optimizer.state[p] = {"step": torch.tensor(float(done)), **moments}
    losses = []
    while done < arguments.steps and time.monotonic() < end:
        tokens = text(2, 129, done)
        logits, state = model(tokens[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if not (math.isfinite(loss.item()) and math.isfinite(norm.item())):
            sys.exit(f"error: step {done}: loss {loss.item()}, gradient norm {norm.item()}")
        optimizer.step()
        losses.append(loss.item())
        done += 1
    if arguments.resume:
        kept = {"done": torch.tensor(done)}
        for n, p in zip(names, model.parameters(), strict=True):
            moments = optimizer.state[p]
            kept |= {n: p.data, f"{n}/1": moments["exp_avg"], f"{n}/2": moments["exp_avg_sq"]}
        save_file({n: x.contiguous() for n, x in kept.items()}, arguments.resume)
    last = losses[-100:]
    return {
        "step": done,
        "loss_last_100": sum(last) / len(last),
        "largest_loss": max(losses),
        **metrics(state),
    }


def infer(arguments: argparse.Namespace) -> dict[str, object]:
    """Random and constant tokens through fresh or trained weights; every chunk length from 1 to 256."""
    result: dict[str, object] = {}
    for chunk in (1, 4, 16, 64, 256):
        model = build(arguments.variant, chunk=chunk)
        if arguments.resume:
            saved = load_file(arguments.resume)
            for n, p in model.named_parameters():
                p.data.copy_(saved[n])
        length = arguments.length if chunk >= 16 else 16 * chunk * 16
        for name, tokens in (
            ("random", torch.randint(V, (1, length))),
            ("constant", torch.ones(1, length).long()),
        ):
            with torch.inference_mode():
                logits, state = model(tokens)
            if not logits.isfinite().all():
                sys.exit(f"error: chunk {chunk}, {length} {name} tokens: not finite")
            sizes = metrics(state)
            largest = round(float(logits.abs().max()), 2)
            result[f"chunk {chunk}, {length} {name}"] = largest, {n: round(x, 2) for n, x in sizes.items()}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("train", "infer"))
    parser.add_argument("--variant", default="hope")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop then, to go on later")
    parser.add_argument("--length", type=int, default=16_384)
    parser.add_argument("--resume", type=Path, help="weights and moments, read where they exist")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = train(arguments) if arguments.what == "train" else infer(arguments)
    print(json.dumps({"variant": arguments.variant, **result}, indent=1))


if __name__ == "__main__":
    main()
