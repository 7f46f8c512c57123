"""lm-eval's seam: the model `hope`, one `TemplateLM` for our checkpoints and for those of transformers.

lm_eval --model hope --model_args pretrained=runs/hope/checkpoint --tasks piqa
python -c "import hope_eval.lm_eval_bridge.model"    # registers it in a program of one's own
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lm_eval.models  # noqa: F401 (fills the registry, which asks for it only while empty)
import numpy as np
import torch
from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from numpy.typing import NDArray
from tqdm import tqdm

from hope_data.errors import InputError
from hope_eval.lm_eval_bridge import arguments, generation
from hope_eval.scoring.batching import Request
from hope_eval.scoring.load import Loaded, load
from hope_eval.scoring.scorer import Scorer
from hope_eval.scoring.tokenizers import HopeTokenizer

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@register_model("hope")
class HopeLM(TemplateLM):  # type: ignore[misc]  # lm-eval is not typed
    """A checkpoint behind lm-eval's three questions.

    Contexts that neighbouring requests share run once and their state is forked; rows of similar length run
    together; no state sees padding. So results depend neither on `batch_size` nor on `share`.

    Args:
        pretrained: folder of a checkpoint of ours or of transformers; or what `models.load` returned.
        tokenizer: its folder, where it is not found by its hash.
        options: see `lm_eval_bridge.arguments.Arguments`.

    Raises:
        InputError: an unknown or unfit argument, or a folder that cannot be loaded.
    """

    def __init__(
        self,
        pretrained: str | Path | Loaded | None = None,
        tokenizer: str | Path | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if pretrained is None:
            raise InputError("pretrained is missing: name a checkpoint, as in --model_args pretrained=DIR")
        given = arguments.parse(options)
        loaded = pretrained
        if not isinstance(loaded, Loaded):
            loaded = load(
                Path(str(pretrained)),
                Path(str(tokenizer)) if tokenizer else None,
                given.device,
                dtype=given.dtype,
            )
        self.loaded, self.share = loaded, given.share
        self._tokenizer = loaded.tokenizer
        limit = loaded.model.max_length
        if given.max_length and limit and given.max_length > limit:
            raise InputError(
                f"max_length {given.max_length} is more than the {limit} tokens that {loaded.about.run} allows"
            )
        self.max_length = given.max_length or loaded.length
        budget = 2**62 if given.rows and not given.automatic else given.batch_tokens
        self.scorer = Scorer(loaded.model, loaded.model.device, budget, batch_size=given.rows)
        self.answers: dict[str, str] = {}
        self.title = ""
        self._encoded: dict[tuple[str, bool], list[int]] = {}

    @property
    def eot_token_id(self) -> int:
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

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihood of continuations, and whether each is the greedy one.

        Raises:
            InputError: a continuation without a token, which every model would agree with.
        """
        pairs = [(request.args, *self._encode_pair(*request.args)) for request in requests]
        return self._loglikelihood_tokens(pairs, disable_tqdm=disable_tqdm)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokens of a context and of its continuation.

        As lm-eval's own models do, white space at the context's end counts as the continuation's, both are
        tokenised together, and an empty context is the begin-of-text token. Where one token spans both, theirs
        score only what lies beyond it, or nothing; here the continuation is then tokenised by itself.
        """
        before = context.rstrip()
        continuation = context[len(before) :] + continuation
        alone = self.tok_encode(continuation, add_special_tokens=False)
        if not alone:
            raise InputError(
                f"the continuation {continuation!r} of ...{context[-60:]!r} has no token, so nothing can be scored; "
                "mend the task's choices"
            )
        if not before:
            begun = alone[0] == self.prefix_token_id and len(alone) > 1
            return (alone[:1], alone[1:]) if begun else ([self.prefix_token_id], alone)
        head, whole = self.tok_encode(before), self.tok_encode(before + continuation)
        split = len(head) < len(whole) and whole[: len(head)] == head
        return head, whole[len(head) :] if split else alone

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        pairs = [self._fit(self._told(strings) + context, answer) for strings, context, answer in requests]
        planned = sum(len(pair.fed()) for pair in pairs)
        with self._bar(planned, disable_tqdm):
            scored = self.scorer.continuations(pairs, share=self.share)
        answers = [(score.logp, score.greedy) for score in scored]
        for request, answer in zip(requests, answers, strict=True):
            if request[0] is not None:
                self.cache_hook.add_partial("loglikelihood", request[0], answer)
        return answers

    @contextmanager
    def _bar(self, planned: int, disable: bool) -> Iterator[None]:
        """Show tokens fed: in the scorer's own bar under `title`, or in one of tqdm, as lm-eval's models do."""
        if self.title:
            self.scorer.begin(self.title, planned)
            yield
            return
        with tqdm(total=planned, desc="tokens at most", unit_scale=True, disable=disable or None) as bar:
            self.scorer.advance = bar.update
            yield

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
        """Text up to a stop string, the end of text or the most tokens that a request allows.

        Options mean what they mean to lm-eval's own models: see `generation.Options`. What is drawn depends on
        torch's seed and on the requests' order, not on how they are batched.

        Raises:
            InputError: an option that is not built, or a prompt that leaves no room.
        """
        texts = [""] * len(requests)
        by_options: dict[generation.Options, list[int]] = {}
        for number, request in enumerate(requests):
            by_options.setdefault(generation.parse(request.args[1]), []).append(number)
        seeds = torch.randint(2**62, (len(requests),)).tolist()
        for options, numbers in by_options.items():
            prompts = [self._prompt(requests[n].args[0], options.steps) for n in numbers]

            def done(_: int, ids: list[int], stops: tuple[str, ...] = options.stops) -> bool:
                return ids[-1] == self.eot_token_id or any(s in self._tokenizer.decode(ids) for s in stops)

            draw = options.sampler([seeds[n] for n in numbers])
            with self._bar(sum(map(len, prompts)) + options.steps * len(prompts), disable_tqdm):
                written = self.scorer.generate(prompts, options.steps, done, draw)
            for n, ids in zip(numbers, written, strict=True):
                text = self._tokenizer.decode([i for i in ids if i != self.eot_token_id])
                texts[n] = _until(text, options.stops)
                self.cache_hook.add_partial("generate_until", requests[n].args, texts[n])
        return texts

    def _prompt(self, text: str, steps: int) -> NDArray[np.int64]:
        """Tokens of a prompt, cut from the left to leave room for what is generated."""
        room = self.max_length - steps
        if room < 1:
            raise InputError(f"max_gen_toks {steps} leaves no room in a max_length of {self.max_length}")
        return np.array((self.tok_encode(text) or [self.prefix_token_id])[-room:], np.int64)


def _until(text: str, stops: tuple[str, ...]) -> str:
    ends = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text
