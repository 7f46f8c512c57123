"""One of our models as the host of a memory: its state is carried inside the memory's."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from hope_model.adapt.host import Memory
from hope_model.adapt.memory import AttachedState
from hope_model.errors import InputError
from hope_model.model import LanguageModel
from hope_model.state import State


class OurHost:
    """A `LanguageModel` whose blocks have a SwiGLU."""

    def __init__(self, model: LanguageModel) -> None:
        if model.levels:
            raise InputError(
                f"{model.config.variant} has a continuum memory in place of its MLPs; its own writes are set by "
                "model.cms.teach_scale"
            )
        self._model, self._plain = model, model.forward
        self.layers = model.config.layers

    @property
    def head(self) -> Tensor:
        return self._model.head.weight

    def begin(self, batch: int) -> State:
        return self._model.initial(batch)

    def run(self, tokens_BT: Tensor, inner: State) -> tuple[Tensor, State]:
        return self._plain(tokens_BT, inner)

    def slope(self, logits_BnV: Tensor) -> None:
        """The logits are what the head gives."""

    def about(self) -> dict[str, Any]:
        return self._model.config.to_dict()

    def kinds(self) -> dict[str, Any]:
        return {}

    def check(self, inner: Any, position: int) -> None:
        self._model.check(inner)
        if inner.position != position:
            raise InputError(f"inner.position is {inner.position}, the memory's {position}")

    def forward(self, memory: Memory) -> Callable[..., Any]:
        """`model(tokens, state)`: a state of the model's own begins, the memory's goes on."""

        def forward(
            tokens_BT: Tensor, state: AttachedState | State | None = None
        ) -> tuple[Tensor, AttachedState]:
            if isinstance(state, State):
                state = memory.begin(state, state.position)
            return memory(tokens_BT, state)

        forward.attached_memory = True  # type: ignore[attr-defined]
        return forward
