"""The report: one Markdown page and its pictures, every figure taken from result files and training logs."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from hope_data.errors import InputError
from hope_data.files import write_atomic
from hope_eval import results as schema
from hope_eval.report import plots, tables, training, verdicts
from hope_eval.results import Results

INTRODUCTION = (
    "Written by `hope-eval report`; every figure comes from files of `hope-eval run` and from training logs.",
    "Numbers are followed by ± one standard error over held-out documents: how well this text measures these",
    "weights, not how much another training seed would change them.",
)
ALT = {
    "loss.png": "Training and validation loss by tokens and by time",
    "bits_per_byte.png": "Bits per byte per domain and run, with the unigram model",
    "choice.png": "Accuracy of continuation choice per domain and run, with chance",
    "passkey.png": "Passkey retrieval by length and run, with chance",
}


def write(
    results: Sequence[Path], logs: Sequence[Path], out: Path, folder: Path, runs: Sequence[str] = ()
) -> None:
    """Draw the pictures and write the page.

    Args:
        results: result files, or folders of them; a run goes by its file's name.
        logs: `log.jsonl` files, or folders with `<run>/log.jsonl`.
        out: Markdown file.
        folder: for the pictures.
        runs: which runs, the first being compared with the others; none given means all by name.

    Raises:
        InputError: a missing or unfit file, or a run without results.
    """
    named = [(path.stem, schema.load(path)) for path in _chosen(_files(results), runs)]
    kept = {name for name, _ in named}
    curves = sorted(
        (c for c in map(training.load, training.find(logs)) if c.run in kept), key=lambda c: c.run
    )
    pictures = plots.draw_all(named, curves, folder)
    images = {name: os.path.relpath(folder / name, out.parent) for name in pictures}
    write_atomic(out, ("\n".join(page(named, curves, images)) + "\n").encode())


def page(
    named: Sequence[tuple[str, Results]], curves: Sequence[training.Curve], images: dict[str, str]
) -> Iterator[str]:
    """Lines of the Markdown page."""

    def picture(name: str) -> list[str]:
        return [f"![{ALT[name]}]({images[name]})", ""] if name in images else []

    yield from ("# Results", "", *INTRODUCTION, "")
    yield from ("## What the numbers say", "", *(f"- {text}" for text in verdicts.sentences(named)), "")
    yield from ("## Runs", "", tables.runs_table(named, curves), "", *picture("loss.png"))
    if _has(named, "perplexity"):
        yield from ("## Bits per byte", "", "Test documents; lower is better; n counts documents.", "")
        yield tables.metric_table(named, "perplexity", ["bits_per_byte"], "domain", "unigram_bits_per_byte")
        yield from ("", *picture("bits_per_byte.png"))
    if _has(named, "choice"):
        yield from (
            "## Continuation choice",
            "",
            "The true continuation among four, from the same domain; accuracy.",
            "",
        )
        yield from (
            tables.metric_table(named, "choice", ["choice_accuracy"], "domain"),
            "",
            *picture("choice.png"),
        )
    if _has(named, "passkey"):
        yield from (
            "## Passkey",
            "",
            "A number hidden in held-out text, by tokens of the prompt; accuracy.",
            "",
        )
        names = ["passkey_choice", "passkey_exact"]
        yield from (tables.metric_table(named, "passkey", names, "length"), "", *picture("passkey.png"))
    if len(named) > 1:
        yield from (
            "## Differences",
            "",
            "Paired over the same items; intervals from a bootstrap over documents,",
        )
        yield from (
            "not corrected for the number of comparisons.",
            "",
            tables.pairs_table(verdicts.pairs(named)),
            "",
        )
    yield from ("## Provenance", "", tables.provenance_table(named), "", *_notes(named))


def _files(paths: Sequence[Path]) -> list[Path]:
    found = [file for path in paths for file in (sorted(path.glob("*.json")) if path.is_dir() else [path])]
    if not found:
        raise InputError(f"{paths[0]}: no result files here; run `hope-eval run --json` first")
    return found


def _chosen(files: Sequence[Path], runs: Sequence[str]) -> list[Path]:
    by_name = {file.stem: file for file in files}
    missing = [run for run in runs if run not in by_name]
    if missing:
        raise InputError(f"no results of run '{missing[0]}' among {', '.join(by_name)}; evaluate it first")
    return [by_name[run] for run in runs] if runs else [by_name[name] for name in sorted(by_name)]


def _has(named: Sequence[tuple[str, Results]], task: str) -> bool:
    return any(result.task(task) for _, result in named)


def _notes(named: Sequence[tuple[str, Results]]) -> list[str]:
    notes = {
        f"- {task.task}: {note}": None for _, result in named for task in result.tasks for note in task.notes
    }
    return ["Notes:", "", *notes] if notes else []
