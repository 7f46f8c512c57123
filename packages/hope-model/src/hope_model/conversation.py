"""Text in, text out: a checkpoint with its tokenizer, and a stream that keeps its memories between inputs.

Letters: V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hope_model import checkpoint, stream
from hope_model.blocks import parameter_count, variant_parts
from hope_model.errors import InputError
from hope_model.layers.cms import CMS
from hope_model.model import LanguageModel
from hope_model.state import State, fast_weights, metrics
from hope_model.symbols import Symbols

VOCABULARY, FAST = "tokenizer.model", "tokenizer.json"
DEFAULT_TOKENIZER = Path("data/tokenizer")  # where the pipeline puts it
_CUT = "\ufffd"  # what a character decodes to whose last bytes are still to come


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    Attributes:
        temperature: logits are divided by it; 0 takes the likeliest token.
        top_p: only the likeliest tokens whose probabilities sum to this (Holtzman et al. 2020, arXiv 1904.09751).
        seed: of the draws.
    """

    temperature: float = 0.8
    top_p: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 100:
            raise InputError(
                f"--temperature {self.temperature}: give a number from 0 (likeliest token) to 100"
            )
        if not 0 < self.top_p <= 1:
            raise InputError(f"--top-p {self.top_p}: give a share above 0, at most 1 (every token)")


def sample(logits_V: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """Draw one token."""
    if not sampling.temperature:
        return int(logits_V.argmax())
    p_V, ids_V = (logits_V.double() / sampling.temperature).softmax(-1).sort(descending=True, stable=True)
    # The first token stays whatever its probability.
    p_V = p_V.where(p_V.cumsum(-1) - p_V < sampling.top_p, 0)
    return int(ids_V[torch.multinomial(p_V, 1, generator=generator)])


class Level(NamedTuple):
    """What one memory holds at this moment; norms are means over blocks."""

    name: str
    period: int  # tokens between writes
    writes: int
    norm: float  # of what was written
    share: float  # of the norm of the trained weights that it began with; inf where those are zero


class Conversation:
    """A model that reads and writes one stream.

    Args:
        folder: a checkpoint.
        tokenizer: its tokenizer's folder; None looks in the checkpoint, then in data/tokenizer.
        device: where to compute.
        memory: False: nothing is written at test time.

    Attributes:
        state: after all that was read and written; None before the first token.
    """

    def __init__(
        self, folder: Path, tokenizer: Path | None = None, device: str = "cpu", *, memory: bool = True
    ) -> None:
        self.model, self.meta = checkpoint.load(folder, device)
        task = self.meta.get("task")
        self.tokenizer = (
            Symbols(task, self.model.config.vocab_size)
            if task
            else open_tokenizer(folder, tokenizer, self.meta)
        )
        self.device = device
        self._known = min(len(self.tokenizer), self.model.config.vocab_size)
        self.reset(memory=memory)

    def reset(self, *, memory: bool | None = None) -> None:
        """Begin a new stream; `memory` as in the constructor, None leaves it."""
        if memory is not None:
            own = self.model.settings()
            self.settings = own if memory else own.silent()
        self.state: State | None = None
        self._logits_V: Tensor | None = None

    @property
    def parameters(self) -> int:
        """How many the model has."""
        return parameter_count(self.model)

    def memory_kinds(self) -> bool:
        """Whether the model has memories that are written at test time, beside attention's cache."""
        return bool(self.model.levels) or variant_parts(self.model.config)[0] != "attention"

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; nothing is added."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        if wrong := [i for i in ids if i >= self.model.config.vocab_size]:
            raise InputError(f"token {wrong[0]} is not in the model's vocabulary; name its own tokenizer")
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    @torch.inference_mode()
    def read(self, text: str) -> None:
        """Take in a text; a new stream begins after end-of-text, as documents do in training."""
        ids = self.encode(text)
        if self.state is None:
            self.state = self.model.initial(1, self.settings)
            ids = [*self._end(), *ids]
        if ids:
            self._feed(ids)

    def _end(self) -> list[int]:
        tokenizer = self.tokenizer
        end = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        return [] if end is None else [int(end)]

    def _feed(self, ids: Sequence[int]) -> None:
        logits_1TV, self.state = self.model(torch.tensor([ids], device=self.device), self.state)
        self._logits_V = logits_1TV[0, -1, : self._known]

    @torch.inference_mode()
    def write(self, tokens: int, sampling: Sampling) -> Iterator[str]:
        """Generate up to `tokens` tokens or to end-of-text; yields text as soon as its characters are whole."""
        if self._logits_V is None:
            self.read("")
        generator = torch.Generator().manual_seed(sampling.seed)
        ids: list[int] = []
        shown = ""
        for _ in range(tokens):
            assert self._logits_V is not None  # noqa: S101
            token = sample(self._logits_V.cpu(), sampling, generator)
            self._feed([token])
            if token == self.tokenizer.eos_token_id:
                break
            ids.append(token)
            text = self.decode(ids)
            if not text.endswith(_CUT):
                yield text[len(shown) :]
                shown = text
        if rest := self.decode(ids)[len(shown) :]:
            yield rest

    def likeliest(self, tokens: int) -> str:
        """What greedy generation would write; the stream itself stays where it is."""
        state, logits_V = self.state, self._logits_V
        text = "".join(self.write(tokens, Sampling(temperature=0.0)))
        self.state, self._logits_V = state, logits_V
        return text

    @torch.inference_mode()
    def bits(self, text: str) -> float:
        """Bits that `text` costs after what was read; the stream itself stays where it is."""
        state, logits_V = self.state, self._logits_V
        total = 0.0
        for token in self.encode(text):
            assert self._logits_V is not None  # noqa: S101
            total -= float(self._logits_V.double().log_softmax(-1)[token]) / 0.6931471805599453
            self._feed([token])
        self.state, self._logits_V = state, logits_V
        return total

    def save(self, path: Path) -> None:
        if self.state is None:
            raise InputError("nothing was read yet, so there is no state to save")
        stream.save_state(path, self.model, self.state)

    def load(self, path: Path) -> None:
        self.state, self._logits_V = stream.load_state(path, self.model), None

    def memory(self) -> list[Level]:
        """What every memory holds; attention's cache is none."""
        if self.state is None:
            return []
        sizes, position = metrics(self.state), self.state.position
        rows = []
        start = self.model.initial(1, self.settings)
        pairs = [
            (fast_weights(now.mixer), fast_weights(first.mixer))
            for now, first in zip(self.state.blocks, start.blocks, strict=True)
        ]
        if any(now for now, _ in pairs):
            moved, initial = (torch.stack(x).mean() for x in zip(*map(_moved, pairs), strict=True))
            rows.append(Level("mixer", 1, position, float(moved), float(moved / initial)))
        for n in range(self.model.levels):
            norm, period = sizes.get(f"delta_norm_{n}", 0.0), self.model.config.cms.chunks()[n]
            rows.append(
                Level(f"cms.{n}", period, position // period, norm, norm / _trained_norm(self.model, n))
            )
        return rows


def _moved(pair: tuple[Sequence[Tensor], Sequence[Tensor]]) -> tuple[Tensor, Tensor]:
    """How far fast weights are from their initial values, and the norm of those."""
    now, initial = (torch.cat([x.detach().float().flatten() for x in parts]) for parts in pair)
    return (now - initial).norm(), initial.norm()


def _trained_norm(model: LanguageModel, n: int) -> float:
    """Frobenius norm of a level's trained weights, mean over blocks."""
    norms = [
        torch.cat([p.detach().flatten() for p in block.channel.levels[n].parameters()]).norm()
        for block in model.blocks
        if isinstance(block.channel, CMS)
    ]
    return float(torch.stack(norms).mean())


def open_tokenizer(folder: Path, tokenizer: Path | None, meta: dict[str, Any]) -> Any:
    """The tokenizer of a checkpoint, as one of transformers.

    Raises:
        InputError: there is none, or it is not the one that the model was trained with.
    """
    places = [tokenizer] if tokenizer else [folder / checkpoint.TOKENIZER, folder, DEFAULT_TOKENIZER]
    for place in places:
        if is_ours(place):
            checkpoint.check_tokenizer_hash(folder, meta, place / VOCABULARY)
            return _sentencepiece(place / VOCABULARY)
        if (place / FAST).is_file():
            checkpoint.check_tokenizer_hash(folder, meta, place / FAST)
            return _transformers(place)
    raise InputError(
        f"{places[0]}: holds no tokenizer; name the folder of the one it was trained with: --tokenizer data/tokenizer"
    )


def is_ours(folder: Path) -> bool:
    """Whether this is a tokenizer of hope-data; its sealed record has the name of Hugging Face's vocabulary."""
    record = folder / FAST
    return (folder / VOCABULARY).is_file() and (not record.is_file() or b'"seal"' in record.read_bytes())


def _sentencepiece(path: Path) -> Any:
    from hope_model.hf.tokenizer import HopeTokenizer  # noqa: PLC0415 (transformers is slow to import)

    try:
        return HopeTokenizer(str(path))
    except RuntimeError:
        raise InputError(f"{path}: is no sentencepiece model; name the tokenizer's folder") from None


def _transformers(place: Path) -> Any:
    import transformers  # noqa: PLC0415 (slow to import)

    try:
        return transformers.AutoTokenizer.from_pretrained(
            place, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise InputError(
            f"{place}: holds no tokenizer that transformers reads: {str(error).splitlines()[0]}"
        ) from None
