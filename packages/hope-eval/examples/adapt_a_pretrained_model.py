"""What does a model that was never trained to remember gain from what it has just read?

    python examples/adapt_a_pretrained_model.py FOLDER TEXT --plot by_position.png

FOLDER is a causal language model of transformers (or a checkpoint of ours), TEXT a long text file, which is read plain,
with the MLPs as memories (writes) and with a neural cache; both are tuned on its first tenth. Needs hope-eval[lm-eval].
"""

import argparse
import math
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from hope_eval.scoring.adaptation import parse, wrap
from hope_eval.scoring.load import load
from hope_eval.scoring.scorer import Scorer

CACHE = "neural_cache:strength={},sharpness={}"
TRIED = {
    "plain": [""],
    "writes": [f"writes:period={n},scale={x}" for n in (16, 32, 128) for x in (0.03, 0.1, 0.3, 1)],
    "neural cache": [CACHE.format(a, b) for a in (0.05, 0.1, 0.2) for b in (0.01, 0.03, 0.1, 0.3, 1)],
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("text", type=Path, metavar="TEXT")
    parser.add_argument("--length", type=int, default=2048, help="tokens of a window; default: %(default)s")
    parser.add_argument("--plot", type=Path, default=Path("by_position.png"))
    given = parser.parse_args()
    loaded, text = load(given.folder), given.text.read_text(encoding="utf-8")
    ids, length = np.array(loaded.tokenizer.encode(text)), min(given.length, loaded.model.max_length or 2**40)
    windows = [ids[n : n + length + 1] for n in range(0, len(ids) - 1, length)]
    tuning = max(1, len(windows) // 10)

    def losses(adaptation: str, of: list[np.ndarray]) -> list[np.ndarray]:
        model = wrap(loaded.model, parse(adaptation)) if adaptation else loaded.model
        return [-nats for nats in Scorer(model).token_logp(of)]

    axes = (figure := Figure(layout="constrained")).subplots()
    for name, choices in TRIED.items():
        best = min(choices, key=lambda one: np.concatenate(losses(one, windows[:tuning])).mean())
        nats = losses(best, windows[tuning:])
        bits = np.concatenate(nats).mean() / math.log(2) * len(ids) / len(text.encode())
        print(f"{name:<13} {bits:.4f} bits per byte  {best}", flush=True)
        whole = np.stack([one for one in nats if len(one) == length]).mean(0)
        places = np.array_split(np.arange(length), 16)
        axes.plot([p.mean() for p in places], [whole[p].mean() for p in places], marker="o", label=name)
    axes.set(xlabel="tokens before", ylabel="nats per token", title="Loss by position in the window")
    axes.legend()
    figure.savefig(given.plot)


main()
