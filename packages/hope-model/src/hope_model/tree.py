"""States are nested tuples of tensors, numbers and None; these few functions walk them."""

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor

T = TypeVar("T")


def tree_map(function: Callable[[Tensor], Tensor], tree: T) -> T:
    """Apply to every tensor; everything else, the tuple types included, stays as it is."""
    result: Any
    if isinstance(tree, Tensor):
        result = function(tree)
    elif isinstance(tree, tuple):
        parts = [tree_map(function, part) for part in tree]
        result = type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
    else:
        result = tree
    return result  # type: ignore[no-any-return]


def tensors(tree: object) -> list[Tensor]:
    """All tensors in order."""
    if isinstance(tree, Tensor):
        return [tree]
    return [x for part in tree for x in tensors(part)] if isinstance(tree, tuple) else []
