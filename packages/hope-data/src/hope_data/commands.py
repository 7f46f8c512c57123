"""Command lines as tables: a row for every command, with its texts and options."""

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hope_data.console import Parser


@dataclass(frozen=True)
class Option:
    """One option, as argparse takes it."""

    flag: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class Group:
    """Options that stand together in --help, or, without a title, of which exactly one is given."""

    options: Sequence[Option]
    title: str = ""
    description: str = ""


@dataclass(frozen=True)
class Command:
    """One row of the table of commands.

    Attributes:
        name: on the command line.
        summary: in the list of commands.
        description: in its own help.
        options: in the order of its help.
        examples: below the options.
        function: what runs it; stored as `function`.
    """

    name: str
    summary: str
    description: str
    options: Sequence[Option | Group]
    examples: str = ""
    function: Callable[[argparse.Namespace], Any] | None = None


def option(
    flag: str, text: str = "", kind: Callable[[str], Any] = str, metavar: str | None = None, **settings: Any
) -> Option:
    """Describe an option: flag, help, type of its value, and what else argparse knows."""
    return Option(flag, {"help": text or None, "type": kind, "metavar": metavar, **settings})


def switch(flag: str, text: str) -> Option:
    """Describe an option without a value."""
    return Option(flag, {"help": text, "action": "store_true"})


def parser_of(
    program: str, description: str, examples: str, commands: Sequence[Command], metavar: str = "COMMAND"
) -> Parser:
    """Return the parser of a table of commands; it stores the command's name as `command`."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog=program, description=description, epilog=examples, formatter_class=raw)
    rows = parser.add_subparsers(required=True, metavar=metavar)
    for command in commands:
        row = rows.add_parser(
            command.name,
            help=command.summary,
            description=command.description,
            epilog=command.examples or None,
            formatter_class=raw if command.examples else argparse.HelpFormatter,
        )
        for entry in command.options:
            if isinstance(entry, Option):
                row.add_argument(entry.flag, **entry.settings)
                continue
            group = (
                row.add_argument_group(entry.title, entry.description)
                if entry.title
                else row.add_mutually_exclusive_group(required=True)
            )
            for inner in entry.options:
                group.add_argument(inner.flag, **inner.settings)
        row.set_defaults(command=command.name, function=command.function)
    return parser


def whole(text: str, least: int, most: int) -> int:
    """Return a whole number, as the type of an option."""
    if not (text.isascii() and text.isdigit() and len(text) < 20 and least <= int(text) <= most):
        raise argparse.ArgumentTypeError(f"{text[:30]!r} is no whole number from {least} to {most}")
    return int(text)


def share(text: str, most: int = 1) -> float:
    """Return a number from 0 to `most`, as the type of an option."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= most:
        raise argparse.ArgumentTypeError(f"{text[:30]!r} is no number from 0 to {most}")
    return number
