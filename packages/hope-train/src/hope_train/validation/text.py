"""Validation loss over fixed windows, in nats per token and in bits per byte, with its standard error."""

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hope_data.bpb import bits_per_byte
from hope_train.parallel.distributed import World

Losses = Callable[[Tensor], Tensor]


class Validation:
    """The same windows every time.

    Args:
        windows: per corpus, tokens `[N, T + 1]`.
        token_bytes: UTF-8 bytes each token stands for, `[vocabulary]`.
        batch_size: windows per forward pass.
    """

    def __init__(
        self,
        windows: Mapping[str, npt.NDArray[np.int64]],
        token_bytes: npt.NDArray[np.int64],
        batch_size: int,
    ) -> None:
        self._names = [name for name, tokens in windows.items() for _ in tokens]
        self._tokens_NT = np.concatenate(list(windows.values()))
        self._bytes_N = token_bytes[self._tokens_NT[:, 1:]].sum(axis=1)
        self._batch_size = batch_size

    def measure(self, losses: Losses, world: World) -> dict[str, float]:
        """Score every window, in turns over processes; all get the same numbers.

        Args:
            losses: from tokens `[B, T + 1]` to nats of each target, `[B, T]`.
            world: the processes; each puts the tokens on its device.

        Returns:
            `val_loss` (nats per token), `val_bpb` and `val_bpb_<corpus>` (bits per byte, pooled),
            `val_windows` (their number) and, from two on, `val_bpb_se` (standard error of the pooled ratio).
        """
        parts = torch.split(torch.from_numpy(self._tokens_NT), self._batch_size)
        by_window = [0.0] * len(self._tokens_NT)
        # Everybody makes as many forward passes: with shared weights each pass is a collective.
        for turn in range(-(-len(parts) // world.size)):
            number = turn * world.size + world.rank
            part = parts[min(number, len(parts) - 1)]
            with torch.no_grad():
                nats = losses(part.to(world.device)).double().sum(1).tolist()
            if number < len(parts):
                by_window[number * self._batch_size : number * self._batch_size + len(nats)] = nats
        nats_N = np.array(world.sum(by_window))
        bpb = self._bpb(nats_N, self._bytes_N)
        out = {
            "val_loss": float(nats_N.sum()) / (self._tokens_NT[:, 1:].size),
            "val_bpb": bpb,
            "val_windows": float(len(nats_N)),
        }
        if len(nats_N) > 1:
            out["val_bpb_se"] = self._standard_error(nats_N, bpb)
        for name in dict.fromkeys(self._names):
            mine = np.array([n == name for n in self._names])
            out[f"val_bpb_{name}"] = self._bpb(nats_N[mine], self._bytes_N[mine])
        return out

    @staticmethod
    def _bpb(nats: npt.NDArray[np.float64], sizes: npt.NDArray[np.int64]) -> float:
        return bits_per_byte(float(nats.sum()), int(sizes.sum()))

    def _standard_error(self, nats_N: npt.NDArray[np.float64], bpb: float) -> float:
        """Of a ratio of sums, by linearisation (Cochran, Sampling Techniques, section 2.11)."""
        residual_N = nats_N / np.log(2) - bpb * self._bytes_N
        return float(residual_N.std(ddof=1) / (self._bytes_N.mean() * np.sqrt(len(nats_N))))
