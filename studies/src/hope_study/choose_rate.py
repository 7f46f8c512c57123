"""Choosing an arm's learning rate by validation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

SOLVED = 1e-3  # validation loss in nats per token below which no learning rate is better than another


def score(validation: Mapping[str, float]) -> tuple[float, float]:
    """Return what ranks learning rates; the lowest wins.

    The validation loss ranks them. Rates that solve a task are equal in it, so the loss at the longest validated
    length decides between those. Accuracy there was tried instead on MQAR: with one seed it is noise.
    """
    losses = {int(key[9:]): loss for key, loss in validation.items() if key.startswith("val_loss_")}
    loss = _finite(validation.get("val_loss", math.inf))
    if loss > SOLVED:
        return loss, loss
    return SOLVED, _finite(losses[max(losses)]) if losses else loss


def mean_score(validations: Sequence[Mapping[str, float]]) -> tuple[float, float]:
    """Return the mean of several seeds' scores; one that diverged is never outweighed."""
    first, second = zip(*map(score, validations), strict=True)
    return sum(first) / len(first), sum(second) / len(second)


def extended(rates: Sequence[float], scores: Mapping[float, tuple[float, float]], times: int) -> list[float]:
    """Return the learning-rate grid, extended where its best rate is at an edge.

    A rate beyond the edge is added until one solves the task; where every rate diverged, a lower one.

    Args:
        rates: factors of the scale's rates.
        scores: of the rates that are done.
        times: how often the grid may be extended.
    """
    grid = list(rates)
    for _ in range(times):
        done = {rate: scores[rate] for rate in grid if rate in scores}
        best = min(sorted(done), key=lambda rate: done[rate], default=0.0)
        if len(done) < len(grid) or done[best][0] <= SOLVED or best not in (min(done), max(done)):
            break
        grid.append(_beyond(best, up=best == max(done)))
    return grid


def _beyond(rate: float, *, up: bool) -> float:
    """Return the next number of the series 0.1, 0.3, 1, 3, 10, which has no end."""
    tens, three = divmod(round(2 * math.log10(rate)) + (1 if up else -1), 2)
    return float(f"{3 if three else 1}e{tens}")


def _finite(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf
