"""The same items plain and adapted, with the paired difference and what the adaptation costs."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hope_data.errors import InputError
from hope_eval.results import PairedDifference, TaskResult
from hope_eval.scoring.adaptation.dials import Adaptation
from hope_eval.scoring.adaptation.wrap import AdaptedModel, state_bytes, wrap
from hope_eval.scoring.load import HopeModel
from hope_eval.scoring.memorize import differences
from hope_eval.scoring.scorer import Scorer
from hope_model import counting


def adapted(
    scorer: Scorer,
    dials: Adaptation,
    run: Callable[[Scorer], list[TaskResult]],
    *,
    length: int,
    texts: Sequence[Tensor] = (),
) -> tuple[list[TaskResult], list[PairedDifference]]:
    """Run tasks plain, then adapted, and compare item by item.

    Args:
        scorer: of a model that is not adapted; it is left as it was.
        dials: which adaptation, and how.
        run: evaluates with the scorer it is given.
        length: tokens of a window, for the cost.
        texts: training text, as `wrap` takes it.

    Returns:
        Results TASK and TASK+NAME, the latter with dials and cost among its settings; and A minus B.
    """
    if scorer.memorize is not None:
        raise InputError("--adapt and --memorize exclude each other; give one of them")
    plain_model, model = scorer.model, wrap(scorer.model, dials, texts)
    price = cost(plain_model, model, length)
    plain = run(scorer)
    try:
        scorer.model = model
        changed = run(scorer)
    finally:
        scorer.model = plain_model
    plain = [replace(task, settings={**task.settings, **_milliseconds(task)}) for task in plain]
    named = [
        replace(
            task,
            task=f"{task.task}+{dials.name}",
            settings={**task.settings, **dials.record(), **price, **_milliseconds(task)},
        )
        for task in changed
    ]
    return plain + named, differences(plain, named, dials.name)


def _milliseconds(task: TaskResult) -> dict[str, float]:
    return {"ms_per_token": round(1000 * task.seconds / max(1, task.tokens), 6)}


def cost(plain: Any, model: AdaptedModel, length: int) -> dict[str, int | float]:
    """Operations per token of the plain model and of what is added, and bytes kept of one sequence."""
    own = flops_per_token(plain, length)
    return {
        "plain_flops_per_token": round(own),
        "adapt_flops_per_token": round(model.flops_per_token(own, length)),
        "adapt_state_bytes": state_bytes(model, length),
    }


def flops_per_token(model: Any, length: int) -> float:
    """Operations of a forward pass, counted by formula for our models and by torch for others."""
    if isinstance(model, HopeModel):
        return counting.flops_per_token(model.model.config, length)
    # The fused attention of a CPU is not in torch's table of operations; its parts are.
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        model(torch.zeros(1, length, dtype=torch.int64, device=model.device), None)
    return float(counter.get_total_flops()) / length
