"""The same items twice: memories frozen and written, or the model plain and adapted, with the paired difference.

Both runs stand in one file, as TASK+off and TASK+on (or TASK+oracle), and as TASK and TASK+NAME of the adaptation.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hope_data.errors import InputError
from hope_eval.results import PairedDifference, TaskResult
from hope_eval.results.compare import compare_tasks
from hope_eval.scoring.adaptation.dials import Adaptation
from hope_eval.scoring.adaptation.wrap import AdaptedModel, state_bytes, wrap
from hope_eval.scoring.load import HFModel, HopeModel
from hope_eval.scoring.memorize import Memorize, settings_on
from hope_eval.scoring.scorer import Scorer
from hope_model import counting

Run = Callable[[Scorer], list[TaskResult]]


def both(scorer: Scorer, memorize: Memorize, run: Run) -> tuple[list[TaskResult], list[PairedDifference]]:
    """Run tasks with memories frozen, then written, and compare item by item.

    Args:
        scorer: of one of our models; it is left as it was.
        memorize: the second run.
        run: evaluates with the scorer it is given.
    """
    model = scorer.model
    if isinstance(model, HFModel) or not isinstance(model, HopeModel):
        raise InputError("--memorize: only our own models have memories to write at test time")
    on = settings_on(model, memorize)
    before = model.settings, scorer.memorize
    try:
        model.settings, scorer.memorize = on.silent(), None
        frozen = run(scorer)
        model.settings, scorer.memorize = on, memorize
        scorer.carried = None
        written = run(scorer)
    finally:
        (model.settings, scorer.memorize), scorer.carried = before, None
    frozen = [_named(task, "off", {"memorize": "off"}) for task in frozen]
    written = [_named(task, memorize.mode, memorize.record()) for task in written]
    return frozen + written, differences(frozen, written, memorize.mode)


def adapted(
    scorer: Scorer,
    adaptations: Sequence[Adaptation],
    run: Run,
    again: Run,
    *,
    length: int,
    texts: Sequence[Tensor] = (),
) -> tuple[list[TaskResult], list[PairedDifference]]:
    """Run tasks plain, then with each adaptation, and compare item by item.

    Args:
        scorer: of a model that is not adapted; it is left as it was.
        adaptations: which, and how; each name once.
        run: evaluates with the scorer it is given.
        again: the same for adapted models: all of its tasks, or some.
        length: tokens of a window, for the cost.
        texts: training text, as `wrap` takes it.

    Returns:
        Results TASK and TASK+NAME, the latter with dials and cost among its settings; and A minus B.
    """
    if scorer.memorize is not None:
        raise InputError("--adapt and --memorize exclude each other; give one of them")
    names = [dials.name for dials in adaptations]
    if len(set(names)) < len(names):
        raise InputError(f"--adapt: {max(names, key=names.count)} is there twice; run it into another file")
    plain_model = scorer.model
    models = [wrap(plain_model, dials, texts) for dials in adaptations]
    plain = run(scorer)
    tasks, rows = list(plain), list[PairedDifference]()
    for dials, model in zip(adaptations, models, strict=True):
        price = cost(plain_model, model, length)
        try:
            scorer.model = model
            changed = again(scorer)
        finally:
            scorer.model = plain_model
        changed = [
            _named(task, dials.name, {**dials.record(), **price, "ms_per_token": round(task.ms_per_token, 6)})
            for task in changed
        ]
        chosen = {task.task.removesuffix(f"+{dials.name}") for task in changed}
        tasks += changed
        rows += differences([task for task in plain if task.task in chosen], changed, dials.name)
    return tasks, rows


def _named(task: TaskResult, mode: str, settings: dict[str, Any]) -> TaskResult:
    return replace(task, task=f"{task.task}+{mode}", settings={**task.settings, **settings})


def differences(
    before: Sequence[TaskResult], after: Sequence[TaskResult], mode: str
) -> list[PairedDifference]:
    """Return `after` minus `before`, task by task over the same items.

    Args:
        before: results as TASK or TASK+off.
        after: of the same tasks in the same order.
        mode: name of the second run.
    """
    return [
        PairedDifference(
            task=a.task.removesuffix("+off"),
            mode=mode,
            metric=row.metric,
            group=row.group,
            written=row.a,
            frozen=row.b,
            difference=row.difference.value,
            stderr=row.difference.stderr,
            low=row.difference.low,
            high=row.difference.high,
            n=row.difference.n,
            clusters=row.difference.clusters,
        )
        for a, b in zip(before, after, strict=True)
        for row in compare_tasks(b, a, {metric.group for metric in a.metrics})
    ]


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
