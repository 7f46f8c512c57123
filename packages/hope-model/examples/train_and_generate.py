"""Train HOPE on the bytes of a text file, then generate past the training length, carrying state.

python train_and_generate.py FILE [--steps 200] [--variant hope]
"""

import argparse
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from hope_model import LanguageModel, ModelConfig

LENGTH, BATCH, GENERATE = 256, 4, 600


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--variant", default="hope")
    arguments = parser.parse_args()
    data = torch.frombuffer(bytearray(arguments.file.read_bytes()), dtype=torch.uint8).long()
    if len(data) < 2 * LENGTH:
        sys.exit(f"error: {arguments.file} has {len(data)} bytes; at least {2 * LENGTH} are needed")

    torch.manual_seed(0)
    model = LanguageModel(
        ModelConfig(variant=arguments.variant, vocab_size=256, dim=128, layers=2, head_dim=32)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    start = time.time()
    for step in range(1, arguments.steps + 1):
        begin = torch.randint(len(data) - LENGTH, (BATCH,))
        batch = torch.stack([data[n : n + LENGTH + 1] for n in begin])
        logits, _ = model(batch[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 20 == 0:
            speed = step * BATCH * LENGTH / (time.time() - start)
            print(
                f"step {step:4d}  {loss.item() / 0.6931:.3f} bits per byte  {speed:,.0f} tokens/s", flush=True
            )

    model.eval()
    with torch.inference_mode():
        logits, state = model(data[None, :LENGTH])  # the prompt; from here on one token a call
        written = []
        for _ in range(GENERATE):
            token = torch.multinomial((logits[:, -1] / 0.8).softmax(-1), 1)
            written.append(int(token))
            logits, state = model(token, state)
    print(f"\n{GENERATE} bytes after a prompt of {LENGTH}; the state is now at position {state.position}:\n")
    print(bytes(written).decode("utf-8", "replace"))


if __name__ == "__main__":
    main()
