"""Which answers checkpoints pick, row by row, beside what token counts alone would pick.

python choices.py --mirror MIRROR --shards data/shards --tokenizer data/tokenizer CHECKPOINT CHECKPOINT ...

Two models that agree on more rows than chance need not both know the answer: below, `counts` picks the answer whose
tokens are the most frequent in the training text and `shortest` the one with the fewest tokens; neither reads the
question. The correlation is of answers' log-likelihoods within a row, after their mean.
"""

import argparse
import itertools
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval import evaluator
from lm_eval.tasks import TaskManager
from numpy.typing import NDArray

from hope_data.errors import InputError
from hope_data.shards import Split, corpora
from hope_data.tokenizer import Tokenizer
from hope_eval.lm_eval_bridge import mirror
from hope_eval.lm_eval_bridge.model import HopeLM
from hope_eval.report.tables import table

TASKS = "piqa,hellaswag,winogrande,arc_easy,arc_challenge,boolq,social_iqa,commonsense_qa,openbookqa"
Rows = list[NDArray[np.float64]]  # one row a question: log-likelihood of every answer


def answers(lm: HopeLM, loaded: Any, task: str) -> tuple[Rows, list[list[tuple[str, str]]], list[float]]:
    """Log-likelihoods, the (context, answer) pairs they belong to, and whether the likeliest is right."""
    samples = evaluator.evaluate(lm, loaded, bootstrap_iters=0)["samples"][task]
    scored = [np.array([score for score, _ in sample["filtered_resps"]], float) for sample in samples]
    pairs = [[tuple(pair) for pair in sample["arguments"]] for sample in samples]
    return scored, pairs, [float(sample["acc"]) for sample in samples]


def token_logp(shards: Path, tokenizer: Tokenizer) -> NDArray[np.float64]:
    """Log-probability [V] of tokens by their counts, plus one, in the training text of all corpora."""
    counts = np.ones(tokenizer.vocab_size)
    for folder in corpora(shards, []):
        tokens_T = Split.open(folder, "train", tokenizer).tokens
        counts += np.bincount(tokens_T, minlength=tokenizer.vocab_size)
    return np.log(counts / counts.sum())


def together(a: Rows, b: Rows) -> str:
    """Share of rows on which both pick the same answer, with its standard error, and the correlation.

    Where `b` finds the answers of every row alike (WinoGrande's are the same words), it picks none.
    """
    if all(float(np.ptp(row)) < 1e-9 for row in b):
        return "all alike"
    same = np.array([x.argmax() == y.argmax() for x, y in zip(a, b, strict=True)], float)
    x, y = (np.concatenate([row - row.mean() for row in rows]) for rows in (a, b))
    error = same.std(ddof=1) / len(same) ** 0.5
    return f"{same.mean():.2f} ± {error:.2f} (r {np.corrcoef(x, y)[0, 1]:.2f})"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table of agreement and one of accuracies."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoints", type=Path, nargs="+", help="two or more, named by their run")
    parser.add_argument("--mirror", type=Path, required=True, metavar="DIR")
    parser.add_argument("--shards", type=Path, required=True, metavar="DIR")
    parser.add_argument("--tokenizer", type=Path, required=True, metavar="DIR")
    parser.add_argument("--tasks", default=TASKS, metavar="A,B", help="default: %(default)s")
    parser.add_argument(
        "--limit", type=int, default=100, metavar="N", help="first rows; default: %(default)s"
    )
    given = parser.parse_args(arguments)
    tasks = given.tasks.split(",")
    models = {lm.loaded.about.run: lm for lm in (HopeLM(path, given.tokenizer) for path in given.checkpoints)}
    logp_V = token_logp(given.shards, Tokenizer.load(given.tokenizer))
    with tempfile.TemporaryDirectory() as made:
        mirror.write_tasks(Path(made), given.mirror, tasks, given.limit)
        manager = TaskManager(include_path=made, include_defaults=False)
        loaded = {task: manager.load([task]) for task in tasks}
        agree, right = [], []
        for task in tasks:
            rows, hits, pairs = {}, {}, []
            for name, lm in models.items():
                rows[name], pairs, hits[name] = answers(lm, loaded[task], task)
            first = next(iter(models.values()))
            told = [[first._encode_pair(*pair)[1] for pair in row] for row in pairs]
            rows["counts"] = [np.array([logp_V[ids].sum() for ids in row]) for row in told]
            rows["shortest"] = [-np.array([len(ids) for ids in row], float) for row in told]
            guess = np.mean([1 / len(row) for row in told])
            met = itertools.combinations(models, 2)
            cells = {f"{a}, {b}": together(rows[a], rows[b]) for a, b in met}
            cells |= {f"{name}, counts": together(rows[name], rows["counts"]) for name in models}
            cells |= {f"{name}, shortest": together(rows[name], rows["shortest"]) for name in models}
            agree.append({"task": task, "n": str(len(told)), "by chance": f"{guess:.2f}", **cells})
            shares = {
                name: np.bincount([row.argmax() for row in rows[name]]).max() / len(told) for name in models
            }
            accuracies = {name: f"{np.mean(hit):.2f} ({shares[name]:.2f})" for name, hit in hits.items()}
            right.append({"task": task, "n": str(len(told)), "chance": f"{guess:.2f}", **accuracies})
    print("Same answer picked, share of rows (r: correlation of log-likelihoods):\n")
    print(table(list(agree[0]), [list(row.values()) for row in agree]))
    print("\nAccuracy (share of rows on which the most picked place is picked):\n")
    print(table(list(right[0]), [list(row.values()) for row in right]))


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
