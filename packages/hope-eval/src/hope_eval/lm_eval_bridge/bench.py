"""Zero-shot examples per second: this harness and lm-eval's `hf` model on the same weights, rows and threads, in turn.

The model is a Llama with random weights, or a folder of transformers. Log-likelihoods must agree to 1e-4 in the
same run, or the comparison would be of different things.
"""

import logging
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from hope_data.errors import InputError
from hope_eval.lm_eval_bridge import mirror

Answers = list[float]


@dataclass(frozen=True)
class BenchSettings:
    """What is timed.

    Attributes:
        tasks: of the mirror.
        limit: rows of each task.
        hf_batches: batch sizes that lm-eval's model is given; its fastest counts.
        batch_tokens: of ours.
        dim: width of the random Llama.
        layers: its depth.
        vocabulary: its tokens, learned from the rows.
        threads: of torch.
        rounds: timed ones, after one that warms up; the median counts.
    """

    tasks: tuple[str, ...] = ("piqa", "arc_easy", "boolq", "hellaswag", "lambada_openai")
    limit: int = 40
    hf_batches: tuple[int, ...] = (1, 16)
    batch_tokens: int = 1024
    dim: int = 256
    layers: int = 4
    vocabulary: int = 8000
    threads: int = 1
    rounds: int = 3

    @property
    def timings(self) -> int:
        """How often a model answers the rows of a task."""
        return len(self.tasks) * (self.rounds + 1) * (1 + len(self.hf_batches))


def bench(
    folder: Path,
    settings: BenchSettings,
    model: Path | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Return a row per task and one for all: examples/s of both, their ratio, the largest difference.

    `advance` is called after each of `settings.timings` timings.

    Raises:
        InputError: an unknown task, or a mirror that lacks a file.
    """
    unknown = [task for task in settings.tasks if task not in mirror.FILES]
    if unknown:
        raise InputError(f"unknown task '{unknown[0]}'; choose among {', '.join(mirror.FILES)}")
    torch.set_num_threads(settings.threads)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as temporary:
        source = model or random_llama(Path(temporary) / "llama", folder, settings)
        return _bench(source, folder, settings, advance)


def _bench(
    source: Path, folder: Path, settings: BenchSettings, advance: Callable[[int], None]
) -> list[dict[str, Any]]:
    from lm_eval.models.huggingface import HFLM  # noqa: PLC0415

    from hope_eval.lm_eval_bridge.model import HopeLM  # noqa: PLC0415

    hf = {
        n: HFLM(pretrained=str(source), device="cpu", batch_size=n, dtype="float32")
        for n in settings.hf_batches
    }
    models: dict[int, Any] = {0: HopeLM(source, batch_tokens=settings.batch_tokens), **hf}
    rows, total = [], np.zeros(2)
    for task in settings.tasks:
        requests = _requests(folder, task, settings.limit)
        seconds: dict[int, list[float]] = {n: [] for n in models}
        answers: dict[int, Answers] = {}
        # In turn, so that a slower moment of the machine meets all; the first round only warms up.
        for turn in range(settings.rounds + 1):
            for n, lm in models.items():
                spent, answers[n] = _timed(lm, requests)
                seconds[n] += [spent] if turn else []
                advance(1)
        middle = {n: median(values) for n, values in seconds.items()}
        best = min(hf, key=lambda n: middle[n])
        gap = max(abs(x - y) for x, y in zip(answers[0], answers[best], strict=True))
        count = len({request.doc_id for request in requests})
        rows.append(_row(task, count, middle[0], middle[best], best, gap))
        total += [middle[0], middle[best]]
    gaps = max(row["largest_difference"] for row in rows)
    return [*rows, _row("all", sum(row["n"] for row in rows), float(total[0]), float(total[1]), 0, gaps)]


def _row(task: str, n: int, ours: float, theirs: float, batch: int, gap: float) -> dict[str, Any]:
    return {
        "task": task,
        "n": n,
        "hope_eval_per_s": round(n / ours, 2),
        "lm_eval_hf_per_s": round(n / theirs, 2),
        "hf_batch": batch or "best",
        "ratio": round(theirs / ours, 2),
        "largest_difference": gap,
    }


def _requests(folder: Path, task: str, limit: int) -> list[Any]:
    from lm_eval.tasks import TaskManager  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as temporary:
        mirror.write_tasks(Path(temporary), folder, [task], limit)
        loaded = TaskManager(include_path=temporary, include_defaults=False).load([task])["tasks"][task]
    loaded.build_all_requests(limit=limit, rank=0, world_size=1)
    return list(loaded.instances)


def _timed(lm: Any, requests: list[Any]) -> tuple[float, Answers]:
    """Seconds of answering all requests, tokenisation included, and the log-likelihoods."""
    ask = getattr(lm, requests[0].request_type)
    start = time.perf_counter()
    answers = ask(requests, disable_tqdm=True)
    seconds = time.perf_counter() - start
    return seconds, [float(answer if isinstance(answer, float) else answer[0]) for answer in answers]


def random_llama(folder: Path, rows: Path, settings: BenchSettings) -> Path:
    """A Llama with random weights and a byte-level tokenizer learned from the mirror's own rows."""
    import tokenizers  # noqa: PLC0415
    import transformers  # noqa: PLC0415

    transformers.logging.disable_progress_bar()
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=settings.vocabulary,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [str(row) for task in settings.tasks for row in mirror.rows(rows, task)[:500]]
    inner.train_from_iterator(texts, trainer)
    end = "<|endoftext|>"
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token=end, bos_token=end
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=inner.get_vocab_size(),
        hidden_size=settings.dim,
        intermediate_size=round(8 * settings.dim / 3),
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.dim // 64,
        max_position_embeddings=2048,
        initializer_range=0.05,
        eos_token_id=0,
        bos_token_id=0,
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder
