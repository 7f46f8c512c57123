"""Choose an adaptation's dials on validation text, and say everything that was tried."""

import dataclasses
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

from hope_data.errors import InputError
from hope_eval.scoring.adaptation.dials import Adaptation
from hope_eval.scoring.adaptation.wrap import wrap
from hope_eval.tasks import perplexity
from hope_eval.tasks.base import Context
from hope_eval.tasks.held_out import training_windows

SWEEPS = 3  # over all dials, at most


@dataclass(frozen=True)
class Tuned:
    """What was tried, and what was best.

    Attributes:
        adapt: the adaptation's name.
        best: its dials.
        bits_per_byte: with them, on validation text.
        plain_bits_per_byte: of the model itself.
        at_edge: dials whose best value is the first or the last that was tried.
        split: of the text.
        tokens: scored in each trial, at most.
        length: of windows.
        seed: of the documents.
        tried: dials, bits per byte and seconds of every trial, in order.
    """

    adapt: str
    best: dict[str, Any]
    bits_per_byte: float
    plain_bits_per_byte: float
    at_edge: list[str]
    split: str
    tokens: int
    length: int
    seed: int
    tried: list[dict[str, Any]]


def tune(
    context: Context,
    start: Adaptation,
    tokens: int,
    dials: Collection[str] = (),
    report: Callable[[dict[str, Any]], None] = lambda _: None,
) -> Tuned:
    """Try each dial's grid in turn, the others at their best so far, until a sweep changes nothing.

    Args:
        context: its validation split is read, its test split never.
        start: where to begin.
        tokens: budget of each trial over all domains.
        dials: the ones to tune; none given means all that have a grid.
        report: called with every trial.

    Raises:
        InputError: the adaptation has nothing to tune, or the model cannot have it.
    """
    if not start.grids:
        raise InputError(f"{start.name} has no dials to tune")
    if unknown := sorted(set(dials) - set(start.grids)):
        raise InputError(f"--dials {unknown[0]}: {start.name} tunes {', '.join(start.grids)}")
    grids = {dial: grid for dial, grid in start.grids.items() if not dials or dial in dials}
    settings = perplexity.Settings(tokens=tokens, split="val")
    texts = training_windows(context)
    plain = context.scorer.model
    tried: dict[Adaptation, dict[str, Any]] = {}

    def measured(dials: Adaptation | None) -> float:
        context.scorer.model = plain if dials is None else wrap(plain, dials, texts)
        try:
            [metric] = [
                m
                for m in perplexity.run(context, settings).metrics
                if (m.name, m.group) == ("bits_per_byte", "all")
            ]
        finally:
            context.scorer.model = plain
        return metric.value

    def score(dials: Adaptation) -> float:
        if dials not in tried:
            begun = time.monotonic()
            bits = round(_finite(measured, dials), 6)
            seconds = round(time.monotonic() - begun, 3)
            tried[dials] = {**dataclasses.asdict(dials), "bits_per_byte": bits, "seconds": seconds}
            report(tried[dials])
        return float(tried[dials]["bits_per_byte"])

    without, best = measured(None), start
    score(best)
    for _ in range(SWEEPS):
        before = best
        for dial, grid in grids.items():
            best = min([best, *(replace(best, **{dial: value}) for value in grid)], key=score)
        if best == before:
            break
    edges = [dial for dial, grid in grids.items() if getattr(best, dial) in (grid[0], grid[-1])]
    return Tuned(
        adapt=start.name,
        best=dataclasses.asdict(best),
        bits_per_byte=score(best),
        plain_bits_per_byte=round(without, 6),
        at_edge=edges,
        split=settings.split,
        tokens=tokens,
        length=context.length,
        seed=context.seed,
        tried=list(tried.values()),
    )


DIVERGED = 1e9  # bits per byte of a trial whose weights ran away


def _finite(measured: Callable[[Adaptation], float], dials: Adaptation) -> float:
    """A trial that diverges is a bad trial, no error."""
    try:
        return measured(dials)
    except InputError as error:
        if "not finite" in str(error):
            return DIVERGED
        raise
