"""HOPE, Titans, gated DeltaNet and Transformer++ behind one interface and one recurrence."""

from hope_model.config import AttentionConfig, CMSConfig, MemoryConfig, ModelConfig
from hope_model.errors import InputError
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
