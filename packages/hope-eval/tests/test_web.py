"""The page in headless Chromium: no error, every picture drawn, sorting and filtering work, nothing fetched."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import pytest

from hope_eval import results as schema
from hope_eval.cli import main
from hope_eval.report.looks import contrast, ink
from hope_eval.report.surprise import BALANCE, HEAT
from hope_eval.results import Items, PairedDifference, TaskResult

CHROMIUM = next((found for name in ("chromium", "chromium-browser") if (found := shutil.which(name))), None)
# Runs in the page: errors are collected from the first script on, and the outcome is written into the document.
PROBE_HEAD = """<script>window.problems = [];
addEventListener("error", (e) => problems.push(String(e.message || e.target.src)), true);
addEventListener("securitypolicyviolation", (e) => problems.push("policy: " + e.violatedDirective));
for (const kind of ["error", "warn"]) { const old = console[kind];
  console[kind] = (...a) => { problems.push(a.join(" ")); old(...a); }; }</script>"""
PROBE_END = """<script>addEventListener("load", () => {
  const table = document.querySelector("#everything table");
  const column = [...table.tHead.rows[0].cells].findIndex((c) => c.textContent === "value");
  const values = () => [...table.tBodies[0].rows].map((r) => parseFloat(r.cells[column].textContent));
  const button = table.tHead.rows[0].cells[column].querySelector("button");
  button.click(); const up = values(); button.click(); const down = values();
  const filter = document.getElementById("filter");
  filter.value = "beta choice"; filter.dispatchEvent(new Event("input"));
  const shown = [...table.tBodies[0].rows].filter((r) => !r.hidden).map((r) => r.textContent);
  const pictures = [...document.querySelectorAll("svg")].map((s) => s.getAttribute("role") === "img"
    && s.getAttribute("aria-label").length > 20 && s.querySelectorAll("title").length
    && s.getBoundingClientRect().width);
  const channel = (c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = (rgb) => { const [r, g, b] = rgb.map((c) => channel(c / 255));
    return 0.05 + 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const rgba = (text) => text.match(/[\\d.]+/g).map(Number);
  const paper = (node) => { for (; node; node = node.parentElement) {
    const found = rgba(getComputedStyle(node).backgroundColor);
    if (found.length < 4 || found[3] === 1) return found.slice(0, 3); }
    return [255, 255, 255]; };
  const texts = [...document.querySelectorAll("body *")].filter((node) => !node.closest("svg, script")
    && [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim()));
  const contrasts = texts.map((node) => { const a = light(rgba(getComputedStyle(node).color).slice(0, 3)),
    b = light(paper(node)); return Math.max(a, b) / Math.min(a, b); });
  const legends = [...document.querySelectorAll('svg [id*="legend"]')].map((g) => g.getBoundingClientRect().right);
  const heads = [...document.querySelectorAll("th")].every((head) => ["col", "row"].includes(head.scope));
  const scrolling = [...document.querySelectorAll(".wide")].every((node) => node.tabIndex === 0);
  const fits = document.documentElement.scrollWidth <= innerWidth;
  const fetched = performance.getEntriesByType("resource").map((e) => e.name).filter((n) => !n.startsWith("data:"));
  const out = document.createElement("pre"); out.id = "outcome";
  out.textContent = JSON.stringify({ up, down, shown, pictures, fits, fetched, problems,
    contrasts, legends, heads, scrolling, lang: document.documentElement.lang });
  document.body.append(out); });</script>"""


def with_suites(path: Path) -> None:
    """Adds a needle task, a continual matrix, loss by position, a zero-shot task and a memorised pair."""
    result = schema.load(path)
    cells = [(n, d) for n in ("1024", "2048") for d in ("0", "0.5", "1")]
    needle = Items(
        {
            "length": [n for n, _ in cells],
            "depth": [d for _, d in cells],
            "cell": [f"{n}@{d}" for n, d in cells],
        },
        list(range(6)),
        [1.0] * 6,
        {"needle_match": [0.0, 0.25, 0.5, 0.75, 1.0, 0.0], "needle_exact": [0.0] * 6},
    )
    stages = [(i, j) for i in ("0", "1", "2") for j in ("code", "prose")]
    stream = Items(
        {
            "cell": [f"{i}>{j}" for i, j in stages],
            "stage": [i for i, _ in stages],
            "domain": [j for _, j in stages],
        },
        [0, 1] * 3,
        [1.0] * 6,
        {"bits_per_byte": [3.0, 3.1, 2.0, 3.0, 2.2, 2.1]},
    )
    books = Items(
        {"book": ["a", "a"], "position": ["0-255", "256-511"]},
        [0, 0],
        [256.0, 256.0],
        {"token_nats": [900.0, 800.0]},
    )
    piqa = Items({}, list(range(4)), [1.0] * 4, {"acc": [1.0, 0.0, 1.0, 1.0]})
    made = [
        TaskResult(name, 1, {}, 0, "f", 10, 0.1, items.metrics(chance), items)
        for name, items, chance in (
            ("niah_single_1", needle, None),
            ("continual_stream_memorize", stream, None),
            ("books_position", books, None),
            ("piqa", piqa, {"acc": 0.5}),
        )
    ]
    pair = PairedDifference(
        "choice", "on", "choice_accuracy", "all", 0.5, 0.4, 0.1, 0.05, 0.01, 0.2, 200, 100
    )
    path.write_bytes(schema.sealed(replace(result, tasks=[*result.tasks, *made], memorized=[pair])))


@pytest.fixture
def page(synthetic: Callable[..., Path], tmp_path: Path) -> Path:
    for name, bits in (("alpha", 2.0), ("beta", 2.1)):
        with_suites(synthetic(name, bits, 0.5))
    out = tmp_path / "reports" / "index.html"
    flags = ["--results", str(tmp_path / "results"), "--out", str(out.with_name("results.md"))]
    assert main(["report", *flags, "--plots", str(out.with_name("plots")), "--html", str(out)]) == 0
    return out


def test_page_is_self_contained_and_says_what_the_markdown_says(page: Path) -> None:
    text = page.read_text()
    assert not re.search(r"""(src|href)=["'](?!data:|#|pages/)""", text)
    assert text.count("<svg ") == len(list(page.with_name("plots").glob("*.png"))) == 6
    for said in (
        "Zero-shot",
        "Needles in a haystack",
        "Continual learning",
        "Memorisation at test time",
        "0.100 ± 0.050",
    ):
        assert said in text
        assert said in page.with_name("results.md").read_text()
    assert "0.7500" in text
    # Every table of the Markdown is one on the page, and the long one.
    markdown = page.with_name("results.md").read_text()
    assert text.count("<table>") == len(re.findall(r"^\| -", markdown, re.MULTILINE)) + 1 > 10
    assert "<script>" not in page.with_name("results.md").read_text()


def test_studies_and_texts_have_pages_that_the_report_links(
    synthetic: Callable[..., Path], tmp_path: Path
) -> None:
    result = schema.load(synthetic("alpha", 2.0, 0.5))
    (tmp_path / "results" / "alpha.json").unlink()
    (tmp_path / "results" / "alpha").mkdir()
    (tmp_path / "results" / "alpha" / "0.json").write_bytes(schema.sealed(result))
    (tmp_path / "results" / "alpha" / "surprise-code.html").write_text("<h1>Saved</h1>")
    studies = tmp_path / "studies"
    (studies / "plots").mkdir(parents=True)
    (studies / "plots" / "mqar.png").write_bytes(b"\x89PNG")
    table = "# mqar\n\n![Accuracy](plots/mqar.png)\n\n| arm | bits |\n|---|---|\n| hope | 0.49 |\n"
    (studies / "mqar.md").write_text(f"{table}\n[parity](parity.md), [code](../code.py)\n")
    (studies / "parity.md").write_text("# parity\n\n![gone](plots/parity.png)\n")
    out = tmp_path / "reports" / "results.html"
    flags = ["--results", str(tmp_path / "results"), "--out", str(out.with_suffix(".md")), "--html", str(out)]
    flags += ["--plots", str(tmp_path / "plots"), "--studies", str(studies)]
    assert main(["report", *flags]) == 0
    links = re.findall(r'<li><a href="([^"]+)">([^<]+)', out.read_text())
    assert links == [
        ("pages/alpha-surprise-code.html", "alpha: a test document of code"),
        ("pages/study-mqar.html", "mqar"),
        ("pages/study-parity.html", "parity"),
    ]
    pages = {to: (out.parent / to).read_text() for to, _ in links}
    assert pages["pages/alpha-surprise-code.html"] == "<h1>Saved</h1>"
    assert "<td>0.49</td>" in pages["pages/study-mqar.html"]
    assert 'alt="Accuracy"' in pages["pages/study-mqar.html"]
    assert re.findall(r'href="(?!data)([^"]+)"', pages["pages/study-mqar.html"]) == [
        "../results.html",
        "study-parity.html",
    ]
    assert "<img" not in pages["pages/study-parity.html"]


def test_text_can_be_read_on_every_colour() -> None:
    assert contrast("w", "k") == pytest.approx(21.0)
    assert contrast("#777777", "#ffffff") == pytest.approx(
        4.48, abs=0.01
    )  # WCAG's own example of just too little
    cells = [mpl.colormaps["viridis"](n / 255) for n in range(256)]
    assert min(contrast(ink(cell), cell) for cell in cells) >= 4.5
    assert min(contrast("#1b1b1b", paper) for paper in (*HEAT, *BALANCE)) >= 4.5
    assert contrast("#0b57a4", "#ffffff") >= 4.5


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt-get install chromium)")
def test_page_works_in_a_browser(page: Path, tmp_path: Path) -> None:
    text = (
        page.read_text().replace("<head>", "<head>" + PROBE_HEAD, 1).replace("</body>", PROBE_END + "</body>")
    )
    probed = tmp_path / "probed.html"
    probed.write_text(text)
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--virtual-time-budget=5000",
        "--window-size=390,800",
    ]
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    done = subprocess.run(
        [str(CHROMIUM), *options, profile, "--dump-dom", probed.as_uri()],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    found = re.search(r'<pre id="outcome">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-1000:]
    outcome = json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert outcome["problems"] == []
    assert outcome["fetched"] == []
    assert len(outcome["pictures"]) == 6
    assert all(outcome["pictures"])  # as wide as they should be, with an alternative text and values to hover
    assert len(outcome["contrasts"]) > 100
    assert min(outcome["contrasts"]) >= 4.5  # WCAG 2.2, AA
    assert outcome["heads"]
    assert outcome["scrolling"]  # by keyboard, too
    assert outcome["lang"] == "en"
    assert outcome["legends"]
    assert max(outcome["legends"]) <= 390
    assert outcome["fits"]  # what is wider than a phone scrolls by itself
    assert len(outcome["up"]) > 20
    assert outcome["up"] == sorted(outcome["up"])
    assert outcome["down"] == sorted(outcome["down"], reverse=True)
    assert outcome["up"] != outcome["down"]
    assert outcome["shown"]
    assert all("beta" in row and "choice" in row for row in outcome["shown"])
