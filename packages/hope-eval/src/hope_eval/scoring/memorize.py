"""Memorisation at test time: the same items with memories frozen and with memories written.

    off      no memory is written: neither the Titans memories nor the levels of the CMS
    on       the context of each item is read with writes, `steps` times, by the chosen paths
    oracle   as on, but the item's correct answer is read with it: an upper bound, never a result

Both runs and their paired difference stand in one file, as TASK+off and TASK+on or TASK+oracle; TASK by itself is
the model as trained. Nothing but `oracle` may see an answer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from hope_data.errors import InputError
from hope_eval.compare import compare_tasks
from hope_eval.results import PairedDifference, TaskResult
from hope_eval.scoring.load import HFModel, HopeModel
from hope_eval.scoring.scorer import Scorer
from hope_model import MemorySettings


@dataclass(frozen=True)
class Memorize:
    """How memories are written while items are read.

    Attributes:
        steps: how often each context is read before its question.
        paths: of `titans`, `cms.0`, `cms.1` ...; None: all that the model has.
        threshold: teach signals below this write nothing; None: as trained.
        teach_scale: strength of the CMS writes; None: as trained.
        carry: keep the state from one item to the next instead of starting each anew.
        oracle: read the correct answer too.
    """

    steps: int = 1
    paths: tuple[str, ...] | None = None
    threshold: float | None = None
    teach_scale: float | None = None
    carry: bool = False
    oracle: bool = False

    @property
    def mode(self) -> str:
        """Name of the second run."""
        return "oracle" if self.oracle else "on"

    def record(self) -> dict[str, int | float | str | list[int] | list[float]]:
        """What a result says of it."""
        said: dict[str, int | float | str | list[int] | list[float]] = {
            "memorize": self.mode,
            "memorize_steps": self.steps,
            "memorize_paths": "all" if self.paths is None else ",".join(self.paths),
            "memorize_state": "carried" if self.carry else "reset per item",
        }
        numbers = {"memorize_threshold": self.threshold, "memorize_teach_scale": self.teach_scale}
        return said | {name: value for name, value in numbers.items() if value is not None}


def settings_on(model: HopeModel, memorize: Memorize) -> MemorySettings:
    """The model's memory settings with a choice's changes.

    Raises:
        InputError: no memory, a path that the model does not have, or carrying what grows without bound.
    """
    own = model.model.settings()
    if not model.memories:
        raise InputError(f"--memorize: {model.model.config.variant} has no memory to write at test time")
    wrong = [path for path in memorize.paths or () if path not in model.memories]
    if wrong:
        raise InputError(f"--memorize-paths {wrong[0]}: this model has {', '.join(model.memories)}")
    if memorize.carry and model.max_length is not None:
        raise InputError("--memorize-carry: full attention would keep every item; it needs a bounded state")
    scale = own.teach_scale if memorize.teach_scale is None else memorize.teach_scale
    threshold = own.surprise_threshold if memorize.threshold is None else memorize.threshold
    return MemorySettings(scale, own.teach_clip, threshold, memorize.paths)


def both(
    scorer: Scorer, memorize: Memorize, run: Callable[[Scorer], list[TaskResult]]
) -> tuple[list[TaskResult], list[PairedDifference]]:
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
        model.settings, scorer.memorize = MemorySettings(0.0, on.teach_clip, 0.0, ()), None
        frozen = run(scorer)
        model.settings, scorer.memorize = on, memorize
        scorer.carried = None
        written = run(scorer)
    finally:
        (model.settings, scorer.memorize), scorer.carried = before, None
    off = [
        replace(task, task=f"{task.task}+off", settings={**task.settings, "memorize": "off"})
        for task in frozen
    ]
    named = [
        replace(task, task=f"{task.task}+{memorize.mode}", settings={**task.settings, **memorize.record()})
        for task in written
    ]
    return off + named, differences(off, named, memorize.mode)


def differences(
    before: Sequence[TaskResult], after: Sequence[TaskResult], mode: str
) -> list[PairedDifference]:
    """`after` minus `before`, task by task over the same items.

    Args:
        before: results as TASK or TASK+off.
        after: of the same tasks in the same order.
        mode: what the second run is called.
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
