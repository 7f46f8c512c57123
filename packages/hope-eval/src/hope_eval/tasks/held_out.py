"""`hope-eval run`: tasks over the held-out text of a checkpoint's corpora."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hope_data import shards
from hope_data.errors import InputError
from hope_data.shards import Split
from hope_data.tokenizer import Tokenizer
from hope_eval.results import TaskResult
from hope_eval.results.names import SHUFFLED
from hope_eval.scoring.load import Loaded
from hope_eval.scoring.memorize import Memorize, refuse_rereading
from hope_eval.scoring.scorer import Scorer
from hope_eval.tasks import choice, passkey, perplexity
from hope_eval.tasks.base import Context, Task
from hope_eval.tasks.locked import Locked

TASKS: dict[str, Callable[[Context], list[TaskResult]]] = {
    perplexity.NAME: lambda context: perplexity.run_all(context, perplexity.Settings()),
    choice.NAME: lambda context: [choice.run(context, choice.Settings())],
    passkey.NAME: lambda context: [passkey.run(context, passkey.Settings())],
    SHUFFLED: lambda context: perplexity.run_all(context, perplexity.Settings(shuffle=perplexity.SHUFFLE)),
}
# Of tasks that not every tokenizer and every text can be asked.
CHECKS: dict[str, Callable[[Context], Any]] = {
    choice.NAME: lambda context: choice.build(context, choice.Settings()),
    passkey.NAME: passkey.check,
}
USUAL = (perplexity.NAME, choice.NAME, passkey.NAME)
TEXTS = 8  # windows of each domain's training text, for statistics of gradients


@dataclass(frozen=True)
class HeldOut(Task):
    """Bits per byte, continuation choice and passkeys.

    Attributes:
        shards: folder with one folder of shards per corpus.
        tasks: names of `TASKS`.
        domains: corpora to evaluate on; none given means those it was trained on.
        length: tokens of a window; 0 takes the training length.
        limit: see `Context`.
        seed: of the items; the same seed gives every checkpoint the same items.
        splits: what must be there of every corpus.
        adapt_tasks: those that are run again with adaptations at test time; none given means all.
        documents: a list of `hope-eval lock`: score these alone.
    """

    shards: Path
    tasks: Sequence[str] = USUAL
    domains: Sequence[str] = ()
    length: int = 0
    limit: int | None = None
    seed: int = 0
    splits: Sequence[str] = ("train", "test")
    adapt_tasks: Sequence[str] = ()
    documents: Path | None = None

    def __post_init__(self) -> None:
        """Refuse an unknown task, or none, and a list of documents for tasks that take none."""
        unknown = [name for name in (*self.tasks, *self.adapt_tasks) if name not in TASKS]
        if unknown or not self.tasks:
            raise InputError(f"unknown task '{''.join(unknown[:1])}'; choose among {', '.join(TASKS)}")
        texts = (perplexity.NAME, SHUFFLED)
        if self.documents and (others := [name for name in self.tasks if name not in texts]):
            raise InputError(f"--documents: '{others[0]}' takes no list; give --tasks {','.join(texts)}")

    def run(self, loaded: Loaded, scorer: Scorer) -> list[TaskResult]:
        context = self.context(loaded, scorer)
        for name in CHECKS.keys() & set(self.tasks):  # before the first of them takes minutes
            CHECKS[name](context)
        return [result for name in self.tasks for result in TASKS[name](context)]

    def load(self, checkpoint: Path, tokenizer: Path | None, device: str) -> Loaded:
        """Load the model; its tokenizer must be that of the shards."""
        loaded = super().load(checkpoint, tokenizer, device)
        own = loaded.meta.get("corpora", [])
        if not isinstance(own, list) or not all(isinstance(name, str) for name in own):
            raise InputError(f"{checkpoint / 'meta.json'}: corpora is no list of names; save it again")
        inner = own_tokenizer(loaded)
        for folder in self._folders(loaded):
            for name in self.splits:
                Split.open(folder, name, inner)
        return loaded

    def refuse(self, memorize: Memorize) -> None:
        for name in self.tasks:
            if name in (perplexity.NAME, SHUFFLED):
                refuse_rereading(memorize, name)
            elif name == passkey.NAME:
                passkey.refuse(memorize)

    def passes(self, adaptations: int) -> int:
        """Return one for each task, plain and adapted."""
        return len(self.tasks) + adaptations * len(self.adapt_tasks or self.tasks)

    def adapted(self) -> Task:
        return replace(self, tasks=self.adapt_tasks or self.tasks)

    def window(self, loaded: Loaded) -> int:
        return self.length or loaded.length

    def training_text(self, loaded: Loaded) -> list[Tensor]:
        return training_windows(self.context(loaded, Scorer(loaded.model)))

    def context(self, loaded: Loaded, scorer: Scorer) -> Context:
        """Put together what every task is given."""
        return Context(
            scorer=scorer,
            tokenizer=own_tokenizer(loaded),
            domains={folder.name: folder for folder in self._folders(loaded)},
            length=self.window(loaded),
            limit=self.limit,
            seed=self.seed,
            documents=self._listed(loaded),
        )

    def _listed(self, loaded: Loaded) -> frozenset[str] | None:
        if self.documents is None:
            return None
        locked = Locked.read(self.documents)
        if locked.tokenizer_sha256 != own_tokenizer(loaded).sha256:
            raise InputError(f"{self.documents}: lists documents as another tokenizer cuts them; lock anew")
        return locked.documents

    def _folders(self, loaded: Loaded) -> list[Path]:
        return corpora(self.shards, list(self.domains or loaded.meta.get("corpora", [])))


def training_windows(context: Context) -> list[Tensor]:
    """Return windows of every domain's training text, the same for the same seed."""
    texts = []
    for domain in context.domains:
        split = context.split(domain, "train")
        for number in context.rng("texts", domain).permutation(split.n_documents)[:TEXTS].tolist():
            window = context.windows(split.document(number)[: context.length], context.length)
            texts += [torch.as_tensor(part.astype(np.int64)) for part in window]
    return texts


def own_tokenizer(loaded: Loaded) -> Tokenizer:
    """Return the tokenizer as shards are made with it: of hope-data, or of Hugging Face behind its interface.

    Raises:
        InputError: one that is not lossless.
    """
    return loaded.tokenizer.data


def corpora(folder: Path, names: list[str]) -> list[Path]:
    """Return folders of shards by name, or all of them.

    Raises:
        InputError: none there, or a name that is not among them, which are listed.
    """
    existing = sorted(path.name for path in shards.corpora(folder))
    missing = [name for name in names if not (folder / name / shards.INDEX).is_file()]
    if missing and existing:
        raise InputError(
            f"{folder}: no shards of corpus {', '.join(missing)}; there are {', '.join(existing)}"
        )
    return shards.corpora(folder, names)
