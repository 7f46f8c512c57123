"""Models without memory behind their tensors, to count them or to compare shapes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_DRAWN = ("normal_", "uniform_", "trunc_normal_")


class _Undrawn(TorchFunctionMode):
    """Leave out random numbers and their scale: on the meta device they import torch's compiler, for seconds."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _DRAWN:
            return args[0] if args else kwargs["tensor"]
        if name == "mul" and not isinstance(args[1], torch.Tensor):
            return args[0]
        return torch.empty(*args, **kwargs) if func in (torch.randn, torch.rand) else func(*args, **kwargs)


@contextmanager
def without_values() -> Iterator[None]:
    """Build what the block builds on the meta device: shapes and types, no values."""
    with torch.device("meta"), _Undrawn():
        yield
