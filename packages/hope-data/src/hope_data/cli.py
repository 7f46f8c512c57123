"""Console script `hope-data`: one subcommand per step; imports wait until a step needs them."""
# ruff: noqa: PLC0415 — imports wait until a step needs them, so that every step starts fast

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hope_data.errors import InputError

_EPILOG = """\
from a manifest to batches:
  hope-data acquire   --manifest conf/corpus/python.yaml --scale smoke --out data/raw/python
  hope-data filter    data/raw/python --out data/clean/python
  hope-data tokenizer data/clean --out data/tokenizer --vocab-size 4096
  hope-data shard     data/clean/python --tokenizer data/tokenizer --out data/shards/python
  hope-data validate  data/shards --tokenizer data/tokenizer --json reports/metrics/data.json
  hope-data look      data/clean/python

Your own text: copy conf/corpus/mine.yaml, name your folder in it, and start at the first line.
"""


def _json(args: argparse.Namespace, record: dict[str, Any]) -> None:
    if args.json:
        from hope_data.files import write_json

        write_json(args.json, record)


def _acquire(args: argparse.Namespace) -> None:
    from hope_data.acquire import acquire

    record = acquire(args.manifest, args.scale, args.out)
    print(
        f"{record['corpus']}: {record['documents']} documents, {record['bytes'] / 1e6:.2f} MB -> {args.out}"
    )
    _json(args, {key: record[key] for key in ("documents", "bytes")})


def _filter(args: argparse.Namespace) -> None:
    from hope_data import filters

    record = filters.run(args.raw, args.out, args.manifest)
    drops = ", ".join(
        f"{reason} {n}" for reason, n in sorted(record["dropped"].items(), key=lambda item: -item[1])
    )
    kept = (
        f"kept {record['documents']} of {record['raw_documents']} documents, {record['bytes'] / 1e6:.2f} MB"
    )
    print(f"{record['corpus']}: {kept}; dropped: {drops or 'none'}")
    keys = ("documents", "bytes", "raw_documents", "raw_bytes", "repaired", "dropped", "dropped_bytes")
    _json(args, {key: record[key] for key in keys})


def _clean_folders(folders: list[Path], names: list[str] | None) -> dict[str, Path]:
    """Clean corpora that are given, or lie in the given folders; `names` chooses among them."""
    from hope_data.documents import PROVENANCE

    found: dict[str, Path] = {}
    for folder in folders:
        inner = (
            [folder]
            if (folder / PROVENANCE).is_file()
            else sorted(p.parent for p in folder.glob(f"*/{PROVENANCE}"))
        )
        if not inner:
            raise InputError(f"{folder}: no clean corpus here; run `hope-data filter` first")
        found.update({path.name: path for path in inner if not path.name.startswith(".")})
    if missing := sorted(set(names or []) - set(found)):
        raise InputError(f"{folders[0]}: no clean corpus {', '.join(missing)}; run `hope-data filter` for it")
    return {name: found[name] for name in sorted(names or found)}


def _tokenizer(args: argparse.Namespace) -> None:
    from hope_data import tokenizer

    folders = _clean_folders(args.clean, args.corpora)
    meta = tokenizer.train(folders, args.out, args.vocab_size, args.sample_bytes, args.threads)
    for name, numbers in meta["coverage"].items():
        print(
            f"{name}: {numbers['bytes_per_token']:.2f} bytes/token, {numbers['fallback_share']:.2%} raw bytes"
        )
    _json(args, {"vocab_size": meta["vocab_size"], "coverage": meta["coverage"]})


def _shard(args: argparse.Namespace) -> None:
    from hope_data import shards

    index = shards.build(args.clean, args.tokenizer, args.out, args.threads)
    for name, split in index["splits"].items():
        counts = ", ".join(f"{split[key]} {key}" for key in ("documents", "tokens", "bytes"))
        print(f"{index['corpus']} {name}: {counts}")
    _json(args, index["splits"])


def _validate(args: argparse.Namespace) -> None:
    from hope_data.validate import validate

    record = validate(args.shards, args.corpora, args.tokenizer)
    print(f"{'corpus':<14}{'documents':>10}{'tokens':>12}{'MB':>9}{'share':>8}{'B/token':>9}{'dropped':>9}")
    for name, s in (*record["corpora"].items(), ("total", {"share": 1.0, **record["total"]})):
        counts = f"{s['documents']:>10}{s['tokens']:>12}{s['bytes'] / 1e6:>9.2f}"
        print(f"{name:<14}{counts}{s['share']:>8.1%}{s['bytes_per_token']:>9.2f}{s['dropped']:>9}")
    _json(args, record)


def _look(args: argparse.Namespace) -> None:
    from hope_data.look import look

    print(look(args.corpus, args.count, args.width))


def _parser() -> argparse.ArgumentParser:
    keep = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "hope-data",
        description="Corpora for language models, step by step.",
        epilog=_EPILOG,
        formatter_class=keep,
    )
    steps = parser.add_subparsers(dest="step", required=True, metavar="STEP")

    def step(
        name: str, run: Callable[[argparse.Namespace], None], text: str, example: str
    ) -> argparse.ArgumentParser:
        new = steps.add_parser(
            name, help=text, description=text, epilog=f"example:\n  {example}", formatter_class=keep
        )
        new.set_defaults(run=run)
        if name != "look":
            new.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers as JSON")
        return new

    new = step(
        "acquire", _acquire, "Fetch a corpus as its manifest says, with provenance.",
        "hope-data acquire --manifest conf/corpus/python.yaml --scale smoke --out data/raw/python",
    )  # fmt: skip
    new.add_argument(
        "--manifest",
        type=Path,
        required=True,
        metavar="FILE",
        help="what the corpus is: conf/corpus/NAME.yaml",
    )
    new.add_argument(
        "--scale", default="", help="whose limits in the manifest hold (default: its own `limits`)"
    )
    new.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")

    new = step(
        "filter", _filter, "Repair text, drop bad documents by rules that name their reason, fix the split.",
        "hope-data filter data/raw/python --out data/clean/python",
    )  # fmt: skip
    new.add_argument("raw", type=Path, metavar="RAW", help="folder of `acquire`")
    new.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    new.add_argument(
        "--manifest", type=Path, metavar="FILE", help="take thresholds from here (default: as acquired)"
    )

    new = step(
        "tokenizer", _tokenizer, "Train one sentencepiece tokenizer on the train documents of clean corpora.",
        "hope-data tokenizer data/clean --corpora python code --out data/tokenizer --vocab-size 4096",
    )  # fmt: skip
    new.add_argument(
        "clean", type=Path, nargs="+", metavar="CLEAN", help="folders of `filter`, or a folder of them"
    )
    new.add_argument("--corpora", nargs="+", metavar="NAME", help="only these (default: all there)")
    new.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    new.add_argument("--vocab-size", type=int, default=32_000, metavar="N", help="tokens (default 32000)")
    new.add_argument(
        "--sample-bytes", type=int, default=0, metavar="N", help="learn from (default 750 per token)"
    )
    new.add_argument(
        "--threads", type=int, default=2, metavar="N", help="part of the recipe: other N, other tokenizer"
    )

    new = step(
        "shard", _shard, "Tokenise a clean corpus into memory-mapped train, val and test shards.",
        "hope-data shard data/clean/python --tokenizer data/tokenizer --out data/shards/python",
    )  # fmt: skip
    new.add_argument("clean", type=Path, metavar="CLEAN", help="folder of `filter`")
    new.add_argument("--tokenizer", type=Path, required=True, metavar="DIR", help="folder of `tokenizer`")
    new.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    new.add_argument("--threads", type=int, default=2, metavar="N", help="tokenising threads (default 2)")

    new = step(
        "validate", _validate, "Check every hash and range of shards and print the mixture.",
        "hope-data validate data/shards --tokenizer data/tokenizer --json reports/metrics/data.json",
    )  # fmt: skip
    new.add_argument("shards", type=Path, metavar="SHARDS", help="folder of `shard`, or a folder of them")
    new.add_argument("--corpora", nargs="+", metavar="NAME", help="only these (default: all there)")
    new.add_argument("--tokenizer", type=Path, metavar="DIR", help="also check that they fit this tokenizer")

    new = step(
        "look", _look, "Print sample documents and what was dropped, with reasons.",
        "hope-data look data/clean/python --count 2",
    )  # fmt: skip
    new.add_argument("corpus", type=Path, metavar="CORPUS", help="folder of `acquire` or `filter`")
    new.add_argument(
        "--count", type=int, default=3, metavar="N", help="documents, and samples per reason (default 3)"
    )
    new.add_argument(
        "--width", type=int, default=600, metavar="N", help="characters of each document (default 600)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        Exit code: 0, or 2 for a mistake of the user's or a failing disk, told in one line on stderr.
    """
    args = _parser().parse_args(argv)
    code = 0
    try:
        args.run(args)
        sys.stdout.flush()
        return 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader has seen enough, as `head` does.
        code = 0
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        code = 130
    if argv is None:
        # Else Python would try to flush once more at exit, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code
