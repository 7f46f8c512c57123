"""HOPE, Titans, gated DeltaNet and Transformer++ behind one interface and one recurrence."""

import os
from typing import TYPE_CHECKING, Any

# Before torch loads OpenMP: threads that wait for each other sleep soon. By default they spin; where other processes
# use the same cores, that made two trainings of two threads each nine times slower.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from hope_model.config import AttentionConfig, CMSConfig, MemoryConfig, ModelConfig
from hope_model.errors import InputError

if TYPE_CHECKING:
    from hope_model.model import LanguageModel
    from hope_model.state import MemorySettings, State

__all__ = [
    "AttentionConfig",
    "CMSConfig",
    "InputError",
    "LanguageModel",
    "MemoryConfig",
    "MemorySettings",
    "ModelConfig",
    "State",
]


def __getattr__(name: str) -> Any:
    """Load torch only when a model is asked for: configurations alone start in a tenth of the time (PEP 562)."""
    if name == "LanguageModel":
        from hope_model.model import LanguageModel  # noqa: PLC0415

        return LanguageModel
    if name in ("MemorySettings", "State"):
        from hope_model import state  # noqa: PLC0415

        return getattr(state, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
