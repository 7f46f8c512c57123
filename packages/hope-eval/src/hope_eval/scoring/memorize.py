"""Memorisation at test time: how memories are written while items are read.

    off      no memory is written: neither the Titans memories nor the levels of the CMS
    on       the context of each item is read with writes, `steps` times, by the chosen paths
    oracle   as on, but the item's correct answer is read with it: an upper bound, never a result

Nothing but `oracle` may see an answer.
"""

from dataclasses import dataclass

from hope_data.errors import InputError
from hope_eval.scoring.load import HopeModel
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
        """Return what a result records of it."""
        settings: dict[str, int | float | str | list[int] | list[float]] = {
            "memorize": self.mode,
            "memorize_steps": self.steps,
            "memorize_paths": "all" if self.paths is None else ",".join(self.paths),
            "memorize_state": "carried" if self.carry else "reset per item",
        }
        numbers = {"memorize_threshold": self.threshold, "memorize_teach_scale": self.teach_scale}
        return settings | {name: value for name, value in numbers.items() if value is not None}


def refuse_oracle(memorize: Memorize | None, reason: str) -> None:
    """Raise InputError with the reason where correct answers are to be read."""
    if memorize and memorize.oracle:
        raise InputError(f"{reason}; leave out --memorize-oracle")


def refuse_rereading(memorize: Memorize | None, task: str) -> None:
    """Raise InputError where every token is scored and contexts are to be read twice, or with answers."""
    if memorize and (memorize.steps > 1 or memorize.oracle):
        raise InputError(
            f"{task}: more than one reading would show what is scored; leave out steps and oracle"
        )


def settings_on(model: HopeModel, memorize: Memorize) -> MemorySettings:
    """Return the model's memory settings with a choice's changes.

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
