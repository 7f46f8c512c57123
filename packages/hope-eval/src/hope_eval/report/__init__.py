"""The report: one Markdown page and its pictures, every figure taken from result files and training logs."""

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from hope_data.errors import InputError
from hope_data.publishing import exclusive, write_atomic
from hope_eval import results as schema
from hope_eval.escape import markdown, printable
from hope_eval.report import glance, maps, numbers, plots, sources, suites, tables, training, verdicts, web
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
comparisons; fewer than ten documents have none. Bits per byte are better where lower, accuracies where higher."""
GLANCE = """\
Bits per byte of held-out documents with 95 % intervals; lower is better. New tokens are those that their window has not
shown before. Costs of training are of one seed. On CPUs, times are of the processor, which other processes hardly
change. Rows with `+` are the same trained weights, read with a baseline at test time: a neural cache, or writes into
the MLPs. Their dials were chosen on validation text."""
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
    "cost.png": "Bits per byte against FLOPs of training and against milliseconds of reading, per model and adaptation",
    "differences.png": "The first run minus each other: bits per byte by group of text, and accuracies, with intervals",
    "loss.png": "Training and validation loss by tokens and by time, mean and range of the seeds",
    "inside.png": "Gradients, updates and the memories' own learning by tokens",
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
    studies: Path | None = None,
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
        metrics: file for bits per byte and differences, for `dvc metrics`.
        studies: folder of Markdown pages; `web_page` links them and the results' surprise-*.html, in `pages` beside it.

    Raises:
        InputError: a missing or unfit file, or a run without results.
    """
    seeds = {
        printable(run): [schema.load(path) for path in paths] for run, paths in _chosen(results, runs).items()
    }
    named = [(run, pool(run, of)) for run, of in seeds.items()]
    curves, compared = _curves(logs, seeds), verdicts.against_first(named, seeds)
    shown = glance.rows(named, seeds, curves)
    with exclusive(out):
        pictures = {name: ALT[name] for name in plots.draw_all(named[0][0], shown, compared, curves, folder)}
        pictures |= maps.draw_all(named, folder) | sources.draw_all(named, folder)
        files = {os.path.relpath(folder / name, out.parent): folder / name for name in pictures}
        images = {
            name: f"![{markdown(alt)}]({quote(os.path.relpath(folder / name, out.parent))})"
            for name, alt in pictures.items()
        }
        text = page(named, curves, images, shown, compared, seeds, changes)
        write_atomic(out, text.encode())
        if web_page:
            coloured = [
                page for path in results if path.is_dir() for page in sorted(path.glob("*/surprise-*.html"))
            ]
            links = web.pages(
                web_page.parent / "pages", studies, [one for one in coloured if one.parent.name in seeds]
            )
            whole = web.page(text, suites.everything(named), {quote(k): v for k, v in files.items()}, links)
            write_atomic(web_page, whole.encode())
        if losses:
            write_atomic(losses, numbers.losses(curves).encode())
        if metrics:
            write_atomic(metrics, schema.dumps(numbers.differences(named, compared)).encode())


def _curves(logs: Sequence[Path], seeds: Seeds) -> list[training.Curve]:
    """Return the logs of the shown runs, and of these the seeds that were evaluated."""
    known = {run: {str(result.checkpoint.seed) for result in of} for run, of in seeds.items()}
    curves = map(training.load, training.find(logs))
    shown = (c for c in curves if c.run in known and (not c.seed or c.seed in known[c.run]))
    return sorted(shown, key=lambda c: (list(known).index(c.run), len(c.seed), c.seed))


def page(
    named: Named,
    curves: Sequence[training.Curve],
    images: dict[str, str],
    shown: Sequence[glance.Row],
    compared: verdicts.Compared,
    seeds: Seeds,
    changes: Sequence[str] | None = None,
) -> str:
    """Return the Markdown page; `images` is the Markdown of every picture by file name."""
    many = max(map(len, seeds.values())) > 1
    findings = "\n".join(f"- {text}" for text in verdicts.sentences(named, compared))
    parts = ["# Results"]
    if changes is not None:
        different = "; ".join(map(markdown, changes)) or "nothing"
        parts.append(f"**What differs from the defaults**: {different}.")
    parts += ["## At a glance", glance.summary(shown), images.get("cost.png", ""), GLANCE]
    parts += [MANY_SEEDS if many else ONE_SEED, WRITTEN]
    parts += ["## What the numbers say", findings]
    if compared:
        first = named[0][0]
        parts += ["## Differences", images.get("differences.png", ""), DIFFERENCES]
        parts += [tables.compared_table(first, compared)]
    parts += ["## Runs", tables.runs_table(named, curves, seeds)]
    parts += [images.get("loss.png", ""), images.get("inside.png", "")]
    for task, (title, text, names, label, against) in SECTIONS.items():
        if done(named, task):
            parts += [f"## {title}", text, tables.metric_table(named, task, names, label, against)]
            # Hidden numbers of the passkey, and needles of the suites.
            parts += [images.get("needles.png", "")] if task == "passkey" else []
    more = {name: text for name, text in images.items() if name not in ALT}
    if done(named, "passkey"):
        more.pop("needles.png", None)
    parts += sources.sections(named, more) + suites.sections(named, more)
    parts += ["## Provenance", tables.provenance_table(named), _notes(named)]
    return "\n\n".join(part for part in parts if part) + "\n"


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
