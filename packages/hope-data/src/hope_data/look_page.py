"""A look at corpora as a page: histograms of length and language, what was dropped, and samples of both."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from hope_data import documents
from hope_data.errors import InputError
from hope_data.progress import steps
from hope_data.publishing import new_folder

PAGE = "index.html"
_LANGUAGE_SAMPLE, _PLACE = 400, 1000
_BAR = "#3b6ea5"
_TEMPLATE = """\
<!doctype html>
<html lang='en'><meta charset='utf-8'><title>Corpora</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h2 { margin-top: 3rem; border-bottom: 1px solid #ccc } figure { display: inline-block; margin: 0; width: 33% }
table { border-collapse: collapse } td, th { padding: .15rem .8rem; text-align: right }
th { border-bottom: 1px solid #999 }
td:first-child, th:first-child { text-align: left } pre { white-space: pre-wrap; background: #f6f6f4; padding: .7rem;
max-height: 16rem; overflow: auto } summary { cursor: pointer } small { color: #666 } img { max-width: 100% }
</style>
<h1>Corpora</h1>
<table><tr><th>corpus</th><th>documents</th><th>MB</th><th>dropped</th></tr>
{% for name, record, samples, images in corpora %}
<tr><td><a href='#{{ name }}'>{{ name }}</a></td><td>{{ "{:,}".format(record.documents) }}</td>
<td>{{ "%.2f" | format(record.bytes / 1e6) }}</td>
<td>{{ "{:,}".format((record.raw_documents or record.documents) - record.documents) }}</td></tr>
{% endfor %}
</table>
{% for name, record, samples, images in corpora %}
{% set source = (record.raw or record).manifest %}
<h2 id='{{ name }}'>{{ name }}</h2>
<p>{{ "{:,}".format(record.documents) }} documents, {{ "%.2f" | format(record.bytes / 1e6) }} MB.
Licence {{ source.licence }}, from {{ source.source or "an unnamed source" }}.</p>
{% for file, caption in images %}
<figure><img src='{{ file }}' alt='{{ caption }}'><figcaption><small>{{ caption }}</small></figcaption></figure>
{% endfor %}
<h3>Documents</h3>
{% for id, licence, text in samples %}
<p><b>{{ id }}</b> <small>{{ licence }}</small></p><pre>{{ text }}</pre>
{% endfor %}
{% if record.dropped %}
<h3>Dropped</h3>
{% for reason, n in record.dropped.items() | sort(attribute="1", reverse=true) %}
<details><summary>{{ reason }}: {{ "{:,}".format(n) }} of {{ "{:,}".format(record.raw_documents) }}</summary>
{% for sample in record.samples[reason] %}
<p><b>{{ sample.id }}</b> {{ sample.details }}</p><pre>{{ sample.text }}</pre>
{% endfor %}
</details>
{% endfor %}
{% endif %}
{% endfor %}
</html>
"""


def _gather(folder: Path, count: int, width: int) -> dict[str, Any]:
    """Lengths of all documents, languages of some, and samples."""
    import py3langid  # noqa: PLC0415

    record = documents.provenance(folder)
    n = record["documents"]
    lengths, languages = np.zeros(n, np.int64), Counter[str]()
    samples: list[tuple[str, str, str]] = []
    for i, row in enumerate(documents.read(folder)):
        lengths[i] = len(row.text.encode())
        if i % max(1, n // _LANGUAGE_SAMPLE) == 0:
            middle = max(0, len(row.text) // 2 - _PLACE // 2)
            languages[str(py3langid.classify(row.text[middle : middle + _PLACE])[0])] += 1
        if i % max(1, n // max(1, count)) == 0 and len(samples) < count:
            samples.append((row.id, row.meta.get("licence", ""), row.text[:width]))
    return {"record": record, "lengths": lengths, "languages": languages, "samples": samples}


def _plots(name: str, gathered: dict[str, Any], folder: Path) -> list[tuple[str, str]]:
    """Draw the histograms; file names with what they show."""
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415
        from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter  # noqa: PLC0415
    except ImportError:
        raise InputError("look --html draws with matplotlib: pip install 'hope-data[look]'") from None
    drawn = []

    def save(figure: Any, kind: str, caption: str) -> None:
        figure.savefig(folder / f"{name}-{kind}.png", dpi=110, metadata={"Software": None})
        drawn.append((f"{name}-{kind}.png", caption))

    lengths = np.maximum(1, gathered["lengths"])
    figure = Figure(figsize=(4.2, 2.9), layout="constrained")
    axes = figure.subplots()
    low, high = np.log10(lengths.min()), np.log10(lengths.max())
    axes.hist(lengths, np.logspace(low, max(high, low + 0.1), 40).tolist(), color=_BAR)
    axes.set(xscale="log", xlabel="bytes of a document", ylabel="documents", title="Length")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if high - low > 2 else (1.0, 2.0, 5.0), numticks=20))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    median = f"median {np.median(lengths):,.0f} bytes, longest {lengths.max():,}"
    save(figure, "length", f"{len(lengths):,} documents, {median}")
    sampled = sum(gathered["languages"].values())
    bars = (
        ("language", "Language", gathered["languages"].most_common(8), f"py3langid on {sampled} documents"),
        (
            "dropped",
            "Dropped",
            Counter(gathered["record"].get("dropped", {})).most_common(10),
            "documents by reason",
        ),
    )
    for kind, title, rows, caption in bars:
        if not rows:
            continue
        figure = Figure(figsize=(4.2, 2.9), layout="constrained")
        axes = figure.subplots()
        labels, counts = zip(*reversed(rows), strict=True)
        bars_drawn = axes.barh(range(len(rows)), counts, 0.7, color=_BAR)
        axes.set_yticks(range(len(rows)), labels)
        axes.bar_label(bars_drawn, padding=3, fontsize=8)
        axes.margins(x=0.15)
        axes.set_ylim(len(rows) - 0.5 - max(len(rows), 5), len(rows) - 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set(xlabel="documents", title=title)
        save(figure, kind, caption)
    return drawn


def write(folders: list[Path], out: Path, count: int, width: int) -> Path:
    """Write a page about corpora into a folder of its own.

    Args:
        folders: of `hope-data acquire` or `filter`.
        out: folder to write: index.html and the pictures it shows; needs nothing from the network.
        count: sample documents per corpus.
        width: characters of each.

    Returns:
        The page.

    Raises:
        InputError: no such corpus, a damaged one, or no matplotlib or jinja2.
    """
    try:
        from jinja2 import Environment  # noqa: PLC0415
    except ImportError:
        raise InputError("look --html needs jinja2: pip install 'hope-data[look]'") from None
    corpora = []
    with new_folder(out, PAGE) as work:
        for folder in steps(folders, len(folders), "look"):
            name, gathered = folder.resolve().name, _gather(folder, count, width)
            corpora.append((name, gathered["record"], gathered["samples"], _plots(name, gathered, work)))
        template = Environment(autoescape=True, trim_blocks=True).from_string(_TEMPLATE)
        page = template.render(corpora=corpora)
        (work / PAGE).write_text(page, encoding="utf-8", errors="backslashreplace")
    return out / PAGE
