"""The loss of training and validation."""

from torch import Tensor
from torch.nn import functional


def token_losses(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Nats of each target `[B, T]`, in float32 whatever the logits are."""
    flat = functional.cross_entropy(logits_BTV.flatten(0, 1).float(), targets_BT.flatten(), reduction="none")
    return flat.view_as(targets_BT)
