"""Can a model track parity? Trained at T = 32, tested at 32, 64 and 128 (arXiv 2411.12537; figures in the README).

python parity.py hope --steps 400 --seed 0

T = 32 is one chunk of a deep memory: what writing between chunks does is never seen. So every step draws its chunk
length from `--chunks`; tests use the default one. Attention and gated DeltaNet have none.
"""

import argparse
import json
import sys

import torch
import torch.nn.functional as F

from hope_model import LanguageModel, ModelConfig

TRAINED, TESTED, BATCH, ITEMS = 32, (32, 64, 128, 256), 64, 256
VARIANTS = ("hope", "self_modifying_titans", "titans", "gated_deltanet", "gated_deltanet_b1", "transformer")


def build(variant: str, seed: int) -> LanguageModel:
    """Two layers of width 64, two heads; all else default. `_b1` halves the erase strength: b in (0, 1)."""
    torch.manual_seed(seed)
    config = ModelConfig(
        variant=variant.removesuffix("_b1"), vocab_size=4, dim=64, layers=2, head_dim=32, tied_embedding=False
    )
    model = LanguageModel(config)
    if variant.endswith("_b1"):
        for block in model.blocks:
            # 2 sigmoid(raw') = sigmoid(raw)
            block.mixer.beta.register_forward_hook(lambda _m, _i, raw: torch.logit(raw.sigmoid() / 2))
    return model


def draw(batch: int, length: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Bits and, at every position, the parity of the bits so far: 0 1 1 0 1 -> 0 1 0 0 1."""
    bits = torch.randint(2, (batch, length), generator=generator)
    return bits, bits.cumsum(1) % 2


def accuracy(model: LanguageModel, length: int) -> float:
    """Share of positions right, `ITEMS` fresh sequences; chance is 0.5."""
    bits, parity = draw(ITEMS, length, torch.Generator().manual_seed(10**6 + length))
    with torch.no_grad():
        return float((model(bits)[0].argmax(-1) == parity).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("variant", choices=VARIANTS)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--chunks", type=int, nargs="*", default=[4, 8, 16, 32])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model, generator = build(arguments.variant, arguments.seed), torch.Generator().manual_seed(arguments.seed)
    # Examples are endless, so nothing has to be decayed; decaying gates and first weights teaches memories to forget.
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.lr, weight_decay=0.0, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, arguments.lr, arguments.steps + 1, pct_start=0.1, cycle_momentum=False
    )
    for step in range(1, arguments.steps + 1):
        bits, parity = draw(BATCH, TRAINED, generator)
        chunk = arguments.chunks[torch.randint(len(arguments.chunks), (), generator=generator)]
        state = model.initial(BATCH, model.settings()._replace(chunk=chunk))
        loss = F.cross_entropy(model(bits, state)[0].flatten(0, 1), parity.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 and sys.stderr.isatty():
            print(f"step {step}  loss {loss.item():.4f}", file=sys.stderr, flush=True)
    row = {f"accuracy_{length}": round(accuracy(model, length), 4) for length in TESTED}
    print(json.dumps({**vars(arguments), "loss": round(loss.item(), 4), **row, "items": ITEMS}))


if __name__ == "__main__":
    main()
