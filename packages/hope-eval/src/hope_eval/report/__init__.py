"""The report: one Markdown page and its pictures, every figure taken from result files and training logs."""

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from hope_data.errors import InputError
from hope_data.publishing import exclusive, write_atomic
from hope_eval import results as schema
from hope_eval.escape import markdown, printable
from hope_eval.report import maps, numbers, plots, sources, suites, tables, training, verdicts, web
from hope_eval.report.seeds import Seeds, pool
from hope_eval.report.select import Named, done

WRITTEN = (
    "Written by `hope-eval report`; every figure comes from files of `hope-eval run` and from training logs."
)
ONE_SEED = """\
Numbers are followed by ± one standard error over held-out documents: how well this text measures these
weights, not how much another training seed would change them. So nothing here says which method is better."""
MANY_SEEDS = """\
Numbers are means over seeds, followed by ± one standard error over seeds and held-out documents. An interval in
brackets is of 95 %, over both; a verdict other than "undecided" is given only where it excludes zero."""
DIFFERENCES = """\
Paired over the same items, and over seeds where there are several. Intervals of 95 % over seeds and documents (prompts
of the passkey, rows of other tasks), of one seed a bootstrap over documents. They are not corrected for the number of
comparisons; fewer than ten documents have none."""
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
    changes: Sequence[str] | None = None,
    losses: Path | None = None,
    metrics: Path | None = None,
) -> None:
    """Draw the pictures and write the page.

    Args:
        results: result files, or folders of them: RUN.json, or RUN/SEED.json of a run with several seeds.
        logs: `log.jsonl` files, or folders with `<run>/seeds/<seed>/log.jsonl` or `<run>/log.jsonl`.
        out: Markdown file.
        folder: for the pictures.
        runs: which runs, the first being compared with the others; none given means all by name.
        web_page: the same as one self-contained HTML file.
        changes: what differs from the defaults; None where that is not known.
        losses: file for every seed's loss, for `dvc plots`.
        metrics: file for the differences, for `dvc metrics`.

    Raises:
        InputError: a missing or unfit file, or a run without results.
    """
    seeds = {
        printable(run): [schema.load(path) for path in paths] for run, paths in _chosen(results, runs).items()
    }
    named = [(run, pool(run, of)) for run, of in seeds.items()]
    curves = _curves(logs, seeds)
    with exclusive(out):
        more = maps.draw_all(named, folder) | sources.draw_all(named, folder)
        pictures = [*plots.draw_all(named, curves, folder), *more]
        images = {name: os.path.relpath(folder / name, out.parent) for name in pictures}
        text = page(named, curves, images, more, seeds, changes)
        write_atomic(out, text.encode())
        if web_page:
            files = {quote(shown): folder / name for name, shown in images.items()}
            write_atomic(web_page, web.page(text, suites.everything(named), files).encode())
        if losses:
            write_atomic(losses, numbers.losses(curves).encode())
        if metrics:
            write_atomic(metrics, schema.dumps(numbers.differences(verdicts.pairs(named, seeds))).encode())


def _curves(logs: Sequence[Path], seeds: Seeds) -> list[training.Curve]:
    """Return the logs of the shown runs, and of these the seeds that were evaluated."""
    known = {run: {str(result.checkpoint.seed) for result in of} for run, of in seeds.items()}
    curves = map(training.load, training.find(logs))
    shown = (c for c in curves if c.run in known and (not c.seed or c.seed in known[c.run]))
    return sorted(shown, key=lambda c: (c.run, len(c.seed), c.seed))


def page(
    named: Named,
    curves: Sequence[training.Curve],
    images: dict[str, str],
    more: dict[str, str] | None = None,
    seeds: Seeds | None = None,
    changes: Sequence[str] | None = None,
) -> str:
    """Return the Markdown page; `more` says what the suites' pictures show."""
    seeds = seeds or {name: [result] for name, result in named}
    many = max(map(len, seeds.values())) > 1
    compared = verdicts.pairs(named, seeds)
    said = "\n".join(f"- {text}" for text in verdicts.sentences(named, compared))
    parts = ["# Results"]
    if changes is not None:
        different = "; ".join(map(markdown, changes)) or "nothing"
        parts.append(f"**What differs from the defaults**: {different}.")
    parts += [
        "## At a glance",
        tables.summary_table(named, curves),
        MANY_SEEDS if many else ONE_SEED,
        WRITTEN,
    ]
    parts += [_picture("perplexity.png", images), "## What the numbers say", said]
    parts += ["## Runs", tables.runs_table(named, curves, seeds), _picture("loss.png", images)]
    parts += [_picture("inside.png", images)]
    for task, (title, text, names, label, against) in SECTIONS.items():
        if done(named, task):
            table = tables.metric_table(named, task, names, label, against)
            parts += [f"## {title}", text, table]
            parts += [_picture(f"{task}.png", images)] if task != "perplexity" else []
    pictures = {name: f"![{markdown(alt)}]({quote(images[name])})" for name, alt in (more or {}).items()}
    parts += sources.sections(named, pictures) + suites.sections(named, pictures)
    if len(named) > 1:
        parts += ["## Differences", DIFFERENCES, tables.pairs_table(compared)]
    parts += ["## Provenance", tables.provenance_table(named), _notes(named)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _picture(name: str, images: dict[str, str]) -> str:
    return f"![{ALT[name]}]({quote(images[name])})" if name in images else ""


def _chosen(paths: Sequence[Path], runs: Sequence[str]) -> dict[str, list[Path]]:
    """Return the result files of every run, those of its seeds in order."""
    by_name: dict[str, list[Path]] = {}
    for path in paths:
        for file in sorted(path.glob("*.json")) if path.is_dir() else [path]:
            if file.stem in by_name:
                raise InputError(
                    f"{file}: {by_name[file.stem][0]} is of a run of the same name; rename one of them"
                )
            by_name[file.stem] = [file]
        for file in sorted(path.glob("*/*.json"), key=lambda file: (len(file.stem), file.stem)):
            by_name.setdefault(file.parent.name, []).append(file)
    if not by_name:
        raise InputError(f"{paths[0]}: no result files here; run `hope-eval run --json` first")
    if missing := [run for run in runs if run not in by_name]:
        raise InputError(f"no results of run '{missing[0]}' among {', '.join(by_name)}; evaluate it first")
    return {run: by_name[run] for run in (runs or sorted(by_name))}


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
