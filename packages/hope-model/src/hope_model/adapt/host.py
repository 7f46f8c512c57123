"""What a model gives to the memory attached to it, and what it may ask of that memory.

Letters: B sequences, T tokens, n tokens of one segment, V vocabulary, D width.
"""

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from hope_model.adapt.memory import AttachedState, Options
from hope_model.adapt.targets import Mlp
from hope_model.state import MemorySettings


class Memory(Protocol):
    """`hope_model.adapt.attach.AttachedMemory`, as hosts and checks see it."""

    host: "Host"
    mlps: list[Mlp]
    options: Options

    def begin(self, inner: Any, position: int, settings: MemorySettings | None = None) -> AttachedState:
        """State of sequences whose first `position` tokens the model has read without a memory."""

    def __call__(self, tokens_BT: Tensor, state: AttachedState | None = None) -> tuple[Tensor, AttachedState]:
        """Logits of every next token, and the state after the last token."""


class Host(Protocol):
    """What a memory needs of the model that it is attached to."""

    layers: int

    @property
    def head(self) -> Tensor:
        """Output matrix [V, D]."""

    def begin(self, batch: int) -> Any:
        """The model's own state before the first token."""

    def run(self, tokens_BT: Tensor, inner: Any) -> tuple[Tensor, Any]:
        """Logits of every next token, and the model's own state after them; `inner` stays as it is."""

    def slope(self, logits_BnV: Tensor) -> Tensor | None:
        """Derivative of the logits with respect to what the head gave; None: 1."""

    def forward(self, memory: "Memory") -> Callable[..., Any]:
        """What the model's own `forward` becomes while the memory is attached."""

    def about(self) -> dict[str, Any]:
        """What a saved state must belong to."""

    def kinds(self) -> dict[str, Any]:
        """Types of tuples in the model's own state, by name, that ours has not."""

    def check(self, inner: Any, position: int) -> None:
        """Raise `InputError` unless the model's own state fits it after so many tokens."""
