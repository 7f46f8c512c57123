"""The report as one self-contained page: pictures inside, tables sorted by a click, nothing fetched from anywhere."""

import base64
import html
import re
from pathlib import Path

from markdown_it import MarkdownIt

HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:;
 style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 68rem; padding: 0 1rem; color: #1b1b1b; }}
h1, h2 {{ line-height: 1.2; margin-top: 2.2rem; }}
img {{ max-width: 100%; height: auto; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; margin: 1rem 0; }}
th, td {{ padding: 0.25rem 0.7rem; border-bottom: 1px solid #ddd; text-align: left; white-space: nowrap; }}
th button {{ all: unset; cursor: pointer; font-weight: 600; }}
th button:focus-visible {{ outline: 2px solid #0072b2; }}
th[aria-sort=ascending] button::after {{ content: " \\25B2"; }}
th[aria-sort=descending] button::after {{ content: " \\25BC"; }}
tbody tr:hover {{ background: #f3f6f9; }}
input {{ font: inherit; padding: 0.3rem 0.6rem; width: 20rem; max-width: 100%; }}
</style>
</head>
<body>
"""
SCRIPT = """<script>
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
"""


def page(markdown: str, everything: str, images: dict[str, Path]) -> str:
    """The Markdown page as HTML, followed by the table of all metrics.

    Args:
        markdown: the report.
        everything: a Markdown table of every metric.
        images: the file of every picture that the report shows, by the path it is shown under.
    """
    render = MarkdownIt("commonmark", {"html": False}).enable("table").render
    body = re.sub(
        r'src="([^"]+)"', lambda found: f'src="{_inline(images[html.unescape(found[1])])}"', render(markdown)
    )
    title = re.search(r"<h1>(.*?)</h1>", body)
    parts = [
        HEAD.format(title=title[1] if title else "Results"),
        body.replace("</h1>", "</h1>\n<p>Click a column's head to sort.</p>", 1),
        "<h2>All metrics</h2>",
        '<p><label>Filter: <input id="filter" type="search" placeholder="hope piqa acc"></label></p>',
        f'<div id="everything">{render(everything)}</div>',
        SCRIPT,
        "</body>\n</html>\n",
    ]
    text = "\n".join(parts)
    return text.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")


def _inline(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
