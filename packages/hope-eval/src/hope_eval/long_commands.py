"""Command lines of needle, books, babi, continual and bench."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hope_data.errors import InputError
from hope_data.publishing import write_atomic
from hope_eval import results as schema
from hope_eval.arguments import depths, fraction, lengths, names, positive, seed, story_lengths
from hope_eval.commands import Parsers, add_memorize, add_model, evaluate, memorize_of
from hope_eval.escape import printable

if TYPE_CHECKING:
    from hope_data.shards import Split
    from hope_eval.scoring.load import HopeTokenizer, Loaded
    from hope_eval.scoring.scorer import Scorer, Tokens
    from hope_eval.tasks.continual import Domain


def add(commands: Parsers) -> None:
    """All of them."""
    _add_needle(commands)
    _add_books(commands)
    _add_babi(commands)
    _add_continual(commands)
    _add_bench(commands)


def _add_needle(commands: Parsers) -> None:
    parser = commands.add_parser(
        "needle",
        help="values hidden in long texts, by length and depth (RULER's kinds)",
        description="Ask for values hidden in a haystack, prompts of exactly the given token lengths; greedy "
        "generation is searched for them. Peak memory after each length stands in the notes.",
    )
    add_model(parser)
    parser.add_argument(
        "--tasks", default="niah_single_1", metavar="A,B", help="see the README; default: %(default)s"
    )
    parser.add_argument(
        "--lengths", type=lengths, default=[1024, 2048], metavar="A,B", help="tokens, as 512,8k,1M"
    )
    parser.add_argument(
        "--depths", type=depths, default="0,0.25,0.5,0.75,1", metavar="A,B", help="default: %(default)s"
    )
    parser.add_argument(
        "--repeats", type=positive, default=4, metavar="N", help="prompts per length and depth"
    )
    parser.add_argument(
        "--text", type=Path, nargs="+", default=[], metavar="PATH", help="haystacks: .txt or folders"
    )
    parser.add_argument(
        "--seed", type=seed, default=0, metavar="S", help="of the prompts; default: %(default)s"
    )
    add_memorize(parser)
    parser.set_defaults(function=_needle)


def _needle(arguments: argparse.Namespace) -> None:
    from hope_eval.tasks import books, needle  # noqa: PLC0415

    texts = books.load_texts(arguments.text)
    settings = needle.Settings(arguments.lengths, arguments.depths, arguments.repeats)

    def run(loaded: "Loaded", scorer: "Scorer") -> list[schema.TaskResult]:
        if scorer.memorize and scorer.memorize.oracle:
            raise InputError("needle: an oracle would be told the values; leave out --memorize-oracle")
        hay = _hay(texts, loaded)
        tasks = names(arguments.tasks)
        for name in tasks:
            needle.check(scorer, name, settings, hay)
        return [needle.run(scorer, loaded.tokenizer, name, settings, hay, arguments.seed) for name in tasks]

    evaluate(arguments, run)


def _add_books(commands: Parsers) -> None:
    parser = commands.add_parser(
        "books",
        help="loss by position over whole texts",
        description="Read each text once from its beginning, state carried: nats per token by position, bits per "
        "byte of the whole. Header and footer of Project Gutenberg are cut.",
    )
    add_model(parser)
    parser.add_argument(
        "--text", type=Path, nargs="+", required=True, metavar="PATH", help=".txt[.gz], or folders"
    )
    parser.add_argument(
        "--max-tokens", type=positive, default=0, metavar="T", help="of each text; default: all"
    )
    add_memorize(parser)
    parser.set_defaults(function=_books)


def _books(arguments: argparse.Namespace) -> None:
    from hope_eval.tasks import books  # noqa: PLC0415
    from hope_eval.tasks.base import refuse_rereading  # noqa: PLC0415

    texts = books.load_texts(arguments.text)

    def run(loaded: "Loaded", scorer: "Scorer") -> list[schema.TaskResult]:
        refuse_rereading(scorer, "books")
        return books.run(scorer, loaded.tokenizer, texts, arguments.max_tokens)

    evaluate(arguments, run)


def _add_babi(commands: Parsers) -> None:
    parser = commands.add_parser(
        "babi",
        help="bAbI's stories, alone or scattered over other text (BABILong)",
        description="Pick the answer among all of the file's, and write it greedily; length 0 is the story alone.",
    )
    add_model(parser)
    parser.add_argument("--data", type=Path, nargs="+", required=True, metavar="FILE", help="qa*.txt of bAbI")
    parser.add_argument("--lengths", type=story_lengths, default=[0], metavar="A,B", help="tokens, as 0,4k")
    parser.add_argument(
        "--text", type=Path, nargs="+", default=[], metavar="PATH", help="what facts are hidden in"
    )
    parser.add_argument(
        "--limit", type=positive, default=100, metavar="N", help="questions; default: %(default)s"
    )
    parser.add_argument(
        "--seed", type=seed, default=0, metavar="S", help="of what is drawn; default: %(default)s"
    )
    add_memorize(parser)
    parser.set_defaults(function=_babi)


def _babi(arguments: argparse.Namespace) -> None:
    from hope_eval.tasks import babi, books  # noqa: PLC0415

    texts = books.load_texts(arguments.text)
    tasks = [babi.task_name(path) for path in arguments.data]
    if len(set(tasks)) < len(tasks):
        raise InputError(
            f"--data: several files make the task {max(tasks, key=tasks.count)}; give one of them"
        )

    def run(loaded: "Loaded", scorer: "Scorer") -> list[schema.TaskResult]:
        if scorer.memorize and scorer.memorize.oracle:
            raise InputError("babi: an oracle is not defined here; leave out --memorize-oracle")
        hay = _hay(texts, loaded)
        return [
            babi.run(scorer, loaded.tokenizer, path, arguments.lengths, hay, arguments.limit, arguments.seed)
            for path in arguments.data
        ]

    evaluate(arguments, run)


def _hay(texts: dict[str, str], loaded: "Loaded") -> "Tokens":
    """Tokens of texts that hide something."""
    from hope_eval.tasks import books  # noqa: PLC0415

    parts = [books.tokens_of(loaded.tokenizer, text)[1:] for text in texts.values()]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def _add_continual(commands: Parsers) -> None:
    parser = commands.add_parser(
        "continual",
        help="forgetting and transfer over a stream of domains or of new classes",
        description="Learn domains one after another, by memorising at test time or by training, and measure all "
        "of them after each: R[i][j], average forgetting, backward and forward transfer.",
    )
    add_model(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--text", type=Path, nargs="+", metavar="PATH", help="a domain per file: its last tenth is held out"
    )
    what.add_argument(
        "--shards", type=Path, metavar="DIR", help="a domain per corpus: train split learned, test measured"
    )
    what.add_argument("--classes", metavar="KIND", help="clinc150, banking77 or dbpedia, with --data")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of the labelled texts")
    parser.add_argument(
        "--corpora", default="", metavar="A,B", help="of --shards, in this order; default: all"
    )
    parser.add_argument(
        "--learn",
        default="memorize",
        help="memorize (state), train (weights, on a copy), or each: all that the model can, memories frozen too",
    )
    parser.add_argument("--lr", type=fraction, default=1e-4, help="of AdamW; default: %(default)s")
    parser.add_argument("--tokens", type=positive, default=20_000, metavar="N", help="learned of each domain")
    parser.add_argument(
        "--held-out", type=positive, default=5_000, metavar="N", help="measured of each domain"
    )
    parser.add_argument(
        "--shots", type=positive, default=5, metavar="N", help="examples learned of each class"
    )
    parser.add_argument("--questions", type=positive, default=1, metavar="N", help="asked of each class")
    parser.add_argument("--limit", type=positive, metavar="N", help="the first N domains or groups")
    parser.add_argument(
        "--seed", type=seed, default=0, metavar="S", help="of what is drawn; default: %(default)s"
    )
    add_memorize(parser)
    parser.set_defaults(function=_continual)


def _continual(arguments: argparse.Namespace) -> None:
    from hope_eval.tasks import class_data, continual  # noqa: PLC0415

    if arguments.classes and not arguments.data:
        raise InputError("--classes: name the folder of the labelled texts with --data")
    if arguments.corpora and not arguments.shards:
        raise InputError("--corpora: are of --shards")
    if arguments.learn == "each" and (arguments.classes or memorize_of(arguments)):
        raise InputError(
            "--learn each: of streams, and it freezes and writes by itself; leave out --memorize"
        )
    learning = continual.Learning(how=arguments.learn, lr=arguments.lr)

    def run(loaded: "Loaded", scorer: "Scorer") -> list[schema.TaskResult]:
        if arguments.classes:
            shots, questions = arguments.shots, arguments.questions
            groups = class_data.load(arguments.classes, arguments.data, shots, questions, arguments.seed)
            chosen = groups[: arguments.limit]
            return [continual.classes(scorer, loaded.tokenizer, chosen, learning, arguments.seed)]
        domains = _domains(arguments, loaded)[: arguments.limit]
        if arguments.learn == "each":
            return continual.each(scorer, domains, arguments.lr, arguments.seed)
        return [continual.stream(scorer, domains, learning, arguments.seed)]

    evaluate(arguments, run)


def _domains(arguments: argparse.Namespace, loaded: "Loaded") -> "list[Domain]":
    from hope_data.shards import Split  # noqa: PLC0415
    from hope_eval.evaluate import corpora  # noqa: PLC0415
    from hope_eval.scoring.load import HopeTokenizer  # noqa: PLC0415
    from hope_eval.tasks import books, continual  # noqa: PLC0415

    made, tokenizer = [], loaded.tokenizer
    if arguments.text:
        for name, text in books.load_texts(arguments.text).items():
            cut = text.rfind("\n", 0, len(text) * 9 // 10) + 1
            held = books.tokens_of(tokenizer, text[cut:])[: arguments.held_out + 1]
            size = len(tokenizer.decode(held[1:].tolist()).encode())
            if not cut or not size:
                raise InputError(
                    f"{name}: too short for a domain; its last tenth is held out, in whole lines"
                )
            made.append(
                continual.Domain(
                    name, books.tokens_of(tokenizer, text[:cut])[: arguments.tokens], [(held, size)]
                )
            )
        return made
    if not isinstance(tokenizer, HopeTokenizer):
        raise InputError("--shards: hold tokens of our own tokenizer; use --text for models of transformers")
    for folder in corpora(arguments.shards, names(arguments.corpora)):
        train, test = (Split.open(folder, name, tokenizer.inner) for name in ("train", "test"))
        held_out = _documents(test, tokenizer, arguments.held_out)
        if not held_out:
            raise InputError(f"{folder}: its test split holds no text; leave it out of --corpora")
        made.append(
            continual.Domain(folder.name, train.tokens[: arguments.tokens].astype(np.int64), held_out)
        )
    return made


def _documents(split: "Split", tokenizer: "HopeTokenizer", budget: int) -> "list[tuple[Tokens, int]]":
    """Documents after end-of-text with their bytes, up to so many tokens in all."""
    found, room = [], budget
    for number in range(split.n_documents):
        tokens_T = split.document(number)[: min(room, 2048)].astype(np.int64)
        size = int(tokenizer.inner.token_bytes[tokens_T].sum())
        if size:
            found.append((np.concatenate(([tokenizer.eos_id], tokens_T)), size))
            room -= len(tokens_T)
        if room <= 0:
            break
    return found


def _add_bench(commands: Parsers) -> None:
    parser = commands.add_parser(
        "bench",
        help="zero-shot examples/s against lm-eval's own hf model",
        description="The same weights, rows and threads in one run; log-likelihoods are compared too.",
    )
    parser.add_argument("--mirror", type=Path, required=True, metavar="DIR", help="folder with the rows")
    parser.add_argument(
        "--checkpoint", type=Path, metavar="DIR", help="of transformers; default: a random Llama"
    )
    parser.add_argument("--tasks", default="piqa,arc_easy,boolq,hellaswag,lambada_openai", metavar="A,B")
    parser.add_argument(
        "--limit", type=positive, default=40, metavar="N", help="rows of each; default: %(default)s"
    )
    parser.add_argument("--threads", type=positive, default=1, metavar="N", help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the rows as JSON")
    parser.set_defaults(function=_bench)


def _bench(arguments: argparse.Namespace) -> None:
    try:
        from hope_eval.lm_eval_bridge import bench as timing  # noqa: PLC0415
    except ImportError as error:
        raise InputError(f"bench needs lm-eval ({error.name}); pip install 'hope-eval[lm-eval]'") from None
    from hope_eval.report.tables import table  # noqa: PLC0415

    settings = timing.BenchSettings(
        tasks=tuple(names(arguments.tasks)), limit=arguments.limit, threads=arguments.threads
    )
    rows = timing.bench(arguments.mirror, settings, arguments.checkpoint)
    if arguments.json:
        write_atomic(arguments.json, (json.dumps(rows, indent=1) + "\n").encode())
    print(table(list(rows[0]), [[str(value) for value in row.values()] for row in rows], printable))
