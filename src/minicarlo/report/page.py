"""One self-contained page a person reads: summary, sections of plots with the numbers behind them, provenance."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from minicarlo import __version__
from minicarlo.fidelity.scorecard import Scorecard
from minicarlo.report.figure import PALETTE
from minicarlo.report.sections import Plot, Section
from minicarlo.report.summary import key_numbers, tiles

_KEY_NOTE = (
    "Largest: the deviation that is largest, in percent. ¹ among layers or rings that hold at least 5 % of the largest one. The "
    "largest of several deviations is rarely zero even for identical generators: read it with its error. The last column is the "
    "same number for two halves of the reference itself."
)


def render(
    cards: Mapping[str, Scorecard],
    hero: Plot,
    sections: Sequence[Section],
    *,
    title: str,
    lead: str,
    reference: str = "Geant4",
    tuning: Mapping[str, Any] | None = None,
    bench: Mapping[str, Any] | None = None,
    provenance: Mapping[str, object] | None = None,
) -> str:
    """The page as HTML text.

    Arguments:
        cards: label to scorecard; at most six.
        hero: the plot on the first screen.
        sections: what stands below it.
        title, lead: heading and the paragraph below it.
        reference: what to call the reference sample.
        tuning: result of `tune` (keys `accepted`, `plan`, `ran`, `int8_share`, `criterion`).
        bench: result of `bench` (keys `machine`, `runs`, `speedup`).
        provenance: name to value, shown at the end.

    Every text is escaped; the page forbids scripts and every connection by its content security policy.
    """
    # A template is text written by us; what it is filled with is not, hence autoescape everywhere and no `safe` filter.
    environment = Environment(
        loader=PackageLoader("minicarlo.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    style = (files("minicarlo.report") / "templates" / "report.css").read_text(encoding="utf-8")
    return environment.get_template("report.html.j2").render(
        style=Markup(style),
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        version=__version__,
        date=datetime.now(UTC).strftime("%-d %B %Y, %H:%M UTC"),
        title=title,
        lead=lead,
        labels=list(cards),
        colors=PALETTE,
        floor_name=f"{reference} itself",
        tiles=tiles(cards, reference, tuning, bench),
        key_numbers=key_numbers(cards, bench),
        key_note=_KEY_NOTE,
        hero=hero,
        sections=sections,
        warnings=[f"{label}: {text}" for label, card in cards.items() for text in card.warnings],
        provenance=[(name, str(value)) for name, value in (provenance or {}).items()],
    )
