"""A text coloured by its loss, with what is written at test time and without: see what a memory learned.

One self-contained page; nothing is fetched from anywhere. Colours need no script: three radio buttons choose between
classes that every token carries.
"""

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import jinja2
import numpy as np
from numpy.typing import NDArray

from hope_data.errors import InputError
from hope_data.publishing import write_atomic
from hope_eval.files import read_text

# Upper edges of the colours: bits of a token, and bits that writing saves.
BITS = (0.5, 1, 2, 4, 6, 8, 11)
SAVED = (-4, -1.5, -0.5, 0.5, 1.5, 4)


class Token(NamedTuple):
    """A token of the text: what it shows, and bits with and without writes."""

    text: str
    written: float
    plain: float


PAGE = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<link rel="icon" href="data:,">
<title>Surprise: {{ name }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; color: #1b1b1b; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 1rem 0; }
th, td { padding: 0.2rem 0.8rem; border-bottom: 1px solid #ddd; text-align: left; }
svg { max-width: 100%; height: auto; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; font: 15px/1.9 ui-monospace, monospace; margin-top: 1rem; }
.text span { border-radius: 2px; }
.key span { padding: 0.1rem 0.5rem; }
label { margin-right: 1.2rem; }
{% for view, colours in views.items() %}
{% for colour in colours %}
{% set token = view ~ loop.index0 %}
#{{ view }}:checked ~ .text .{{ token }}, .key .{{ token }} { background: {{ colour }}; }
{% endfor %}
#{{ view }}:not(:checked) ~ .key.of-{{ view }} { display: none; }
{% endfor %}
</style>
</head>
<body>
<main>
<h1>What the memory learned while it read</h1>
<p>{{ model }} on {{ name }}: {{ count }} tokens. {{ compared }} Hover a token for its bits. Lower is better.</p>
<table>
<tr><td></td><th scope="col">bits per byte</th><th scope="col">first half</th><th scope="col">second half</th></tr>
{% for label, numbers in summary %}
<tr><th scope="row">{{ label }}</th>{% for x in numbers %}<td>{{ "%.3f" | format(x) }}</td>{% endfor %}</tr>
{% endfor %}
</table>
<svg viewBox="0 0 640 190" role="img" aria-label="Bits saved so far, {{ "%.0f" | format(total) }} at the end">
<line x1="60" y1="{{ zero }}" x2="630" y2="{{ zero }}" stroke="#777"/>
<polyline points="{{ points }}" fill="none" stroke="#0072b2" stroke-width="2"/>
<text x="60" y="14" font-size="13">bits saved so far by writing: {{ "%+.0f" | format(total) }} in all</text>
<text x="54" y="{{ zero + 4 }}" font-size="12" text-anchor="end">0</text>
<text x="60" y="186" font-size="12">first token</text>
<text x="630" y="186" font-size="12" text-anchor="end">token {{ count }}</text>
</svg>
<input type="radio" name="view" id="saved" checked><label for="saved">saved by writing</label>
<input type="radio" name="view" id="written"><label for="written">bits with writes</label>
<input type="radio" name="view" id="plain"><label for="plain">bits without</label>
{% for view, labels in keys.items() %}
<p class="key of-{{ view }}">
{% for label in labels %}
<span class="{{ view }}{{ loop.index0 }}">{{ label }}</span>
{% endfor %}
</p>
{% endfor %}
<div class="text">{% for text, classes, title in tokens -%}
<span class="{{ classes }}" title="{{ title }}">{{ text }}</span>
{%- endfor %}</div>
</main>
</body>
</html>
"""
)
HEAT = ("#ffffff", "#fff7dc", "#ffedb3", "#ffdd80", "#ffc566", "#ffad66", "#ff9580", "#ff8080")
BALANCE = ("#ff9466", "#ffc2a6", "#ffe4d6", "#ffffff", "#d9ecfa", "#a6d3f2", "#70b8ea")


def run(arguments: argparse.Namespace) -> None:
    """Read a text twice and write the page."""
    from hope_eval.progress import Display  # noqa: PLC0415 (--help needs no torch)
    from hope_eval.scoring.adaptation import parse, wrap  # noqa: PLC0415
    from hope_eval.scoring.load import HopeModel, load  # noqa: PLC0415
    from hope_eval.scoring.scorer import Scorer  # noqa: PLC0415

    loaded = load(arguments.checkpoint, arguments.tokenizer, arguments.device)
    own = isinstance(loaded.model, HopeModel) and bool(loaded.model.memories)
    if not arguments.adapt and not own:
        raise InputError(f"{arguments.checkpoint}: has no memory of its own; attach one with --adapt writes")
    adapted = wrap(loaded.model, parse(arguments.adapt or "off"))
    text, most = read_text(arguments.text, "name a text in UTF-8"), arguments.tokens
    encoded = loaded.tokenizer.encode(text[: 64 * most])
    ids = encoded[: most + 1]
    if len(ids) < 2:
        raise InputError(f"{arguments.text}: holds no text")
    models = {"with writes": loaded.model, "without": adapted}
    if arguments.adapt:
        models = {"with writes": adapted, "without": loaded.model}
    bits = []
    with Display() as display:
        for name, model in models.items():
            scorer = Scorer(model, arguments.device, advance=display.advance)
            display.begin(name, len(ids))
            parts = [logp for logp, _ in scorer.stream_logp(np.array(ids, np.int64))]
            bits.append(-np.concatenate(parts) / np.log(2))
    compared = (
        f"With {arguments.adapt} and without."
        if arguments.adapt
        else "With its memories written and with none."
    )
    if len(encoded) > len(ids) or len(text) > 64 * most:
        compared += f" Only its first {most:,} tokens were read (--tokens)."
    spoken = pieces(loaded.tokenizer.decode, ids[1:], bits)
    page = render(spoken, arguments.text.name, loaded.about.run, compared)
    write_atomic(arguments.html, page.encode())


def pieces(
    decode: Callable[[list[int]], str], ids: list[int], bits: list[NDArray[np.float64]]
) -> list[Token]:
    """Tokens as text; those that end within a character join the next.

    Args:
        decode: ids to text.
        ids: of the text.
        bits: per id, with writes and without.
    """
    tokens: list[Token] = []
    waiting: list[int] = []
    start, done = 0, ""
    for n in range(len(ids)):
        waiting.append(n)
        text = decode(ids[start : n + 1])
        if text.endswith("\ufffd") and len(waiting) < 8 and n + 1 < len(ids):
            continue
        tokens.append(Token(text[len(done) :], *(float(b[waiting].sum()) for b in bits)))
        waiting, done = [], text
        if n - start > 64 and not text.endswith("\ufffd"):  # decoding stays linear in the length
            start, done = n + 1, ""
    return tokens


def render(tokens: list[Token], name: str, model: str, compared: str) -> str:
    """The page of a text."""
    written, plain = (np.array([getattr(token, kind) for token in tokens]) for kind in ("written", "plain"))
    sizes = np.array([len(token.text.encode()) for token in tokens])
    half = int(np.searchsorted(sizes.cumsum(), sizes.sum() / 2)) + 1

    def per_byte(bits: NDArray[np.float64]) -> list[float]:
        return [
            float(bits[s].sum() / max(1, sizes[s].sum()))
            for s in (slice(None), slice(half), slice(half, None))
        ]

    saved = (plain - written).cumsum()
    low, high = min(0.0, float(saved.min())), max(1e-9, float(saved.max()))
    shown = np.unique(np.linspace(0, len(saved) - 1, min(len(saved), 500)).astype(int))

    def height(value: float) -> float:
        return round(165 - 140 * (value - low) / (high - low), 1)

    points = " ".join(f"{60 + 570 * n / max(1, len(saved) - 1):.1f},{height(saved[n])}" for n in shown)
    cells: list[tuple[str, str, str]] = []
    for token in tokens:
        gain = token.plain - token.written
        bins = (
            np.searchsorted(SAVED, gain),
            np.searchsorted(BITS, token.written),
            np.searchsorted(BITS, token.plain),
        )
        classes = " ".join(f"{view}{k}" for view, k in zip(("saved", "written", "plain"), bins, strict=True))
        cells.append(
            (token.text, classes, f"{token.written:.1f} with, {token.plain:.1f} without, {gain:+.1f} saved")
        )
    heat = [f"≤ {edge:g}" for edge in BITS] + [f"> {BITS[-1]:g} bits"]
    balance = [f"≤ {edge:+g}" for edge in SAVED] + [f"> {SAVED[-1]:+g} bits saved"]
    values: dict[str, Any] = {
        "summary": [("with writes", per_byte(written)), ("without", per_byte(plain))],
        "views": {"saved": BALANCE, "written": HEAT, "plain": HEAT},
        "keys": {"saved": balance, "written": heat, "plain": heat},
        "count": len(tokens),
        "total": float(saved[-1]),
        "zero": height(0.0),
    }
    return PAGE.render(name=name, model=model, compared=compared, points=points, tokens=cells, **values)
