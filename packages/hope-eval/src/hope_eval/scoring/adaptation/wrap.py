"""From an adaptation's dials to a model that adapts, with what it costs.

Letters: B sequences, T tokens, D width, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from hope_data.errors import InputError
from hope_eval.scoring.adaptation.cache import CachedModel
from hope_eval.scoring.adaptation.dials import Adaptation, Dynamic, NeuralCache, Off, UnigramCache, Writes
from hope_eval.scoring.adaptation.dynamic import DynamicModel
from hope_eval.scoring.load import CausalModel, HFModel, HopeModel, Places
from hope_model.adapt import AttachedMemory, AttachedState, attach_memory
from hope_model.errors import InputError as ModelInputError


class WritingModel:
    """A model with `hope_model.adapt`'s memory; what it is called with decides, the model itself stays as it is."""

    copies_state = False
    defers = True

    def __init__(self, model: HopeModel | HFModel, dials: Writes) -> None:
        self.inner, self.device, self.max_length = model, model.device, model.max_length
        self.tokens, self.shares_state = getattr(model, "tokens", None), model.shares_state
        try:
            self.memory: AttachedMemory = attach_memory(
                model.model,
                periods=dials.period,
                scale=dials.scale,
                clip=dials.clip,
                threshold=dials.threshold,
                bound=dials.bound,
                retention=dials.retention,
                matrices=dials.matrices,
            )
        except ModelInputError as error:
            raise InputError(f"--adapt writes: {error}") from None
        self.memory.detach()  # called through its handle only

    def __call__(
        self, tokens_BT: Tensor, state: AttachedState | None, at: Places | None = None, *, final: bool = False
    ) -> tuple[Tensor, AttachedState]:
        del final
        logits_BTV, state = self.memory(tokens_BT, state)
        logits = logits_BTV if at is None else logits_BTV[at]
        known = self.tokens if isinstance(self.inner, HopeModel) else None
        return logits[..., :known], state

    def fork(self, state: AttachedState, rows: Tensor) -> AttachedState:
        return self.memory.select(state, rows)

    def n_bytes(self, state: AttachedState) -> int:
        """Bytes of the fast deltas and of what waits to be written."""
        return self.memory.n_bytes(state)

    def flops_per_token(self, plain: float, length: int) -> float:
        del plain, length
        return self.memory.flops_per_token()


class SilentModel:
    """One of our models whose own memories are read and never written."""

    def __init__(self, model: HopeModel) -> None:
        self.inner = HopeModel(model.model, model.device, settings=model.model.settings().silent())
        self.inner.max_length = model.max_length
        self.tokens = getattr(model, "tokens", None)
        self.device, self.max_length = model.device, model.max_length
        self.copies_state, self.shares_state, self.defers = model.copies_state, model.shares_state, False

    def __call__(
        self, tokens_BT: Tensor, state: Any, at: Places | None = None, *, final: bool = False
    ) -> tuple[Tensor, Any]:
        logits, state = self.inner(tokens_BT, state, at, final=final)
        return logits[..., : self.tokens], state

    def fork(self, state: Any, rows: Tensor) -> Any:
        return self.inner.fork(state, rows)

    def n_bytes(self, state: Any) -> int:
        """It keeps nothing of its own."""
        del state
        return 0

    def flops_per_token(self, plain: float, length: int) -> float:
        """It adds nothing."""
        del plain, length
        return 0.0


class AdaptedModel(CausalModel, Protocol):
    """A `CausalModel` that says what its adaptation costs."""

    def n_bytes(self, state: Any) -> int:
        """Bytes that the adaptation keeps in a state."""

    def flops_per_token(self, plain: float, length: int) -> float:
        """Operations that it adds per token to the `plain` model's, in sequences of `length`."""


def wrap(model: CausalModel, dials: Adaptation, texts: Sequence[Tensor] = ()) -> AdaptedModel:
    """The model with an adaptation.

    Args:
        model: one of ours, or of transformers; it is not changed.
        dials: which, and how.
        texts: sequences [T] of training text, for the `rms` rule of `dynamic`.

    Raises:
        InputError: the model cannot have it.
    """
    if not isinstance(model, HopeModel | HFModel):
        raise InputError(f"--adapt {dials.name}: {type(model).__name__} is adapted already")
    if not model.shares_state:
        raise InputError(f"--adapt {dials.name}: a recurrent model of transformers is read whole only")
    if isinstance(dials, Writes):
        return WritingModel(model, dials)
    if isinstance(dials, Dynamic):
        return DynamicModel(model, dials, texts)
    if isinstance(dials, NeuralCache):
        return CachedModel(model, dials.strength, dials.sharpness, dials.tokens)
    if isinstance(dials, UnigramCache):
        return CachedModel(model, dials.strength, 0.0, dials.tokens)
    assert isinstance(dials, Off)  # noqa: S101
    if isinstance(model, HFModel) or not model.memories:
        raise InputError("--adapt off: this model has no memory of its own to switch off")
    return SilentModel(model)


def state_bytes(model: AdaptedModel, length: int) -> int:
    """Bytes that the adaptation itself keeps of one sequence after `length` tokens."""
    with torch.no_grad():
        _, state = model(torch.zeros(1, length, dtype=torch.int64, device=model.device), None)
    return model.n_bytes(state)
