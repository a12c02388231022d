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
from minicarlo.report.contents import Plot, Section
from minicarlo.report.display import Display
from minicarlo.report.figure import PALETTE
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
    display: Display | None = None,
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
        display: single showers to turn.
        provenance: name to value, shown at the end.

    Every text is escaped; by its content security policy the page forbids every connection, and every script but the one of the
    display, which it knows by its hash.
    """
    # A template is text written by us; what it is filled with is not, hence autoescape everywhere and no `safe` filter.
    environment = Environment(
        loader=PackageLoader("minicarlo.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    style = _asset("report.css") + (_asset("display.css") if display else "")
    script = _asset("display.js") if display else ""
    return environment.get_template("report.html.j2").render(
        style=Markup(style),
        style_hash=_hash(style),
        script=Markup(script),
        script_hash=_hash(script),
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
        display=display,
        sections=sections,
        warnings=[f"{label}: {text}" for label, card in cards.items() for text in card.warnings],
        provenance=[(name, str(value)) for name, value in (provenance or {}).items()],
    )


def _asset(name: str) -> str:
    return (files("minicarlo.report") / "templates" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
