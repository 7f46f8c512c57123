"""The dials of every adaptation, their ranges, and the values that tuning tries."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from hope_data.errors import InputError
from hope_data.files import read_bytes
from hope_model.errors import InputError as ModelInputError
from hope_model.ranges import check_ranges, one_of, within


@dataclass(frozen=True)
class Adaptation:
    """Base of all: a name, dials, and per dial the values that `tune` tries, in order."""

    name: ClassVar[str] = ""
    grids: ClassVar[dict[str, tuple[Any, ...]]] = {}

    def __post_init__(self) -> None:
        try:
            check_ranges(self, self.name)
        except ModelInputError as error:
            raise InputError(str(error)) from None

    def record(self) -> dict[str, Any]:
        """What a result says of it."""
        return {f"adapt_{key}": value for key, value in dataclasses.asdict(self).items()}

    def text(self) -> str:
        """As `parse` reads it."""
        values = dataclasses.asdict(self).items()
        return ":".join(
            [self.name, *([",".join(f"{key}={value}" for key, value in values)] if values else [])]
        )


@dataclass(frozen=True)
class Writes(Adaptation):
    """See `hope_model.adapt.attach_memory`."""

    name: ClassVar[str] = "writes"
    grids: ClassVar[dict[str, tuple[Any, ...]]] = {
        "scale": (0.03, 0.1, 0.2, 0.3, 0.5, 1.0, 3.0),
        "period": (4, 8, 16, 32, 64, 128),
        "bound": (0.1, 0.25, 0.5, 1.0),
    }
    scale: float = field(default=0.3, metadata=within(0, 1_000))
    period: int = field(default=32, metadata=within(1, 2**40))
    bound: float = field(default=0.5, metadata=within(0, 1_000))
    retention: float = field(default=1.0, metadata=within(0, 1))
    clip: float = field(default=1.0, metadata=within(0, 1e12, above=True))
    threshold: float = field(default=0.0, metadata=within(0, 1e12))
    matrices: str = field(default="down", metadata=one_of("down", "up", "all"))


@dataclass(frozen=True)
class UnigramCache(Adaptation):
    """p = (1 - strength) p_model + strength (share of each token among the last `tokens`)."""

    name: ClassVar[str] = "unigram_cache"
    grids: ClassVar[dict[str, tuple[Any, ...]]] = {
        "strength": (0.01, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3),
        "tokens": (128, 512, 2048),
    }
    strength: float = field(default=0.1, metadata=within(0, 0.999))
    tokens: int = field(default=2048, metadata=within(1, 2**20))


@dataclass(frozen=True)
class NeuralCache(Adaptation):
    """The same, each earlier token weighted by exp(sharpness h_t . h_i), h the head's input before it."""

    name: ClassVar[str] = "neural_cache"
    grids: ClassVar[dict[str, tuple[Any, ...]]] = {
        "sharpness": (0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
        "strength": (0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5),
        "tokens": (128, 512, 2048),
    }
    strength: float = field(default=0.15, metadata=within(0, 0.999))
    sharpness: float = field(default=0.1, metadata=within(0, 1e6))
    tokens: int = field(default=2048, metadata=within(1, 2**20))


@dataclass(frozen=True)
class Dynamic(Adaptation):
    """A gradient step on all weights after every `segment` tokens, and decay towards the trained weights.

    `sgd`: w += -rate g + decay (w0 - w). `rms`: the step divided by the root mean square of g over training text (plus
    `epsilon` times its mean over all weights, since some have hardly any), the decay multiplied with it relative to its
    mean (Krause et al. 2018, eq. 5 to 8).
    """

    name: ClassVar[str] = "dynamic"
    grids: ClassVar[dict[str, tuple[Any, ...]]] = {
        "rate": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0),
        "decay": (0.0, 1e-3, 1e-2, 0.1),
        "segment": (8, 16, 32, 64),
    }
    rule: str = field(default="rms", metadata=one_of("sgd", "rms"))
    rate: float = field(default=1e-3, metadata=within(0, 1_000))
    decay: float = field(default=0.0, metadata=within(0, 1))
    segment: int = field(default=32, metadata=within(1, 2**20))
    epsilon: float = field(default=1.0, metadata=within(0, 1e6, above=True))


@dataclass(frozen=True)
class Off(Adaptation):
    """No memory of the model's own is written."""

    name: ClassVar[str] = "off"


ADAPTATIONS: dict[str, type[Adaptation]] = {
    kind.name: kind for kind in (Writes, NeuralCache, UnigramCache, Dynamic, Off)
}


def parse(text: str) -> Adaptation:
    """Read `NAME`, `NAME:dial=value,...`, or a file that `hope-eval tune` wrote.

    Raises:
        InputError: no such adaptation, dial or file, or a value out of range.
    """
    if text.endswith(".json"):
        return _read(Path(text))
    name, _, dials = text.partition(":")
    values: dict[str, Any] = {}
    for part in filter(None, dials.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise InputError(f"--adapt {text}: {part!r} is not DIAL=VALUE")
        values[key.strip()] = value.strip()
    return build(name, values)


def build(name: str, values: Mapping[str, Any]) -> Adaptation:
    """An adaptation by name; values may be text.

    Raises:
        InputError: no such adaptation or dial, or a value out of range.
    """
    if name not in ADAPTATIONS:
        raise InputError(f"no adaptation is called {name[:80]!r}; choose among {', '.join(ADAPTATIONS)}")
    kinds = {entry.name: entry.type for entry in dataclasses.fields(ADAPTATIONS[name])}
    typed = {}
    for key, value in values.items():
        if key not in kinds:
            dials = ", ".join(kinds) or "none"
            raise InputError(f"{name} has no dial {key[:80]!r}; it has {dials}")
        typed[key] = _number(f"{name}.{key}", kinds[key], value)
    return ADAPTATIONS[name](**typed)


def _number(name: str, kind: Any, value: Any) -> Any:
    if kind is str:
        return value
    try:
        number = float(value)
        return int(number) if kind is int and number == int(number) else number
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{name} is {str(value)[:80]!r}; it must be a number") from None


def _read(path: Path) -> Adaptation:
    try:
        record = json.loads(read_bytes(path))
        name, values = record["adapt"], record["best"]
        if not isinstance(name, str) or not isinstance(values, dict):
            raise TypeError("adapt or best has a wrong type")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or f"not written by hope-eval tune ({error})"
        raise InputError(f"{path}: {reason}") from None
    return build(name, values)
