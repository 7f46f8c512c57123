"""The same tasks under datatrove's executors: on this machine, or as a Slurm job array.

datatrove and not Ray: it needs no cluster of its own beside Slurm, is made for corpora, and a rank here is no more
than a list of tasks that leave their results in a folder, so that merging is reading their records.
"""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hope_data.errors import InputError, Unfinished

try:
    from datatrove.executor import LocalPipelineExecutor, SlurmPipelineExecutor
    from loguru import logger
except ImportError:
    raise InputError("engine datatrove needs datatrove: pip install 'hope-data[scale]'") from None

if TYPE_CHECKING:
    from hope_data.work import Todo

# Its banners would stand between the user and our one line. Workers import this module too.
logger.disable("datatrove")
_POLL_SECONDS = 5.0


class Ranks:
    """A pipeline step of datatrove: rank r of n does every n-th task, beginning with r."""

    def __init__(self, todo: "Todo"):
        self.todo = todo

    def __call__(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Do this rank's tasks; those that are done already are left alone."""
        del data
        for i in self.todo.numbers[rank::world_size]:
            if not self.todo.done(i):
                self.todo(i)


def local(todo: "Todo", workers: int) -> None:
    """Run under the local executor, as many ranks as workers.

    Raises:
        InputError: a task's.
    """
    workers = max(1, min(workers, len(todo.numbers)))
    with tempfile.TemporaryDirectory() as logs, _silent_children():
        LocalPipelineExecutor([Ranks(todo)], tasks=workers, workers=workers, logging_dir=logs).run()


@contextmanager
def _silent_children() -> Iterator[None]:
    """Let processes that begin meanwhile write no tracebacks, as each would at Ctrl-C; what they raise comes here."""
    terminal, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)
        os.close(nowhere)


def slurm(todo: "Todo", workers: int, options: dict[str, str]) -> None:
    """Submit a job array of `workers` ranks and wait for it.

    Args:
        todo: tasks; their folder must be on a file system that the nodes share.
        workers: ranks.
        options: of datatrove's SlurmPipelineExecutor: partition and time at least.

    Raises:
        InputError: Slurm is not here, or an option is missing or unknown.
        Unfinished: the array ended with tasks undone; the next run submits those again.
    """
    if not shutil.which("sbatch"):
        raise InputError("engine slurm: no sbatch on PATH; run on a login node, or use --engine datatrove")
    numbers = {k: int(v) if v.isdecimal() else v for k, v in options.items()}
    logs = todo.work.folder.absolute().parent / f"{todo.work.out.name}.slurm-logs"
    try:
        executor = SlurmPipelineExecutor(
            [Ranks(todo)],
            tasks=min(workers, len(todo.numbers)),
            logging_dir=str(logs),
            **{"job_name": f"hope-data-{todo.step}", "skip_completed": False, **numbers},
        )
    except TypeError as error:
        raise InputError(
            f"engine slurm: {str(error).split('() ')[-1]}; give it with --slurm KEY=VALUE"
        ) from None
    executor.run()
    try:
        while not all(todo.done(i) for i in todo.numbers):
            # Asked before the results are looked at: a job that has ended has written them.
            ended = not _queued(executor.job_id)
            if ended and not all(todo.done(i) for i in todo.numbers):
                raise Unfinished(
                    f"Slurm job {executor.job_id} ended with tasks undone; see {logs}, then run it again"
                )
            time.sleep(_POLL_SECONDS)
    except KeyboardInterrupt:
        subprocess.run(["scancel", str(executor.job_id)], check=False)
        raise
    shutil.rmtree(logs, ignore_errors=True)


def _queued(job: str) -> bool:
    found = subprocess.run(["squeue", "-h", "-j", str(job)], capture_output=True, text=True, check=False)
    return bool(found.stdout.strip())


def reference_dedup(texts: list[str], folder: Path) -> set[int]:
    """Positions of the texts that datatrove's MinHash steps drop, at its own settings: what `bench` compares with.

    Words are split at white space: the tokenizer that datatrove takes for English is spaCy's, and slower.
    """
    try:
        import xxhash  # noqa: PLC0415
        from datatrove.data import Document as Row  # noqa: PLC0415
        from datatrove.pipeline import dedup  # noqa: PLC0415
        from datatrove.utils.word_tokenizers import WordTokenizer  # noqa: PLC0415
    except ImportError as error:
        raise InputError(f"the comparison needs {error.name}: pip install 'hope-data[bench]'") from None

    class Words(WordTokenizer):  # type: ignore[misc]
        def word_tokenize(self, text: str) -> list[str]:
            return text.split()

        def sent_tokenize(self, text: str) -> list[str]:
            return [text]

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            return [(0, len(text))]

    config = dedup.MinhashConfig()
    rows = [Row(text, str(i)) for i, text in enumerate(texts)]
    signatures, buckets, clusters = (str(folder / name) for name in ("signatures", "buckets", "clusters"))
    signing = dedup.MinhashDedupSignature(signatures, config, Words())
    # Its own passes text where xxhash 4 takes bytes only.
    signing._hash_func = lambda shingle: xxhash.xxh64_intdigest(shingle.encode())
    signing.run(rows, 0, 1)
    for bucket in range(config.num_buckets):
        dedup.MinhashDedupBuckets(signatures, buckets, config=config).run(None, bucket, config.num_buckets)
    dedup.MinhashDedupCluster(buckets, clusters, config).run(None, 0, 1)
    kept = {int(row.id) for row in dedup.MinhashDedupFilter(clusters).run(rows, 0, 1)}
    return set(range(len(texts))) - kept
