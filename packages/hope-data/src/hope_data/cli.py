"""Console script `hope-data`: one subcommand per step; imports wait until a step needs them."""
# ruff: noqa: PLC0415 — imports wait until a step needs them, so that every step starts fast

import argparse
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hope_data import console
from hope_data.commands import Command, Option, option, parser_of, share, whole
from hope_data.errors import InputError

_EPILOG = """\
from a manifest to batches:
  hope-data acquire   --manifest conf/corpus/python.yaml --scale smoke --out data/raw/python
  hope-data filter    data/raw/python --out data/clean/python
  hope-data tokenizer data/clean --out data/tokenizer --vocab-size 4096
  hope-data shard     data/clean/python --tokenizer data/tokenizer --out data/shards/python
  hope-data validate  data/shards --tokenizer data/tokenizer --json data/shards.json
  hope-data look      data/clean/python --html reports/look
  hope-data bench     data/clean/python --tokenizer data/tokenizer
synthetic tasks need none of this:
  hope-data tasks     mqar

An interrupted acquire, filter or shard goes on where it stood when the same command runs again.
Your own text: copy conf/corpus/mine.yaml, name your folder in it, and start at the first line.
"""


def _json(file: Path | None, record: dict[str, Any]) -> None:
    if file:
        from hope_data.files import write_json

        write_json(file, record)


def _acquire(args: argparse.Namespace) -> None:
    from hope_data.acquire import acquire, remarks

    record = acquire(args.manifest, args.scale, args.out)
    invalid = f" ({record['invalid']} with invalid Unicode, replaced)" if record["invalid"] else ""
    size = f"{record['documents']} documents{invalid}, {record['bytes'] / 1e6:.2f} MB"
    print(f"{record['corpus']}: {size} -> {args.out}")
    for remark in remarks(record):
        print(f"{record['corpus']}: {remark}")
    _json(args.json, {key: record[key] for key in ("documents", "bytes")})


def _filter(args: argparse.Namespace) -> None:
    from hope_data import decontaminate, filters
    from hope_data.engines import engine

    evaluation = decontaminate.holding_text(args.evaluation or [])
    for path in args.evaluation or []:
        if path not in evaluation:
            print(f"{path}: {decontaminate.NO_TEXT}")
    record = filters.run(
        args.raw,
        args.out,
        args.manifest,
        args.against,
        evaluation,
        args.workers,
        engine(args.engine, args.slurm),
    )
    reasons = sorted(record["dropped"].items(), key=lambda item: -item[1])
    drops = ", ".join(f"{reason} {n}" for reason, n in reasons)
    kept = (
        f"kept {record['documents']} of {record['raw_documents']} documents, {record['bytes'] / 1e6:.2f} MB"
    )
    gone = record["cut"]
    cuts = (
        f"; cut: {gone['bytes'] / 1e6:.2f} MB of {gone['documents']} documents" if gone["documents"] else ""
    )
    print(f"{record['corpus']}: {kept}; dropped: {drops or 'none'}{cuts}")
    keys = ("documents", "bytes", "raw_documents", "raw_bytes", "repaired", "dropped", "dropped_bytes", "cut")
    _json(args.json, {key: record[key] for key in keys})


def _clean_folders(folders: list[Path], names: list[str] | None) -> dict[str, Path]:
    """Clean corpora that are given, or lie in the given folders; `names` chooses among them."""
    from hope_data.documents import PROVENANCE

    corpora: dict[str, Path] = {}
    for folder in folders:
        inner = (
            [folder]
            if (folder / PROVENANCE).is_file()
            else sorted(p.parent for p in folder.glob(f"*/{PROVENANCE}"))
        )
        if not inner:
            raise InputError(f"{folder}: no clean corpus here; run `hope-data filter` first")
        for path in (path for path in inner if not path.name.startswith(".")):
            if corpora.setdefault(path.name, path) != path:
                raise InputError(f"{path}: is named as {corpora[path.name]}; give one of them, or rename it")
    if missing := sorted(set(names or []) - set(corpora)):
        raise InputError(f"{folders[0]}: no clean corpus {', '.join(missing)}; run `hope-data filter` for it")
    return {name: corpora[name] for name in sorted(names or corpora)}


def _weights(given: list[str] | None) -> dict[str, float]:
    weights: dict[str, float] = {}
    for text in given or ():
        name, _, number = text.partition("=")
        if name in weights:
            raise InputError(f"--weights {text}: {name} is named twice; give it one weight")
        try:
            weights[name] = _above_zero(number)
        except ValueError:
            raise InputError(f"--weights {text}: must be NAME=NUMBER, for example wikipedia=2") from None
    return weights


def _tokenizer(args: argparse.Namespace) -> None:
    from hope_data import tokenizer_training
    from hope_data.publishing import exclusive

    folders = _clean_folders(args.clean, args.corpora)
    weights = _weights(args.weights)
    guard = None
    if args.guard and not args.guard.exists():
        print(f"{args.guard}: no earlier coverage here, so there is nothing to keep up with")
    elif args.guard:
        guard = tokenizer_training.Guard.load(args.guard, args.worse)
    # Held from the beginning: training takes minutes, of which a second process should not waste any.
    with exclusive(args.out):
        meta = tokenizer_training.train(
            folders, args.out, args.vocab_size, args.sample_bytes or 0, args.threads, weights, guard
        )
    for name, numbers in meta["coverage"].items():
        print(
            f"{name}: {numbers['bytes_per_token']:.2f} bytes/token, {numbers['fallback_share']:.2%} raw bytes"
        )
    if guard:
        name, share = guard.furthest_behind(meta["coverage"])
        least = f"kept up with; {name} {-share:+.2%} bytes per token, the least of all"
        print(f"{guard.source}: {least if name else 'has none of these corpora'}")
    _json(args.json, {"vocab_size": meta["vocab_size"], "coverage": meta["coverage"]})


def _shard(args: argparse.Namespace) -> None:
    from hope_data import sharding
    from hope_data.engines import engine

    index = sharding.shard(
        args.clean, args.tokenizer, args.out, args.workers, engine(args.engine, args.slurm)
    )
    for name, split in index["splits"].items():
        counts = ", ".join(f"{split[key]} {key}" for key in ("documents", "tokens", "bytes"))
        print(f"{index['corpus']} {name}: {counts}")
    _json(args.json, index["splits"])


def _validate(args: argparse.Namespace) -> None:
    from hope_data.validate import validate

    record = validate(args.shards, args.corpora, args.tokenizer)
    _print_mixture(record)
    _json(args.json, record)
    _json(args.metrics, {"data": {key: record["total"][key] for key in ("documents", "tokens")}})


def _print_mixture(record: dict[str, Any]) -> None:
    print(f"{'corpus':<14}{'documents':>10}{'tokens':>12}{'MB':>9}{'share':>8}{'B/token':>9}{'dropped':>9}")
    for name, s in (*record["corpora"].items(), ("total", {"share": 1.0, **record["total"]})):
        counts = f"{s['documents']:>10}{s['tokens']:>12}{s['bytes'] / 1e6:>9.2f}"
        print(f"{name:<14}{counts}{s['share']:>8.1%}{s['bytes_per_token']:>9.2f}{s['dropped']:>9}")
    between, held_out = record["overlap"]["between"], record["overlap"]["held_out"]
    names = list(between)
    print(
        f"\nruns of {record['overlap']['run']} tokens of a corpus (row) that another's training text has, in %;"
    )
    print("of its own: those it has more than once; held out: val and test runs that any training text has")
    print(f"{'':<14}" + "".join(f"{name[:9]:>10}" for name in [*names, "held out"]) + f"{'runs':>10}")
    for name in names:
        cells = [*(between[name][other]["share"] for other in names), held_out[name]["share"]]
        n = max((cell["n"] for cell in between[name].values()), default=0)
        print(f"{name:<14}" + "".join(f"{100 * cell:>10.2f}" for cell in cells) + f"{n:>10}")


def _look(args: argparse.Namespace) -> None:
    from hope_data.look import look

    if args.html:
        from hope_data import look_page

        print(f"page: {look_page.write(args.corpora, args.html, args.count, args.width)}")
        return
    for folder in args.corpora:
        print(look(folder, args.count, args.width))


def _tasks(args: argparse.Namespace) -> None:
    from hope_data.tasks import show

    print(show.examples(args.name, args.length, args.count, args.seed) if args.name else show.listing())


def _bench(args: argparse.Namespace) -> None:
    from hope_data import bench

    record = bench.run(
        args.clean, args.tokenizer, args.megabytes, args.gigabytes, args.documents, args.workers
    )
    print(bench.table(record))
    _json(args.json, record)


def _above_zero(text: str) -> float:
    if not 0 < (number := float(text)) < math.inf:
        raise ValueError
    return number


def _path(flag: str, metavar: str, text: str, **more: Any) -> Option:
    return option(flag, text, Path, metavar, **more)


def _number(flag: str, text: str, default: int | None, most: int = 10**15) -> Option:
    return option(flag, text, partial(whole, least=1, most=most), "N", default=default)


_OUT = _path("--out", "DIR", "folder to write", required=True)
_JSON = _path("--json", "FILE", "also write the numbers as JSON")
_NAMES = option("--corpora", "only these (default: all there)", metavar="NAME", nargs="+")
_WORKERS = (
    _number("--workers", "processes; the result does not depend on it (default 2)", 2, 10_000),
    option(
        "--engine",
        "what runs them (default: processes of this machine)",
        choices=["processes", "datatrove", "slurm"],
        default="processes",
    ),
    option(
        "--slurm",
        "for --engine slurm: partition=… time=… and more of datatrove's SlurmPipelineExecutor",
        metavar="KEY=VALUE",
        nargs="+",
    ),
)


def _step(
    function: Callable[[argparse.Namespace], None], text: str, example: str, *options: Option
) -> Command:
    name = function.__name__.removeprefix("_")
    return Command(name, text, text, options, f"example:\n  hope-data {name} {example}", function)


_COMMANDS = (
    _step(
        _acquire,
        "Fetch a corpus as its manifest says, with provenance.",
        "--manifest conf/corpus/python.yaml --scale smoke --out data/raw/python",
        _path("--manifest", "FILE", "what the corpus is: conf/corpus/NAME.yaml", required=True),
        option("--scale", "whose limits in the manifest hold (default: its own `limits`)", default=""),
        _OUT,
        _JSON,
    ),
    _step(
        _filter,
        "Repair text, drop bad documents by rules that name their reason, fix the split.",
        "data/raw/python --out data/clean/python",
        _path("raw", "RAW", "folder of `acquire`"),
        _path("--manifest", "FILE", "take thresholds from here (default: as acquired)"),
        _path("--against", "CLEAN", "drop what these clean corpora hold already", nargs="+"),
        _path(
            "--evaluation",
            "PATH",
            "drop documents that share 13 words with these files or folders",
            nargs="+",
        ),
        *_WORKERS,
        _OUT,
        _JSON,
    ),
    _step(
        _tokenizer,
        "Train one sentencepiece tokenizer on the train documents of clean corpora.",
        "data/clean --corpora python code --out data/tokenizer --vocab-size 4096",
        _path("clean", "CLEAN", "folders of `filter`, or a folder of them", nargs="+"),
        _NAMES,
        _number("--vocab-size", "tokens (default 32000)", 32_000, 10**7),
        _number("--sample-bytes", "text to learn from (default 750 per token)", None),
        option(
            "--weights",
            "share of the text to learn from, as in the mixture (default: all alike)",
            metavar="NAME=W",
            nargs="+",
        ),
        _path("--guard", "JSON", "coverage to keep up with: `--json` of an earlier tokenizer"),
        option(
            "--worse",
            "fail if a corpus has so much fewer bytes per token than in --guard (default 0.02)",
            share,
            "SHARE",
            default=0.02,
        ),
        _number("--threads", "part of the recipe: another N, another tokenizer (default 2)", 2, 1024),
        _OUT,
        _JSON,
    ),
    _step(
        _shard,
        "Tokenise a clean corpus into memory-mapped train, val and test shards.",
        "data/clean/python --tokenizer data/tokenizer --out data/shards/python",
        _path("clean", "CLEAN", "folder of `filter`"),
        _path("--tokenizer", "DIR", "folder of `tokenizer`", required=True),
        *_WORKERS,
        _OUT,
        _JSON,
    ),
    _step(
        _validate,
        "Check every hash and range of shards and print the mixture.",
        "data/shards --tokenizer data/tokenizer --json data/shards.json",
        _path("shards", "SHARDS", "folder of `shard`, or a folder of them"),
        _path("--tokenizer", "DIR", "also check that they fit this tokenizer"),
        _NAMES,
        _JSON,
        _path("--metrics", "FILE", "documents and tokens alone, for `dvc metrics`"),
    ),
    _step(
        _look,
        "Show sample documents and what was dropped, with reasons: as text, or as a page with histograms.",
        "data/clean/python --html reports/look",
        _path("corpora", "CORPUS", "folders of `acquire` or `filter`", nargs="+"),
        _path("--html", "DIR", "write a page with pictures there instead"),
        _number("--count", "documents, and samples per reason (default 3)", 3),
        _number("--width", "characters of each document (default 600)", 600),
    ),
    _step(
        _tasks,
        "List the synthetic tasks, or show what one of them asks and answers.",
        "mqar --length 48",
        option("name", "of a task (default: list all)", metavar="NAME", nargs="?", default=""),
        _number("--length", "tokens of an example (default 32)", 32),
        _number("--count", "examples (default 2)", 2),
        option("--seed", "another S, other examples", int, "S", default=0),
    ),
    _step(
        _bench,
        "Measure tokenising, duplicates, loading and validating, each beside a reference.",
        "data/clean/python --tokenizer data/tokenizer --json bench.json",
        _path("clean", "CLEAN", "folder of `filter`: its text is what is measured on"),
        _path("--tokenizer", "DIR", "folder of `tokenizer`", required=True),
        _number("--megabytes", "of text to tokenise (default 20)", 20),
        _number("--gigabytes", "of shards to load and validate (default 2)", 2),
        _number("--documents", "distinct ones, to look for duplicates among (default 10000)", 10_000),
        _number("--workers", "processes of tokenising (default 2)", 2),
        _JSON,
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        Exit code: 0, or 2 for a mistake of the user's or a failing disk, told in one line on stderr.
    """
    about = "Corpora for language models, step by step."

    def command() -> None:
        args = parser_of("hope-data", about, _EPILOG, _COMMANDS, "STEP").parse_args(argv)
        args.function(args)

    return console.run(command, whole_process=argv is None)
