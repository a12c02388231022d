"""Tables of verdicts and numbers, a row per candidate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from minicarlo.fidelity.scorecard import DIFFERS, INDISTINGUISHABLE, ObservableScore, Score, Scorecard
from minicarlo.report.figure import number
from minicarlo.report.names import observable_title

_MOODS = {INDISTINGUISHABLE: "good", DIFFERS: "bad"}
_MARKS = {INDISTINGUISHABLE: "✓ same", DIFFERS: "✗ differs"}


@dataclass(frozen=True)
class Cell:
    """A cell of a table: text, mood ("good", "bad", "unsure", "soft", "words"), rows it spans, candidate it belongs to."""

    text: str
    mood: str = ""
    rows: int = 1
    head: bool = False
    candidate: int | None = None


@dataclass(frozen=True)
class Grid:
    """A table of cells below one row of headings."""

    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def plus_minus(value: float | None, error: float | None, scale: float = 1.0) -> str:
    """`0.0123 ± 0.0012`, the error with two significant digits."""
    if value is None:
        return "–"
    if error is None or not np.isfinite(error) or error <= 0:
        return number(value * scale)
    value, error = value * scale, error * scale
    decimals = max(0, 1 - int(np.floor(np.log10(error))))
    if decimals > 6:
        return f"{number(value)} ± {number(error, 2)}"
    return f"{value:,.{decimals}f} ± {error:,.{decimals}f}".replace("-", "−")


def with_error(score: Score | None, scale: float = 1.0) -> str:
    """The value of a score with its error; a dash where there is none."""
    return "–" if score is None else plus_minus(score.value, score.error, scale)


def verdict_cell(verdict: str) -> Cell:
    """A verdict as a mark and a word, so that colour is not needed to read it."""
    return Cell(_MARKS.get(verdict, "? too few"), _MOODS.get(verdict, "unsure"))


def distance(score: ObservableScore) -> Score | None:
    """The Wasserstein distance, or the deviation of what is not a distribution."""
    return score.wasserstein or score.deviation


def observable_scores(cards: Mapping[str, Scorecard]) -> Grid:
    """Every observable, a row per candidate."""
    rows: list[tuple[Cell, ...]] = []
    for name in dict.fromkeys(name for card in cards.values() for name in card.observables):
        having = [(index, label) for index, label in enumerate(cards) if name in cards[label].observables]
        for place, (index, label) in enumerate(having):
            score = cards[label].observables[name]
            head = (Cell(observable_title(name), rows=len(having), head=True),) if place == 0 else ()
            rows.append((*head, Cell(label, candidate=index), verdict_cell(score.verdict), *_numbers(score)))
    return _without_empty_columns(Grid(_HEADER, tuple(rows)))


def _without_empty_columns(grid: Grid) -> Grid:
    """Columns that have a dash in every row say nothing; counted from the right, since a first cell may span rows."""
    empty = {back for back in range(1, _NUMBERS + 1) if all(row[-back].text == "–" for row in grid.rows)}

    def kept(row: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(cell for place, cell in enumerate(row) if len(row) - place not in empty)

    return Grid(kept(grid.header), tuple(kept(row) for row in grid.rows))


_HEADER = (
    "observable",
    "candidate",
    "verdict",
    "difference",
    "p",
    "separation",
    "floor",
    "distance [σ]",
    "floor",
    "KS",
    "shows with",
    "asks for",
)
_NUMBERS = 9  # columns after observable, candidate and verdict


def _numbers(score: ObservableScore) -> tuple[Cell, ...]:
    apart = distance(score)
    p = "< 0.001" if score.p_value is not None and score.p_value < 0.001 else number(score.p_value, 2)
    return (
        Cell(score.difference.words if score.difference else "–", "words"),
        Cell(p),
        Cell(with_error(score.separation_power)),
        Cell(number(score.separation_power.floor if score.separation_power else None), "soft"),
        Cell(with_error(apart)),
        Cell(number(apart.floor if apart else None), "soft"),
        Cell(number(score.kolmogorov_smirnov.value if score.kolmogorov_smirnov else None)),
        Cell("–" if score.visible_at is None else f"{score.visible_at:,}"),
        Cell("–" if score.needed is None else f"{score.needed:,}"),
    )


def whole_shower_scores(cards: Mapping[str, Scorecard]) -> Grid:
    """Distances of all features at once, a row each, a column per candidate, and the floor."""
    rows = []
    for title, scale, scores in _whole(cards):
        if any(scores):
            floor = next((score.floor for score in scores if score and score.floor is not None), None)
            cells = tuple(Cell(with_error(score, scale)) for score in scores)
            rows.append((Cell(title, head=True), *cells, Cell("–" if floor is None else number(floor * scale), "soft")))
    return Grid(("", *cards, "floor"), tuple(rows))


def _whole(cards: Mapping[str, Scorecard]) -> list[tuple[str, float, list[Score | None]]]:
    values = list(cards.values())
    found: list[tuple[str, float, list[Score | None]]] = [
        ("Fréchet physics distance (FPD) × 10³", 1e3, [card.fpd for card in values]),
        ("Kernel physics distance (KPD) × 10³", 1e3, [card.kpd for card in values]),
        ("CERN figure, moments", 1.0, [card.cern_error for card in values]),
        ("CERN figure, profiles", 1.0, [card.cern_error.profiles if card.cern_error else None for card in values]),
    ]
    for name in ("precision", "recall", "density", "coverage"):
        found.append((name.capitalize(), 1.0, [getattr(card.manifold, name) if card.manifold else None for card in values]))
    return found
