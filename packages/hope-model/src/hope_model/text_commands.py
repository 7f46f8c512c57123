"""The commands that put text into a model: generate, chat, recall."""

import argparse
import math
import random
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hope_model.errors import InputError
from hope_model.files import no_checkpoint, read_bytes

EXAMPLES = """examples:
  hope-model generate runs/hope/checkpoint "A tensor is" --tokens 60 --show-memory
  hope-model generate runs/hope/checkpoint "A tensor is" --temperature 0          the likeliest tokens
  hope-model chat runs/hope/checkpoint                                             /help lists what a line can say
  hope-model recall runs/hope/checkpoint --filler README.md                        does it remember a number?
"""
HELP = "/save FILE, /load FILE keep the memories; /memory shows them; /reset forgets; /quit ends"
FACT, QUESTION = "Remember this: the pass number is {number}.\n", "\nRemember this: the pass number is"
FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n"


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    generate = _parser(
        commands, "generate", "continue a prompt", "Continue a prompt; text appears as it is generated."
    )
    generate.add_argument("prompt", help="text to continue; '-' reads it from standard input")
    _sampling(generate)
    generate.add_argument(
        "--show-memory", action="store_true", help="then print what each memory holds, on stderr"
    )
    generate.set_defaults(function=_generate)

    chat = _parser(
        commands,
        "chat",
        "read and write one stream, line after line",
        "Every line that you type is read, then the model goes on. Its memories stay between lines. It is a language "
        f"model, not an assistant. {HELP}.",
    )
    _sampling(chat)
    chat.add_argument("--state", type=Path, metavar="FILE", help="begin with a state that /save wrote")
    chat.set_defaults(function=_chat)

    recall = _parser(
        commands,
        "recall",
        "tell it a number, let it read on, ask for the number",
        "Tell the model a random number of five digits, let it read filler, then ask. Printed are the bits that the "
        "right number costs (16.6 for a uniform guess over digits) and how often the likeliest digits are right, with "
        "its memories written, with none written, and when it was never told.",
    )
    recall.add_argument(
        "--filler", type=Path, metavar="FILE", help="text to read between; default: five short sentences"
    )
    recall.add_argument(
        "--distance",
        type=int,
        metavar="N",
        help="tokens of filler; default: 128, for digits twice the training length in all",
    )
    recall.add_argument(
        "--show", type=int, default=3, metavar="N", help="questions to print; default: %(default)s"
    )
    recall.add_argument("--trials", type=int, default=20, metavar="N", help="numbers; default: %(default)s")
    recall.add_argument(
        "--seed", type=int, default=0, metavar="S", help="of the numbers; default: %(default)s"
    )
    recall.set_defaults(function=_recall)


def _parser(commands: Any, name: str, text: str, description: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=description,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, help="folder with model.safetensors")
    parser.add_argument(
        "--tokenizer", type=Path, metavar="DIR", help="default: in the checkpoint, or data/tokenizer"
    )
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    if name != "recall":
        parser.add_argument(
            "--memory", choices=("on", "off"), default="on", help="off: nothing is written at test time"
        )
    return parser


def _sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tokens", type=int, default=100, metavar="N", help="most to generate; default: %(default)s"
    )
    parser.add_argument(
        "--temperature", type=float, default=0.8, help="0: the likeliest token; default: %(default)s"
    )
    parser.add_argument(
        "--top-p", type=float, default=0.95, help="of the likeliest tokens; default: %(default)s"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the draws; default: %(default)s")


def _open(arguments: argparse.Namespace, *, memory: bool = True) -> Any:
    for name in ("tokens", "distance", "trials"):
        given = getattr(arguments, name, None)
        if given is not None and not 1 <= given <= 10**7:
            raise InputError(f"--{name} {given}: give a whole number from 1 to 10,000,000")
    if not 0 <= arguments.seed < 2**63:
        raise InputError(f"--seed {arguments.seed}: give a whole number from 0 to 2^63 - 1")
    if not (arguments.checkpoint / "meta.json").is_file():
        raise InputError(no_checkpoint(arguments.checkpoint / "meta.json"))
    from hope_model.conversation import Conversation  # noqa: PLC0415 (torch is slow to import)
    from hope_model.cpu import prepare_cpu  # noqa: PLC0415

    prepare_cpu()
    return Conversation(arguments.checkpoint, arguments.tokenizer, arguments.device, memory=memory)


def _drawn(arguments: argparse.Namespace) -> Any:
    from hope_model.conversation import Sampling  # noqa: PLC0415

    return Sampling(arguments.temperature, arguments.top_p, arguments.seed)


def _say(parts: Iterable[str], end: str = "\n") -> None:
    """Print text as it comes, without control characters that a terminal would obey."""
    for part in parts:
        print("".join(c for c in part if c.isprintable() or c in "\n\t"), end="", flush=True)
    print(end=end, flush=True)


def _generate(arguments: argparse.Namespace) -> None:
    drawn, talk = _drawn(arguments), _open(arguments, memory=arguments.memory == "on")
    prompt = sys.stdin.read() if arguments.prompt == "-" else arguments.prompt
    talk.read(prompt)
    _say([prompt], end="")
    _say(talk.write(arguments.tokens, drawn))
    if arguments.show_memory:
        print(_memory(talk), file=sys.stderr)


def _memory(talk: Any) -> str:
    """A table of what each memory holds."""
    rows = [("memory", "written every", "writes", "norm", "of trained weights")]
    for level in talk.memory():
        share = f"{level.share:.1%}" if math.isfinite(level.share) else "-"
        unit = "token" if level.period == 1 else "tokens"
        rows.append((level.name, f"{level.period} {unit}", str(level.writes), f"{level.norm:.3f}", share))
    if len(rows) == 1:
        return (
            "no memory: its attention keeps the tokens themselves" if talk.state else "nothing was read yet"
        )
    return _table(rows)


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)


def _chat(arguments: argparse.Namespace) -> None:
    drawn, talk = _drawn(arguments), _open(arguments, memory=arguments.memory == "on")
    if arguments.state:
        talk.load(arguments.state)
    live = sys.stdin.isatty()
    if live:
        print(HELP, file=sys.stderr)
    while True:
        if live:
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        command, _, value = line.strip().partition(" ")
        if not line or command == "/quit":
            return
        try:
            if command.startswith("/"):
                _command(talk, command, value.strip())
            else:
                talk.read(line)
                _say(talk.write(arguments.tokens, drawn))
        except (InputError, OSError) as error:  # a slip of the keyboard must not lose the stream
            print(f"error: {error}", file=sys.stderr)


def _command(talk: Any, command: str, value: str) -> None:
    actions: dict[str, Callable[[], Any]] = {
        "/save": lambda: talk.save(Path(value)),
        "/load": lambda: talk.load(Path(value)),
        "/memory": lambda: print(_memory(talk), file=sys.stderr),
        "/reset": talk.reset,
        "/help": lambda: print(HELP, file=sys.stderr),
    }
    if command not in actions:
        raise InputError(f"{command}: {HELP}")
    if command in ("/save", "/load") and not value:
        raise InputError(f"{command} needs the name of a file")
    actions[command]()


def _text(path: Path) -> str:
    try:
        return read_bytes(path, 2**28).decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is no UTF-8 ({error.reason}); convert it with iconv") from None


def _recall(arguments: argparse.Namespace) -> None:
    from hope_model.symbols import Symbols  # noqa: PLC0415

    talk = _open(arguments)
    digits = isinstance(talk.tokenizer, Symbols)
    cases, guesses = (_needles if digits else _numbers)(talk, arguments)
    conditions = {"told, memories written": (True, True), "told, none written": (True, False)}
    if not talk.memory_kinds():
        conditions = {"told": (True, True)}
    conditions["never told"] = (False, True)
    said: dict[str, list[str]] = {name: [] for name in conditions}
    bits: dict[str, list[float]] = {name: [] for name in conditions}
    for name, (told, written) in conditions.items():
        for n, case in enumerate(cases):
            if sys.stderr.isatty():
                print(f"\r{name}: {n + 1} of {len(cases)} ", end="", file=sys.stderr, flush=True)
            talk.reset(memory=written)
            talk.read((case.fact if told else "") + case.filler + case.question)
            bits[name].append(talk.bits(case.answer))
            said[name].append(talk.likeliest(len(case.answer) if digits else 12))
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    rows = [("fact", "filler", "question", *conditions)]
    for n, case in enumerate(cases[: arguments.show]):
        told_n = (case.fact, case.filler, case.question, *(answers[n] for answers in said.values()))
        rows.append(tuple(_short(text) for text in told_n))
    if arguments.show:
        print(f"{_table(rows)}\n")
    print(
        f"{talk.parameters:,} parameters, {len(cases)} questions, {arguments.distance} tokens of filler; "
        f"a guess is right once in {guesses:,} and costs {math.log2(guesses):.1f} bits"
    )
    kept = False
    for name in conditions:
        right = sum(s.lstrip().startswith(c.answer.strip()) for s, c in zip(said[name], cases, strict=True))
        mean = statistics.mean(bits[name])
        error = statistics.stdev(bits[name]) / len(cases) ** 0.5 if len(cases) > 1 else math.nan
        print(
            f"{name:<24}right {right} of {len(cases)}; the right answer costs {mean:.2f} ± {error:.2f} bits"
        )
        kept |= right > 0 or mean < math.log2(guesses)
    if not kept:
        print(
            "No better than a guess: this model keeps none. `make demo` of the repository trains one that does."
        )


class _Case(NamedTuple):
    """What is told, read and asked, and the right answer."""

    fact: str
    filler: str
    question: str
    answer: str


def _numbers(talk: Any, arguments: argparse.Namespace) -> tuple[list[_Case], int]:
    """Cases for a model of text, and of how many answers a guess chooses one."""
    arguments.distance = arguments.distance or 128
    text = _text(arguments.filler) if arguments.filler else FILLER * arguments.distance
    ids = talk.encode(text)[: arguments.distance]
    if len(ids) < arguments.distance:
        raise InputError(
            f"--filler {arguments.filler}: has {len(ids)} tokens; --distance asks for {arguments.distance}"
        )
    filler, draw = talk.decode(ids), random.Random(arguments.seed)
    numbers = [str(draw.randrange(10_000, 100_000)) for _ in range(arguments.trials)]
    return [_Case(FACT.format(number=number), filler, QUESTION, f" {number}") for number in numbers], 90_000


def _needles(talk: Any, arguments: argparse.Namespace) -> tuple[list[_Case], int]:
    """The same for a model of the task `needle`."""
    symbols, draw = talk.tokenizer, random.Random(arguments.seed)
    if arguments.filler:
        raise InputError("--filler: this model reads digits, not text; leave the option out")
    # With mark, digits and question the sequence is then twice as long as those of training.
    arguments.distance = arguments.distance or 2 * int(talk.meta["length"]) - 2 * symbols.digits - 1
    facts = [symbols.draw(draw, symbols.digits) for _ in range(arguments.trials)]
    cases = [_Case(f"#{fact}", symbols.draw(draw, arguments.distance), "#", fact) for fact in facts]
    return cases, (len(symbols) - 1) ** symbols.digits


def _short(text: str) -> str:
    """One line of at most 32 characters."""
    text = "".join(c if c.isprintable() else " " for c in text).strip()
    return text if len(text) <= 32 else f"{text[:17]} ... {text[-10:]}"
