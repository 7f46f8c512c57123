"""A look at the gates inside the inner loops, for a trainer's log; costs nothing while nobody looks.

with observe() as seen:
    model(tokens)
row.update(seen.means())  # {"eta": 0.048, "alpha": 0.98}
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor


class Observations:
    """Running means over all tokens, heads and layers; nothing leaves the device before `means`."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor, int]] = {}

    def add(self, name: str, values: Tensor) -> None:
        """Count every element of `values` in."""
        total, count = self._sums.get(name, (values.new_zeros(()), 0))
        self._sums[name] = (total + values.detach().sum(), count + values.numel())

    def means(self) -> dict[str, float]:
        """Mean of each quantity seen: `eta` (inner learning rate), `alpha` (retention)."""
        return {name: float(total) / count for name, (total, count) in self._sums.items()}


_WATCHING: list[Observations] = []


@contextmanager
def observe() -> Iterator[Observations]:
    """Collect what layers and ops `note` while the block runs."""
    seen = Observations()
    _WATCHING.append(seen)
    try:
        yield seen
    finally:
        _WATCHING.remove(seen)


def note(name: str, values: Tensor) -> None:
    """Report `values` to whoever observes."""
    for seen in _WATCHING:
        seen.add(name, values)
