"""The report as one self-contained page: pictures inside, tables sorted by a click, nothing fetched from anywhere.

Pictures are SVG: a point says its values when the mouse is over it, without a script. Pages of studies and of single
texts are files beside it.
"""

import base64
import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markdown_it import MarkdownIt
from markupsafe import Markup

from hope_data.publishing import write_atomic

SURPRISE = "Texts coloured by what writing saved"
STUDIES = "Studies: one question each"
HINT = "Click a column's head to sort. Points of pictures say their values."
RENDER = MarkdownIt("commonmark", {"html": False}).enable("table").render
PAGE = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:;
 style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<link rel="icon" href="data:,">
<title>{{ title }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; color: #1b1b1b; }
h1, h2 { line-height: 1.2; margin-top: 2.2rem; }
img { max-width: 100%; height: auto; }
.wide { overflow-x: auto; }
.wide svg { width: 100%; min-width: 36rem; height: auto; }
a { color: #0b57a4; }
ul.pages { columns: 14rem; padding-left: 1.2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; margin: 1rem 0; }
th, td { padding: 0.25rem 0.7rem; border-bottom: 1px solid #ddd; text-align: left; white-space: nowrap; }
tbody th { position: sticky; left: 0; background: #fff; font-weight: normal; }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible { outline: 2px solid #0072b2; }
th[aria-sort=ascending] button::after { content: " \\25B2"; }
th[aria-sort=descending] button::after { content: " \\25BC"; }
tbody tr:hover { background: #f3f6f9; }
@media (max-width: 40rem) { tbody th { white-space: normal; min-width: 7rem; } }
input { font: inherit; padding: 0.3rem 0.6rem; width: 20rem; max-width: 100%; }
</style>
</head>
<body>
<main>
{% if back %}
<p><a href="{{ back }}">Results</a></p>
{% endif %}
{{ body }}
{% for heading, links in lists.items() if links %}
<h2>{{ heading }}</h2>
<ul class="pages">
{% for name, to in links.items() %}
<li><a href="{{ to | urlencode }}">{{ name }}</a></li>
{% endfor %}
</ul>
{% endfor %}
{% if everything %}
<h2>All metrics</h2>
<p><label>Filter: <input id="filter" type="search" placeholder="hope piqa acc"></label></p>
<div id="everything">{{ everything }}</div>
<script>
"use strict";
const number = (text) => {
  const found = text.replace(/,/g, "").match(/^[-+]?\\d+(\\.\\d+)?([eE][-+]?\\d+)?/);
  return found ? parseFloat(found[0]) : NaN;
};
const compare = (a, b) => {
  const x = number(a), y = number(b);
  if (!Number.isNaN(x) && !Number.isNaN(y)) return x - y;
  if (Number.isNaN(x) !== Number.isNaN(y)) return Number.isNaN(x) ? 1 : -1;
  return a.localeCompare(b);
};
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows];
      rows.sort((a, b) => compare(a.cells[column].textContent, b.cells[column].textContent) * (down ? -1 : 1));
      body.append(...rows);
    });
  });
}
const filter = document.getElementById("filter");
filter.addEventListener("input", () => {
  const words = filter.value.toLowerCase().split(/\\s+/);
  for (const row of document.querySelector("#everything table").tBodies[0].rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
  }
});
</script>
{% endif %}
</main>
</body>
</html>
"""
)


def page(markdown: str, everything: str, images: dict[str, Path], links: dict[str, dict[str, str]]) -> str:
    """The Markdown page as HTML, followed by links to other pages and the table of all metrics.

    Args:
        markdown: the report.
        everything: a Markdown table of every metric.
        images: the file of every picture that the report shows, by the path it is shown under.
        links: by heading, paths by what they are called.
    """
    body = _drawn(RENDER(markdown), images).replace("</h1>", f"</h1>\n<p>{HINT}</p>", 1)
    return _page(body, lists=links, everything=Markup(_wide(RENDER(everything))))  # noqa: S704 (of MarkdownIt)


def _page(body: str, **parts: Any) -> str:
    title = re.search(r"<h1>(.*?)</h1>", body)
    body = Markup(_wide(body))  # noqa: S704 (of MarkdownIt, which escapes)
    return PAGE.render(title=Markup(title[1]) if title else "Results", body=body, **parts)  # noqa: S704


def pages(folder: Path, studies: Path | None, surprise: Sequence[Path]) -> dict[str, dict[str, str]]:
    """Write the pages that the report links.

    Args:
        folder: for them, beside the report.
        studies: folder of Markdown pages of studies, with their pictures in `plots/`; None: none.
        surprise: pages of single texts, `RUN/surprise-CORPUS.html`.

    Returns:
        By heading, their paths from the report by what they are called.
    """
    links: dict[str, dict[str, str]] = {SURPRISE: {}, STUDIES: {}}
    for path in surprise:
        name = f"{path.parent.name}-{path.name}"
        write_atomic(folder / name, path.read_bytes())
        corpus = path.stem.removeprefix("surprise-")
        links[SURPRISE][f"{path.parent.name}: a test document of {corpus}"] = f"{folder.name}/{name}"
    files = sorted(studies.glob("*.md")) if studies else []
    known = {one.name: f"study-{one.stem}.html" for one in files}

    def linked(link: re.Match[str]) -> str:
        """To another study's page; what lies elsewhere in the repository is named alone."""
        return f'<a href="{known[link[1]]}">{link[2]}</a>' if link[1] in known else link[2]

    for path in files:
        pictures = {f"plots/{image.name}": image for image in (path.parent / "plots").glob("*.png")}
        body = _drawn(RENDER(path.read_text()), pictures)
        body = re.sub(r'<a href="([^"]*)">(.*?)</a>', linked, body)
        text = _page(body, back="../results.html", lists={})
        write_atomic(folder / f"study-{path.stem}.html", text.encode())
        links[STUDIES][path.stem.replace("_", " ")] = f"{folder.name}/study-{path.stem}.html"
    return links


def _drawn(body: str, images: dict[str, Path]) -> str:
    """Put pictures inside, as SVG where one lies beside the PNG; those that are not there are left out."""

    def drawn(image: re.Match[str]) -> str:
        path = images.get(html.unescape(image[1]))
        if path is None:
            return ""
        vector = path.with_suffix(".svg")
        if not vector.is_file():
            data = base64.b64encode(path.read_bytes()).decode()
            return f'<img src="data:image/png;base64,{data}" alt="{image[2]}" />'
        head, rest = vector.read_text().split(">", 1)
        head = re.sub(r' (width|height)="[^"]*"', "", head)
        return f'<div class="wide" tabindex="0">{head} role="img" aria-label="{image[2]}">{rest}</div>'

    return re.sub(r'<img src="([^"]+)" alt="([^"]*)" />', drawn, body)


def _wide(text: str) -> str:
    """Have tables scroll where a screen is narrow, and heads say what they are heads of."""
    text = text.replace("<th", '<th scope="col"').replace('<th scope="col"ead', "<thead")
    text = re.sub(r"<tr>\n<td(.*?)</td>", r'<tr>\n<th scope="row"\1</th>', text)
    return text.replace("<table>", '<div class="wide" tabindex="0"><table>').replace(
        "</table>", "</table></div>"
    )
