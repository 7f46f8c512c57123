"""The model as the loop sees it: tokens and targets in, the loss of each token and the memories' state out."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from hope_model import LanguageModel
from hope_model import state as model_state
from hope_model.adapt import AttachedMemory, AttachedState, Ladder, attach_memory
from hope_model.state import MemorySettings, State
from hope_train.config import AttachConfig, TrainConfig
from hope_train.loss import token_losses

SDPA = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}


class Network(nn.Module):
    """What DDP and FSDP2 wrap: a forward that touches the weights from inside only.

    Args:
        model: any variant.
        config: says what is recomputed, compiled, and which attention kernel runs.
    """

    def __init__(self, model: LanguageModel, config: TrainConfig) -> None:
        super().__init__()
        self.model = model
        self._sdpa = config.sdpa
        self.memory = attached(model, config.attach)
        if config.activation_checkpoint:
            model.keeps_products = False
            for block in model.blocks:
                block.forward = partial(_recomputed, block.forward)
        if config.compile:
            model.compile()

    def forward(
        self,
        inputs_BT: Tensor,
        targets_BT: Tensor,
        settings: MemorySettings | None = None,
        *,
        hits: bool = False,
    ) -> tuple[Tensor, State | AttachedState]:
        """Nats of every target `[B, T]`, and the state after the last token, without history.

        A negative target costs nothing. With `hits`, nats and whether the target was the likeliest token, `[2, B, T]`.
        """
        with self._attention():
            state: Any
            if self.memory is None:
                logits_BTV, state = self.model(inputs_BT, settings=settings)
            else:
                logits_BTV, state = self.memory(inputs_BT, self.memory.initial(len(inputs_BT), settings))
        losses_BT = token_losses(logits_BTV, targets_BT)
        if hits:
            losses_BT = torch.stack((losses_BT, (logits_BTV.argmax(-1) == targets_BT).to(losses_BT)))
        return losses_BT, model_state.detach(state)

    def _attention(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._sdpa == "auto" else sdpa_kernel(SDPA[self._sdpa])


def attached(model: LanguageModel, config: AttachConfig) -> AttachedMemory | None:
    """The memory of a configuration; None without one. The model itself stays as it is."""
    if not config.period:
        return None
    memory = attach_memory(
        model,
        periods=Ladder(config.period, config.ratio, config.levels),
        scale=config.scale,
        clip=config.clip,
        threshold=config.threshold,
        bound=config.bound,
        retention=config.retention,
        matrices=config.matrices,
    )
    memory.detach()  # called through its handle only
    return memory


def _recomputed(forward: Callable[..., Any], *arguments: Any) -> Any:
    """Non-reentrant: the recomputation sees the same state, and gradients flow through it."""
    if not torch.is_grad_enabled():
        return forward(*arguments)
    return checkpoint(forward, *arguments, use_reentrant=False, preserve_rng_state=False)
