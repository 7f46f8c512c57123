"""The report: one Markdown page and its pictures, every figure taken from result files and training logs."""

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from hope_data.errors import InputError
from hope_data.publishing import exclusive, write_atomic
from hope_eval import results as schema
from hope_eval.escape import markdown, printable
from hope_eval.report import maps, plots, sources, suites, tables, training, verdicts, web
from hope_eval.report.select import Named, done

INTRODUCTION = """\
Written by `hope-eval report`; every figure comes from files of `hope-eval run` and from training logs.
Numbers are followed by ± one standard error over held-out documents: how well this text measures these
weights, not how much another training seed would change them. So nothing here says which method is better."""
DIFFERENCES = """\
Paired over the same items, of these weights. Intervals of 95 % from a bootstrap over documents (prompts of the
passkey, rows of other tasks), not corrected for the number of comparisons; fewer than ten documents have none."""
PASSKEY = """\
A number hidden in held-out text, by tokens of the prompt; accuracy. Where all of n prompts failed (or all
succeeded) the standard error is 0, yet rates up to 3/n away remain possible at 95 %."""
BITS = "Test documents; lower is better; n counts documents."
CHOICE = """\
The true continuation of a test document among four from the same domain; accuracy. The answer is the choice that
gains most from the prefix, log p(choice | prefix) - log p(choice); below it, the choice that is merely most likely."""
# Task: title, text, metrics, what they are grouped by, and a metric that is the same for every run.
SECTIONS = {
    "perplexity": (
        "Bits per byte",
        BITS,
        ["bits_per_byte", "unigram_margin"],
        "domain",
        "unigram_bits_per_byte",
    ),
    "choice": ("Continuation choice", CHOICE, ["choice_accuracy", "choice_likelihood"], "domain", ""),
    "passkey": ("Passkey", PASSKEY, ["passkey_choice", "passkey_exact"], "length", ""),
}
ALT = {
    "loss.png": "Training and validation loss by tokens and by time",
    "inside.png": "Gradients, updates and the memories' own learning by tokens",
    "perplexity.png": "Bits per byte per domain and run, with the unigram model",
    "choice.png": "Accuracy of continuation choice per domain and run, with chance",
    "passkey.png": "Passkey retrieval by length and run, with chance",
}


def write(
    results: Sequence[Path],
    logs: Sequence[Path],
    out: Path,
    folder: Path,
    runs: Sequence[str] = (),
    web_page: Path | None = None,
) -> None:
    """Draw the pictures and write the page.

    Args:
        results: result files, or folders of them; a run goes by its file's name.
        logs: `log.jsonl` files, or folders with `<run>/log.jsonl`.
        out: Markdown file.
        folder: for the pictures.
        runs: which runs, the first being compared with the others; none given means all by name.
        web_page: the same as one self-contained HTML file.

    Raises:
        InputError: a missing or unfit file, or a run without results.
    """
    named = [(printable(path.stem), schema.load(path)) for path in _chosen(_files(results), runs)]
    kept = {name for name, _ in named}
    curves = sorted(
        (c for c in map(training.load, training.find(logs)) if c.run in kept), key=lambda c: c.run
    )
    with exclusive(out):
        more = maps.draw_all(named, folder) | sources.draw_all(named, folder)
        pictures = [*plots.draw_all(named, curves, folder), *more]
        images = {name: os.path.relpath(folder / name, out.parent) for name in pictures}
        text = page(named, curves, images, more)
        write_atomic(out, text.encode())
        if web_page:
            files = {quote(shown): folder / name for name, shown in images.items()}
            write_atomic(web_page, web.page(text, suites.everything(named), files).encode())


def page(
    named: Named, curves: Sequence[training.Curve], images: dict[str, str], more: dict[str, str] | None = None
) -> str:
    """The Markdown page; `more` says what the suites' pictures show."""
    compared = verdicts.pairs(named)
    said = "\n".join(f"- {text}" for text in verdicts.sentences(named, compared))
    parts = ["# Results", INTRODUCTION, "## What the numbers say", said]
    parts += ["## Runs", tables.runs_table(named, curves), _picture("loss.png", images)]
    parts += [_picture("inside.png", images)]
    for task, (title, text, names, label, against) in SECTIONS.items():
        if done(named, task):
            table = tables.metric_table(named, task, names, label, against)
            parts += [f"## {title}", text, table, _picture(f"{task}.png", images)]
    pictures = {name: f"![{markdown(alt)}]({quote(images[name])})" for name, alt in (more or {}).items()}
    parts += sources.sections(named, pictures) + suites.sections(named, pictures)
    if len(named) > 1:
        parts += ["## Differences", DIFFERENCES, tables.pairs_table(compared)]
    parts += ["## Provenance", tables.provenance_table(named), _notes(named)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _picture(name: str, images: dict[str, str]) -> str:
    return f"![{ALT[name]}]({quote(images[name])})" if name in images else ""


def _files(paths: Sequence[Path]) -> list[Path]:
    found = [file for path in paths for file in (sorted(path.glob("*.json")) if path.is_dir() else [path])]
    if not found:
        raise InputError(f"{paths[0]}: no result files here; run `hope-eval run --json` first")
    return found


def _chosen(files: Sequence[Path], runs: Sequence[str]) -> list[Path]:
    by_name: dict[str, Path] = {}
    for file in files:
        if by_name.setdefault(file.stem, file) != file:
            raise InputError(f"{file}: {by_name[file.stem]} is of a run of the same name; rename one of them")
    missing = [run for run in runs if run not in by_name]
    if missing:
        raise InputError(f"no results of run '{missing[0]}' among {', '.join(by_name)}; evaluate it first")
    return [by_name[run] for run in runs] if runs else [by_name[name] for name in sorted(by_name)]


def _notes(named: Named) -> str:
    """Notes of all tasks; those that not every run has say whose they are."""
    runs: dict[str, list[str]] = {}
    for run, result in named:
        for line in dict.fromkeys(f"{task.task}: {note}" for task in result.tasks for note in task.notes):
            runs.setdefault(markdown(line), []).append(markdown(run))
    lines = [
        f"- {line}" + (f" ({', '.join(of)})" if len(of) < len(named) else "") for line, of in runs.items()
    ]
    return "\n".join(["Notes:", "", *lines]) if lines else ""
