"""The teach signal: what each token's loss asks of the continuum memory (docs/model.md, "The teach signal").

Letters: B sequences, n tokens of one segment, D width, V vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hope_model.precision import full_precision
from hope_model.state import MemorySettings


class Trace(NamedTuple):
    """One segment's forward with its history: every block's output, and the logits."""

    outputs: tuple[Tensor, ...]
    logits_BnV: Tensor


def output_signal(
    logits_BnV: Tensor, targets_Bn: Tensor, head_VD: Tensor, slope_BnV: Tensor | None = None
) -> Tensor:
    """Gradient of each token's loss at the last hidden state: (softmax - onehot) W_head.

    `slope_BnV` is the derivative of the logits where a model bends what its head gives; None: 1. Products are taken in
    the logits' precision, their sums in float32.
    """
    p = F.softmax(logits_BnV, -1)
    onehot_row = F.embedding(targets_Bn, head_VD).to(p.dtype)
    if slope_BnV is not None:
        p = p * slope_BnV
        onehot_row = onehot_row * slope_BnV.expand_as(p).gather(-1, targets_Bn[..., None])
    if not torch.is_autocast_enabled(p.device.type):  # which casts the head once for all segments
        head_VD = head_VD.to(p.dtype)
    return p @ head_VD - onehot_row


def layer_signals(
    trace: Trace, targets_Bn: Tensor, *, differentiable: bool, keep_graph: bool
) -> tuple[Tensor, ...]:
    """Gradient of the segment's summed loss at every block's output, by one backward on activations only.

    A token's signal holds what it did to later tokens of its segment too; all of them precede the write.
    """
    with torch.inference_mode(False), torch.enable_grad(), full_precision(trace.logits_BnV) as cast:
        targets_Bn = targets_Bn.clone()  # one made in inference mode cannot be kept for a backward
        loss = F.cross_entropy(cast(trace.logits_BnV).flatten(0, 1), targets_Bn.flatten(), reduction="sum")
        return torch.autograd.grad(
            loss, trace.outputs, create_graph=differentiable, retain_graph=keep_graph or differentiable
        )


def gated(signals: Sequence[Tensor], settings: MemorySettings) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
    """Signals clipped per token to `teach_clip`, zero up to `surprise_threshold`.

    Returns:
        The signals, the sum of their norms before clipping, and how many passed the gate.
    """
    kept, total, hits = [], [], []
    for signal in signals:
        with full_precision(signal) as cast:
            norm = cast(signal).norm(dim=-1, keepdim=True)
            open_gate = (norm > settings.surprise_threshold).to(norm.dtype)
            kept.append(signal * (open_gate * (settings.teach_clip / norm.clamp(min=settings.teach_clip))))
        total.append(norm.detach().sum())
        hits.append(open_gate.sum())
    return tuple(kept), torch.stack(total).sum(), torch.stack(hits).sum()
