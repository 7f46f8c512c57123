"""Generation options of lm-eval's tasks, with the meaning that lm-eval gives them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lm_eval.models.utils import normalize_gen_kwargs
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from hope_data.errors import InputError
from hope_model.ranges import shown

MOST = 256  # tokens where a task does not say, as everywhere in lm-eval
# Of transformers, which lm-eval's `hf` samples with.
TOP_K = 50
COLDEST = 1e-30  # a logit by less is no number of float32
ALLOWED = ("until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p", "min_p", "num_beams")


@dataclass(frozen=True)
class Options:
    """How to generate.

    Attributes:
        stops: texts that end a generation.
        steps: most tokens; 0: none.
        temperature: of sampling; 0: greedy.
        top_k: draw among the k likeliest tokens; 0: all.
        top_p: draw among the likeliest tokens that hold this probability.
        min_p: draw among tokens with at least this share of the likeliest one's probability.
    """

    stops: tuple[str, ...]
    steps: int
    temperature: float = 0.0
    top_k: int = TOP_K
    top_p: float = 1.0
    min_p: float = 0.0

    def sampler(self, seeds: Sequence[int]) -> Callable[[int, Tensor], int] | None:
        """Draw the token after a prompt, by its number, from logits [V]; None where nothing is drawn."""
        if not self.temperature:
            return None
        warpers = LogitsProcessorList([TemperatureLogitsWarper(self.temperature)])
        warpers += [TopKLogitsWarper(self.top_k)] if self.top_k else []
        warpers += [TopPLogitsWarper(self.top_p)] if self.top_p < 1 else []
        warpers += [MinPLogitsWarper(self.min_p)] if self.min_p else []
        # One stream of draws each: what one prompt becomes does not depend on its neighbours.
        draws = [torch.Generator().manual_seed(seed) for seed in seeds]

        def draw(number: int, logits_V: Tensor) -> int:
            warped_1V = warpers(None, logits_V[None].float().cpu())
            return int(torch.multinomial(warped_1V.softmax(-1), 1, generator=draws[number]))

        return draw


def parse(options: Mapping[str, Any]) -> Options:
    """What a task's `generation_kwargs` ask for, normalised by lm-eval itself.

    Raises:
        InputError: an unknown option, or a value out of its range.
    """
    if not isinstance(options, Mapping):
        raise InputError(f"generation_kwargs is {shown(options)}; it must be a mapping of options to values")
    if not isinstance(options.get("do_sample"), int | None):
        raise InputError(
            f"generation_kwargs: do_sample is {shown(options['do_sample'])}; it must be true or false"
        )
    try:
        given: dict[str, Any] = dict(normalize_gen_kwargs({**options}, MOST))
        unknown = sorted(given.keys() - set(ALLOWED))
        stops = _stops(given["until"])
        steps, beams = int(given["max_gen_toks"]), int(given.get("num_beams") or 1)
        # `do_sample` alone means a temperature of 1.
        temperature = float(options.get("temperature", 1.0)) if given["do_sample"] else 0.0
        top_k, top_p, min_p = (given.get(key) for key in ("top_k", "top_p", "min_p"))
        result = Options(
            stops,
            steps,
            temperature,
            TOP_K if top_k is None else int(top_k),
            1.0 if top_p is None else float(top_p),
            0.0 if min_p is None else float(min_p),
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"generation_kwargs {dict(options)}: {error}") from None
    if unknown:
        raise InputError(f"generation_kwargs: {unknown[0]} is not built; leave it out: {', '.join(ALLOWED)}")
    ranges = {
        "max_gen_toks": (steps, steps >= 0, "0 or more"),
        "num_beams": (beams, beams == 1, "1; beam search is not built"),
        "temperature": (
            temperature,
            COLDEST <= temperature < float("inf") or not given["do_sample"],
            f"at least {COLDEST}",
        ),
        "top_k": (result.top_k, result.top_k >= 0, "0 (all) or more"),
        "top_p": (result.top_p, 0 < result.top_p <= 1, "above 0 and at most 1"),
        "min_p": (result.min_p, 0 <= result.min_p <= 1, "between 0 and 1"),
    }
    for key, (value, fits, allowed) in ranges.items():
        if not fits:
            raise InputError(f"generation_kwargs: {key} is {value}; it must be {allowed}")
    return result


def _stops(until: Any) -> tuple[str, ...]:
    """Texts of `until`, which lm-eval has made a list."""
    flat = [stop for part in until for stop in (part if isinstance(part, (list, tuple)) else [part]) if stop]
    if not all(isinstance(stop, str) for stop in flat):
        raise ValueError(f"until must be a text or a list of texts, not {until}")
    return tuple(flat)
