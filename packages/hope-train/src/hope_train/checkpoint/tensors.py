"""Tensors on disk, one safetensors file per process; any number of processes reads them back.

A tensor that is shared out by rows keeps, in the file's header, its whole shape and the row its part begins at.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hope_model.errors import InputError
from hope_train.parallel.distributed import is_shared, mine

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write this process's part of every tensor; the caller flushes the file."""
    parts, own = {}, {}
    for name, tensor in tensors.items():
        own[name] = mine(tensor).detach().cpu().contiguous()
        if is_shared(tensor):
            parts[name] = {"shape": list(tensor.shape), "row": _rows(tensor)[0]}
    try:
        save_file(own, path, metadata={"parts": json.dumps(parts)})
    except SafetensorError as error:
        raise OSError(f"{path}: {error}") from None


class Reader:
    """All files of one checkpoint as one mapping.

    Args:
        paths: as `write` made them; files without the header hold whole tensors.

    Raises:
        InputError: a file that is no safetensors.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._where: dict[str, list[tuple[Any, int, list[int]]]] = {}
        self._shapes: dict[str, list[int]] = {}
        for path in paths:
            try:
                file: Any = safe_open(path, "pt")
                parts = json.loads((file.metadata() or {}).get("parts", "{}"))
                for name in file.keys():  # noqa: SIM118 (not a dict)
                    shape = file.get_slice(name).get_shape()
                    part = parts.get(name, {"shape": shape, "row": 0})
                    whole = [int(size) for size in part["shape"]]
                    self._where.setdefault(name, []).append((file, int(part["row"]), shape))
                    if self._shapes.setdefault(name, whole) != whole:
                        raise InputError(f"{path}: '{name}' has another shape in another file")
            except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
                raise InputError(f"{path}: cannot be read as safetensors: {error}") from None

    def shapes(self) -> dict[str, list[int]]:
        """Whole shape of every tensor."""
        return dict(self._shapes)

    def read(self, name: str, like: Tensor | None = None) -> Tensor:
        """One tensor, whole, or laid out over processes as `like` is.

        Raises:
            InputError: not in the files, or rows of it are missing.
        """
        if name not in self._where:
            raise InputError(f"the checkpoint has no tensor '{name}'")
        shape = self._shapes[name]
        if like is None or not is_shared(like) or list(like.shape) != shape:
            tensor = self._rows(name, 0, shape[0]) if shape else self._where[name][0][0].get_tensor(name)
            return tensor if like is None else tensor.to(like.device)
        from torch.distributed.tensor import DTensor  # noqa: PLC0415 (see hope_train.parallel.distributed)

        first, count = _rows(like)
        local = self._rows(name, first, count).to(like.to_local().device)
        return DTensor.from_local(
            local, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
        )

    def _rows(self, name: str, first: int, count: int) -> Tensor:
        pieces = []
        for file, row, shape in sorted(self._where[name], key=lambda piece: piece[1]):
            low, high = max(first, row), min(first + count, row + shape[0])
            if low < high:
                pieces.append(file.get_slice(name)[low - row : high - row])
        out = torch.cat(pieces) if pieces else self._where[name][0][0].get_tensor(name)[:0]
        if len(out) != count:
            raise InputError(f"rows of '{name}' are missing in the checkpoint")
        return out


def _rows(tensor: DTensor) -> tuple[int, int]:
    """First row and number of rows of this process's part (FSDP2 deals rows out as torch.chunk does)."""
    (placement,) = tensor.placements
    if not placement.is_shard(0):
        raise NotImplementedError(f"only tensors shared out by rows can be saved, not {placement}")
    total, size = tensor.shape[0], tensor.device_mesh.size()
    each = -(-total // size)
    first = min(total, tensor.device_mesh.get_local_rank() * each)
    return first, min(each, total - first)
