"""A mixer in one file and one line: a moving average of every channel, with a decay that is learned.

    h_t = a h_{t-1} + (1 - a) v_t          y_t = W_o (silu(g_t) h_t)          v, g = W_v x, W_g x

python mixer_of_your_own.py [--steps 60]

Letters: B sequences, T tokens, D width.
"""

import argparse
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hope_model import LanguageModel, ModelConfig
from hope_model.blocks import add_mixer
from hope_model.layers.basic import linear


class AverageState(NamedTuple):
    """The average so far; it is passed in and returned, so that a text can be read in parts."""

    h_BD: Tensor


class Average(nn.Module):
    """The moving average; `write=False` reads what is there and keeps it."""

    def __init__(self, config: ModelConfig, std: float, out_std: float) -> None:
        super().__init__()
        self.value = linear(config.dim, config.dim, std)
        self.gate = linear(config.dim, config.dim, std)
        self.out = linear(config.dim, config.dim, out_std)
        self.decay = nn.Parameter(torch.linspace(-2, 4, config.dim))

    def initial(self, batch: int) -> AverageState:
        return AverageState(self.decay.new_zeros(batch, len(self.decay)))

    def forward(
        self, x_BTD: Tensor, state: AverageState, *, write: bool = True, chunk: int = 0
    ) -> tuple[Tensor, AverageState]:
        del chunk  # for memories that write many tokens at once
        h_BD, a_D, averages = state.h_BD, self.decay.sigmoid(), []
        for v_BD in self.value(x_BTD).unbind(1):
            h_BD = a_D * h_BD + (1 - a_D) * v_BD if write else h_BD
            averages.append(h_BD)
        y_BTD = F.silu(self.gate(x_BTD)) * torch.stack(averages, 1)
        return self.out(y_BTD), AverageState(h_BD)


add_mixer("average", Average)  # the one line


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=60)
    torch.manual_seed(0)
    model = LanguageModel(
        ModelConfig(variant="average", vocab_size=16, dim=64, layers=2, head_dim=32, init_std=0.1)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(parser.parse_args().steps):
        key, other = torch.randint(8, (32, 1)), torch.randint(8, 15, (32, 6))
        tokens = torch.cat((key, other, torch.full((32, 1), 15)), 1)  # token 15 asks for the first one
        logits, _ = model(tokens)
        loss = F.cross_entropy(logits[:, -1], key[:, 0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0:
            print(f"step {step:3d}  {loss.item():.3f} nats")
    print(f"at the end {loss.item():.3f} nats")


if __name__ == "__main__":
    main()
