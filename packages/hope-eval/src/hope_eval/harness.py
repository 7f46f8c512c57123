"""lm-eval's seam: the model `hope`, one `TemplateLM` for our checkpoints and for those of transformers.

lm_eval --model hope --model_args pretrained=runs/hope/checkpoint --tasks piqa
python -c "import hope_eval.harness"    # registers it in a program of one's own
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lm_eval.models  # noqa: F401 (fills the registry, which asks for it only while empty)
import numpy as np
import torch
from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from tqdm import tqdm

from hope_data.errors import InputError
from hope_eval.lm import Scorer
from hope_eval.models import HopeTokenizer, Loaded, load
from hope_eval.prefixes import Request

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@register_model("hope")
class HopeLM(TemplateLM):  # type: ignore[misc]  # lm-eval is not typed
    """A checkpoint behind lm-eval's three questions.

    Contexts that neighbouring requests share run once and their state is forked; rows of similar length run
    together; no state sees padding. So results depend neither on `batch_size` nor on `share`.

    Args:
        pretrained: folder of a checkpoint of ours or of transformers; or what `models.load` returned.
        tokenizer: folder, where it is not found by its hash.
        max_length: tokens of context; longer ones lose their beginning. 0: the training length.
        batch_size: most sequences in a pass; "auto" or None: as many as `batch_tokens` allows.
        batch_tokens: most tokens in a pass.
        share: False runs every context anew, for comparison.
        device: where to compute.
    """

    def __init__(
        self,
        pretrained: str | Path | Loaded,
        tokenizer: str | Path | None = None,
        max_length: int = 0,
        batch_size: int | str | None = None,
        batch_tokens: int = 1024,
        share: bool = True,
        device: str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        del max_batch_size  # lm-eval hands it to every model
        loaded = pretrained
        if not isinstance(loaded, Loaded):
            # lm-eval asks for cuda:0 unless told otherwise, and its own models then take what there is.
            usable = device if device and (device.startswith("cpu") or torch.cuda.is_available()) else "cpu"
            loaded = load(Path(str(pretrained)), Path(tokenizer) if tokenizer else None, usable)
        self.loaded, self.share = loaded, share
        self._tokenizer = loaded.tokenizer
        limit = loaded.model.max_length
        if max_length and limit and max_length > limit:
            raise InputError(
                f"max_length {max_length} is more than the {limit} tokens that {loaded.about.run} allows"
            )
        self.max_length = max_length or loaded.length
        rows = None if batch_size in (None, "auto") else int(str(batch_size))
        budget = 2**62 if rows else batch_tokens
        self.scorer = Scorer(loaded.model, loaded.model.device, budget, batch_size=rows)
        self.answers: dict[str, str] = {}
        self._encoded: dict[tuple[str, bool], list[int]] = {}

    @property
    def eot_token_id(self) -> int:
        """End of text."""
        return self._tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has no context: as lm-eval's own, begin-of-text where one exists."""
        bos = getattr(getattr(self._tokenizer, "inner", None), "bos_token_id", None)
        return self.eot_token_id if bos is None else int(bos)

    @property
    def tokenizer_name(self) -> str:
        """Names lm-eval's request caches."""
        return self.loaded.about.tokenizer_sha256 or self.loaded.about.run

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids; None leaves special tokens to the tokenizer's habit."""
        # lm-eval asks for a context anew with each of its answers.
        asked = (string, add_special_tokens is not False)
        if asked not in self._encoded:
            if len(self._encoded) > 16:
                self._encoded.clear()
            self._encoded[asked] = self._tokenizer.encode(string, special=asked[1])
        return list(self._encoded[asked])

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        pairs = [self._fit(self._told(strings) + context, answer) for strings, context, answer in requests]
        planned = sum(len(pair.fed()) for pair in pairs)
        with tqdm(total=planned, desc="tokens at most", unit_scale=True, disable=disable_tqdm or None) as bar:
            self.scorer.advance = bar.update
            scored = self.scorer.continuations(pairs, share=self.share)
        answers = [(score.logp, score.greedy) for score in scored]
        for request, answer in zip(requests, answers, strict=True):
            if request[0] is not None:
                self.cache_hook.add_partial("loglikelihood", request[0], answer)
        return answers

    def _told(self, strings: tuple[str, str] | None) -> list[int]:
        """What an oracle reads first: the context with its correct answer."""
        if not (self.scorer.memorize and self.scorer.memorize.oracle):
            return []
        if strings is None or strings[0] not in self.answers:
            raise InputError("--memorize-oracle: this task has no one correct answer to a context")
        return self.tok_encode(strings[0] + self.answers[strings[0]])

    def _fit(self, context: Sequence[int], continuation: Sequence[int]) -> Request:
        """Cut from the left what does not fit, as lm-eval does; the last token is never fed."""
        if len(continuation) > self.max_length:
            raise InputError(
                f"a continuation of {len(continuation)} tokens is longer than max_length {self.max_length}"
            )
        kept = [*context, *continuation][-(self.max_length + 1) :]
        cut = len(kept) - len(continuation)
        return Request(tuple(kept[:cut]), tuple(kept[cut:]))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, in windows of `max_length` with one token of context, as lm-eval's."""
        windows: list[tuple[None, list[int], list[int]]] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            rolling = utils.get_rolling_token_windows(
                token_list=self._rolling_tokens(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for context, continuation in map(utils.make_disjoint_window, rolling):
                windows.append((None, context, continuation))
                owners.append(number)
        totals = [0.0] * len(requests)
        for owner, (logp, _) in zip(
            owners, self._loglikelihood_tokens(windows, disable_tqdm=disable_tqdm), strict=True
        ):
            totals[owner] += logp
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _rolling_tokens(self, text: str) -> list[int]:
        # Ours would put the prefix token first, and the windows do so too.
        return self._tokenizer.encode(text, special=not isinstance(self._tokenizer, HopeTokenizer))

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Greedy text up to a stop string, the end of text or `max_gen_toks`.

        Raises:
            InputError: sampling is asked for, or a prompt leaves no room.
        """
        made = [""] * len(requests)
        by_options: dict[tuple[tuple[str, ...], int], list[int]] = {}
        for number, request in enumerate(requests):
            by_options.setdefault(_generation(request.args[1]), []).append(number)
        for (stops, steps), numbers in by_options.items():
            room = self.max_length - steps
            if room < 1:
                raise InputError(f"max_gen_toks {steps} leaves no room in a max_length of {self.max_length}")
            prompts = [np.array(self.tok_encode(requests[n].args[0])[-room:], np.int64) for n in numbers]
            with tqdm(total=len(numbers), disable=disable_tqdm or None, desc="texts") as bar:

                def done(_: int, ids: list[int], stops: tuple[str, ...] = stops, bar: Any = bar) -> bool:
                    stop = ids[-1] == self.eot_token_id or any(
                        s in self._tokenizer.decode(ids) for s in stops
                    )
                    bar.update(int(stop))
                    return stop

                self.scorer.advance = lambda _: None
                written = self.scorer.generate(prompts, steps, done)
            for n, ids in zip(numbers, written, strict=True):
                made[n] = _until(self._tokenizer.decode([i for i in ids if i != self.eot_token_id]), stops)
                self.cache_hook.add_partial("generate_until", requests[n].args, made[n])
        return made


def _generation(options: dict[str, Any]) -> tuple[tuple[str, ...], int]:
    """Stop strings and the most tokens to make."""
    if options.get("do_sample") and options.get("temperature", 1.0) > 0:
        raise InputError("generate_until: only greedy decoding is built; set do_sample=False")
    until = options.get("until") or []
    stops = (until,) if isinstance(until, str) else tuple(until)
    return tuple(stop for stop in stops if stop), int(options.get("max_gen_toks", 256))


def _until(text: str, stops: tuple[str, ...]) -> str:
    ends = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text
