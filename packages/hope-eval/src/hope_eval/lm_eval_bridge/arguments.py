"""The arguments of `lm_eval --model hope`."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch

from hope_data.errors import InputError

DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True)
class Arguments:
    """Arguments besides `pretrained` and `tokenizer`; a number may be written as text.

    Attributes:
        max_length: tokens of context; longer ones lose their beginning. 0: the training length.
        batch_size: most sequences in a pass; "auto", "auto:N" or None: as many as `batch_tokens` allows.
        max_batch_size: most sequences in a pass where `batch_size` is automatic.
        batch_tokens: most tokens in a pass where `batch_size` is automatic.
        share: False runs every context anew, for comparison.
        device: where to compute; a GPU that is not there means the CPU, as to lm-eval's own models.
        dtype: "auto" or None: as the folder has it.
        trust_remote_code: only False: no code of a model runs.
    """

    max_length: int = 0
    batch_size: int | str | None = None
    max_batch_size: int | None = None
    batch_tokens: int = 1024
    share: bool = True
    device: str = "cpu"
    dtype: torch.dtype | None = None
    trust_remote_code: bool = False

    @property
    def automatic(self) -> bool:
        """Whether passes are sized by their tokens."""
        return not isinstance(self.batch_size, int)

    @property
    def rows(self) -> int | None:
        """Most sequences in a pass."""
        return self.batch_size if isinstance(self.batch_size, int) else self.max_batch_size


def parse(options: Mapping[str, Any]) -> Arguments:
    """Check arguments and give them their types.

    Raises:
        InputError: an unknown argument, or a value that does not fit.
    """
    known = [field.name for field in fields(Arguments)]
    unknown = [key for key in options if key not in known]
    if unknown:
        raise InputError(
            f"unknown model argument '{unknown[0]}'; known: pretrained, tokenizer, {', '.join(known)}"
        )
    given = {key: value for key, value in options.items() if value is not None}
    if given.get("trust_remote_code"):
        raise InputError("trust_remote_code: no code of a model runs here; leave it out")
    for key, least in (("max_length", 0), ("max_batch_size", 1), ("batch_tokens", 1), ("batch_size", 1)):
        if key in given and not (key == "batch_size" and _automatic(given[key])):
            given[key] = _count(key, given[key], least)
    if not isinstance(given.get("share", True), bool):
        raise InputError(f"share is {given['share']!r}; it must be True or False")
    given["device"] = _device(given.get("device", "cpu"))
    given["dtype"] = _dtype(given.get("dtype", "auto"))
    return Arguments(**given)


def _automatic(value: Any) -> bool:
    name, _, times = str(value).partition(":")
    return name == "auto" and (not times or times.replace(".", "", 1).isdigit())


def _count(key: str, value: Any, least: int) -> int:
    text = str(value)
    if isinstance(value, bool) or not text.isdecimal() or not least <= int(text) < 2**62:
        allowed = "auto, auto:N or a whole number" if key == "batch_size" else "a whole number"
        raise InputError(f"{key} is {value!r}; it must be {allowed} of at least {least}")
    return int(text)


def _device(value: Any) -> str:
    try:
        device = torch.device(value)
    except (RuntimeError, TypeError):
        raise InputError(f"device is {value!r}; it must be cpu, cuda or cuda:N") from None
    # lm-eval asks for cuda:0 unless told otherwise, and its own models then take what there is.
    if device.type == "cuda" and not torch.cuda.is_available():
        return "cpu"
    if device.type not in ("cpu", "cuda") or not 0 <= (device.index or 0) < max(1, torch.cuda.device_count()):
        raise InputError(f"device is {value!r}; here is cpu and {torch.cuda.device_count()} of cuda")
    return str(device)


def _dtype(value: Any) -> torch.dtype | None:
    name = str(value).removeprefix("torch.")
    if name == "auto":
        return None
    if name not in DTYPES:
        raise InputError(f"dtype is {value!r}; it must be auto or one of {', '.join(DTYPES)}")
    dtype: torch.dtype = getattr(torch, name)
    return dtype
