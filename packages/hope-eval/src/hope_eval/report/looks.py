"""How every picture looks: one colour and one marker per model, what a point says when the mouse is over it, files.

Same numbers, same bytes: no dates, no software names in the files.
"""

import re
from collections.abc import Iterable
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.colors
from matplotlib.figure import Figure

from hope_data.publishing import write_atomic

# Each at least three times as dark as white paper, and told apart with every kind of colour vision.
COLOURS = ("#0072B2", "#D55E00", "#00805C", "#8A3E9A", "#7A6A00", "#A0522D", "#C2185B", "#000000")
MARKERS = "os^DvPX*"
# Models whose look is the same whatever they are shown with; others take what is left, in order.
MODELS = ("hope", "titans", "gated_deltanet", "transformer", "transformer_window")
FILLS = ("full", "none", "left", "bottom", "top", "right")  # of a model alone, then by adaptation
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#E3E3E3",
    "legend.frameon": False,
    "legend.fontsize": 10,
    # A dollar in a name is no mathematics.
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "hope",
}
# On a phone only the left of a picture is seen without scrolling.
LEGEND: dict[str, Any] = {"loc": "outside lower left", "ncols": 2}
WIDTH, DPI = 9.0, 110
_TIP = "tip:"


def looks(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Return colour and marker of each name."""
    shown = list(dict.fromkeys(names))
    places = {name: n for n, name in enumerate(MODELS) if name in shown}
    free = (n for n in range(len(shown) + len(MODELS)) if n not in places.values())
    places |= {name: next(free) for name in shown if name not in places}
    return {name: (COLOURS[n % len(COLOURS)], MARKERS[n % len(MARKERS)]) for name, n in places.items()}


def split(title: str) -> tuple[str, str]:
    """Return a row's model and its adaptation, '' without any: `titans + writes`, or a task's `titans+writes`."""
    model, _, adaptation = title.partition("+")
    return model.strip(), adaptation.strip()


class Looks:
    """Looks of models, plain and adapted, in one picture.

    Args:
        titles: of all rows, such as `titans + writes`.
    """

    def __init__(self, titles: Iterable[str]) -> None:
        titles = list(titles)
        self._models = looks(split(title)[0] for title in titles)
        self.adaptations = list(dict.fromkeys(a for title in titles if (a := split(title)[1])))

    def of(self, title: str) -> dict[str, Any]:
        """Return the keywords of a row's points."""
        model, adaptation = split(title)
        colour, marker = self._models[model]
        fill = FILLS[(self.adaptations.index(adaptation) + 1) % len(FILLS)] if adaptation else "full"
        return {"color": colour, "marker": marker, "fillstyle": fill, "markerfacecoloralt": "white"}


def contrast(a: Any, b: Any) -> float:
    """Return how much two colours differ in lightness, 1 to 21 (WCAG 2.2, "contrast ratio"); text needs 4.5."""
    light = sorted(0.05 + _luminance(mpl.colors.to_rgb(colour)) for colour in (a, b))
    return light[1] / light[0]


def _luminance(rgb: Iterable[float]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def ink(paper: Any) -> str:
    """Return black or white, whichever is read more easily on a colour; of the two one always has 4.5."""
    return max("wk", key=lambda colour: contrast(colour, paper))


def tip(artist: Any, text: str) -> None:
    """Have an artist of an SVG say a text when the mouse is over it."""
    artist.set_gid(_TIP + text)


def save(figure: Figure, path: Path) -> None:
    """Write a picture as PNG, and beside it as SVG with its tips, without anything that changes from day to day."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    write_atomic(path, buffer.getvalue())
    buffer = BytesIO()
    with mpl.rc_context({"svg.id": path.stem} if "svg.id" in mpl.rcParams else {}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = re.sub(r"^.*?(?=<svg )", "", buffer.getvalue().decode(), flags=re.DOTALL)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(rf'<g id="{_TIP}([^"]*)">', r"<g><title>\1</title>", text)
    # Ids would meet those of other pictures of the page.
    text = re.sub(r'((?:id="|href="#|url\(#))', rf"\g<1>{escape(path.stem)}-", text)
    write_atomic(path.with_suffix(".svg"), text.encode())
