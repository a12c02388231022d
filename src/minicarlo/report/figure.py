"""The drawing primitives of the report: style, palette, panels with a ratio, and SVG pictures that carry no script."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import matplotlib
import matplotlib.ticker
import mplhep
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure
from numpy.typing import NDArray

from minicarlo.report.svg import address, compact

Array = NDArray[np.float64]

# Okabe and Ito, "Color Universal Design" (2008): distinguishable with every kind of colour vision.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.4)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (3, 2)), "-")
MARKERS = ("o", "s", "^", "D", "v", "P")
_LEFT, _RIGHT = 0.78, 0.1  # margins, inches

REFERENCE_FILL = "#D5D8DC"
REFERENCE_LINE = "#2B2F36"
BAND = "#B4B9C1"
FLOOR = "#E9EBEE"
SMALL, WIDE = (3.66, 3.1), (5.5, 4.1)  # inches; three or two in a row of the page
FULL = 11.4  # inches, the width of the page

STYLE: Any = {
    **{key: value for key, value in mplhep.style.ROOT.items() if value is not None},
    "font.family": ["TeX Gyre Heros", "DejaVu Sans"],  # the second has the scripts that the first lacks
    "font.size": 10,
    "axes.labelsize": 10,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.linewidth": 0.8,
    "axes.unicode_minus": True,
    "legend.fontsize": 9,
    "lines.linewidth": 1.5,
    "lines.markersize": 4,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "xtick.major.size": 5,
    "xtick.minor.size": 2.5,
    "ytick.major.size": 5,
    "ytick.minor.size": 2.5,
    "xtick.major.pad": 4,
    "ytick.major.pad": 4,
    "svg.fonttype": "path",
    "svg.hashsalt": "minicarlo",
    "pdf.fonttype": 3,  # Matplotlib 3.11 mixes up letters of Type 42 fonts that several pages share
    "figure.dpi": 96,
}


@dataclass(frozen=True)
class Table:
    """The numbers behind a plot: what a reader copies, and what a screen reader reads."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Picture:
    """A finished figure, words for those who cannot see it, and its numbers."""

    figure: Figure
    alt: str
    table: Table

    @property
    def width(self) -> int:
        """CSS pixels."""
        return round(96 * float(self.figure.get_size_inches()[0]))

    @property
    def height(self) -> int:
        """CSS pixels."""
        return round(96 * float(self.figure.get_size_inches()[1]))

    @cached_property
    def source(self) -> Markup:
        """The figure as an SVG data address."""
        buffer = io.BytesIO()
        self.save(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        return address(compact(buffer.getvalue().decode()))

    def save(self, target: Path | io.BytesIO | PdfPages, **options: Any) -> None:  # noqa: ANN401
        """As `Figure.savefig`, in the report's style."""
        with matplotlib.rc_context(STYLE), warnings.catch_warnings():
            # A name in a rare script is drawn as boxes; the table has it.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            self.figure.savefig(target, **options)  # type: ignore[arg-type]

    def save_page(self, pages: PdfPages, title: str) -> None:
        """As a page of its own with a title above the figure."""
        words = self.figure.text(0.01, 1.02, plain(title, 100), va="bottom", fontsize=11)
        self.save(pages, format="pdf", bbox_inches="tight", pad_inches=0.15)
        words.remove()


def plain(text: object, limit: int = 32) -> str:
    """A name from a file as harmless text for matplotlib: printable, short, without mathematics or legend magic."""
    words = "".join(c if c.isprintable() and not 0xD800 <= ord(c) <= 0xDFFF else "?" for c in str(text))
    words = words if len(words) <= limit else words[: limit - 1] + "…"
    words = words.replace("\\", "\N{FULLWIDTH REVERSE SOLIDUS}").replace("$", r"\$")
    return words if not words.startswith("_") else "\u200b" + words


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits; a dash for what is missing or not finite."""
    if value is None or not math.isfinite(value):
        return "–"
    if value != 0 and not 1e-4 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa}×10{str(int(exponent)).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}".replace("-", "−")
    decimals = max(0, digits - 1 - (math.floor(math.log10(abs(value))) if value else 0))
    return f"{value:,.{decimals}f}".replace("-", "−")


@contextmanager
def drawing(width: float, height: float, layout: Literal["constrained"] | None = None) -> Iterator[Figure]:
    """A figure of so many inches in the report's style; no global state of matplotlib is touched."""
    with matplotlib.rc_context(STYLE):
        yield Figure(figsize=(width, height), layout=layout)


def panel(figure: Figure, left: float = _LEFT) -> Axes:
    """The only panel, with fixed margins (inches): panels align on the page, and nothing is drawn twice to measure it."""
    _margins(figure, left)
    return figure.subplots()


def with_ratio(figure: Figure) -> tuple[Axes, Axes]:
    """An upper panel and a ratio panel that share the horizontal axis."""
    _margins(figure, _LEFT)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2.6, 1))
    inner = float(figure.get_size_inches()[0]) - _LEFT - _RIGHT
    upper.yaxis.set_label_coords(-0.57 / inner, 1.0)
    lower.yaxis.set_label_coords(-0.38 / inner, 0.5)
    return upper, lower


def _margins(figure: Figure, left: float) -> None:
    width, height = figure.get_size_inches()
    figure.subplots_adjust(left=left / width, right=1 - _RIGHT / width, bottom=0.5 / height, top=1 - 0.1 / height, hspace=0.08)


def ratio_panel(axes: Axes, places: Sequence[Array], ratios: Sequence[Array], errors: Sequence[Array], label: str) -> None:
    """Dress a ratio panel: the line at one, and the narrowest symmetric range that holds nearly all well-measured points.

    Points outside that range are marked by triangles on the rim: nothing is hidden by the choice of range.
    """
    axes.axhline(1.0, color=REFERENCE_LINE, linewidth=0.8, zorder=1)
    half = next((limit for limit in (0.05, 0.1, 0.2, 0.5) if _fits(limit, ratios, errors)), 1.0)
    axes.set_ylim(1 - half, 1 + half)
    axes.set_yticks([1 - half / 2, 1, 1 + half / 2])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    axes.set_ylabel(label, loc="center")
    for x, ratio, color in zip(places, ratios, PALETTE, strict=False):
        for outside, rim, marker in ((ratio > 1 + half, 1 + half, "^"), (ratio < 1 - half, 1 - half, "v")):
            if (chosen := np.isfinite(ratio) & outside).any():
                rims = np.full(chosen.sum(), rim)
                axes.plot(x[chosen], rims, marker, color=color, markersize=4, clip_on=False)


def _fits(limit: float, ratios: Sequence[Array], errors: Sequence[Array]) -> bool:
    for ratio, error in zip(ratios, errors, strict=True):
        known = np.isfinite(ratio)
        measured = known & (error <= 0.6 * limit)
        if measured.sum() < 0.5 * known.sum() or (np.abs(ratio[measured] - 1) > 0.92 * limit).mean() > 0.1:
            return False
    return True


def legend(axes: Axes, entries: int, *, small: bool = False) -> None:
    """A legend of so many entries in the upper right corner, and room for it above the curves."""
    columns = 1 if entries < 4 else 2
    rows = math.ceil(entries / columns)
    share = rows * (0.095 if small else 0.07) + 0.04
    bottom, top = axes.get_ylim()
    if axes.get_yscale() == "log":
        axes.set_ylim(bottom, top * (top / bottom) ** (share / (1 - share)))
    else:
        axes.set_ylim(bottom, bottom + (top - bottom) / (1 - share))
    axes.legend(loc="upper right", ncols=columns, fontsize=8 if small else 9, columnspacing=1.0, borderaxespad=0.4)


def reference_steps(axes: Axes, edges: Array, values: Array, label: str) -> None:
    """The reference, or the floor, as filled steps."""
    axes.stairs(values, edges, fill=True, facecolor=REFERENCE_FILL, edgecolor=REFERENCE_LINE, linewidth=1, label=label)


def array(values: Sequence[float | None]) -> Array:
    """Numbers of a scorecard, NaN where one is missing."""
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def columns_table(header: Sequence[str], columns: Sequence[Array]) -> Table:
    """A table of columns of numbers."""
    return Table(tuple(header), tuple(tuple(number(float(value), 4) for value in row) for row in zip(*columns, strict=True)))


def worst_words(ratios: Sequence[Array], errors: Sequence[Array], labels: Sequence[str]) -> str:
    """The largest well-measured deviation of each candidate, for the words that stand for a picture."""
    words = []
    for label, ratio, error in zip(labels, ratios, errors, strict=False):
        measured = np.isfinite(ratio) & (error < 0.1)
        if measured.any():
            words.append(f"{label} differs from the reference by up to {100 * np.abs(ratio[measured] - 1).max():.1f} %")
    return "; ".join(words) or "too few events for a statement"


def divide(numerator: Array, denominator: Array) -> Array:
    """The ratio, NaN where the denominator is zero."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(denominator != 0, numerator / np.where(denominator == 0, 1, denominator), np.nan)


def is_logarithmic(edges: Array) -> bool:
    """Whether bins with these edges belong on a logarithmic axis."""
    widths = np.diff(edges)
    return bool(edges[0] > 0 and widths.max() > 5 * widths.min())
