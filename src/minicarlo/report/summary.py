"""The first screen of the report: a few tiles and the key numbers, from the results of validate, tune and bench."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minicarlo.fidelity.scorecard import (
    DIFFERS,
    INDISTINGUISHABLE,
    NOT_ENOUGH,
    ClassifierScore,
    EnergyBin,
    Headline,
    Profile,
    Score,
    Scorecard,
    Verdict,
)
from minicarlo.fidelity.verdicts import FEWEST
from minicarlo.report.figure import array, number
from minicarlo.report.names import FORMAT_COLORS, OTHER_FORMAT, classifier_title, observable_title
from minicarlo.report.scores import plus_minus, with_error

_VERDICT_COLORS: dict[Verdict, str] = {INDISTINGUISHABLE: "#00684d", DIFFERS: "#d55e00", NOT_ENOUGH: "#b4b9c1"}
_MOODS = {INDISTINGUISHABLE: "good", DIFFERS: "bad"}


@dataclass(frozen=True)
class Share:
    """A piece of a bar, in percent of its width."""

    start: float
    width: float
    color: str


@dataclass(frozen=True)
class Bar:
    """A bar of shares, the words it stands for, and the line below it."""

    shares: tuple[Share, ...]
    alt: str
    line: str


@dataclass(frozen=True)
class Tile:
    """One statement of the first screen."""

    name: str
    big: str
    lines: tuple[str, ...] = ()
    mood: str = ""
    bars: tuple[Bar, ...] = ()


@dataclass(frozen=True)
class KeyNumber:
    """One row of the table of key numbers, a cell per candidate."""

    name: str
    cells: tuple[str, ...]
    floor: str = "–"


def tiles(
    cards: Mapping[str, Scorecard], reference: str, tuned: Mapping[str, Any] | None, bench: Mapping[str, Any] | None
) -> list[Tile]:
    """Four statements: the verdict on the last candidate, what its error is worth, speed, precision."""
    found = [
        verdict_tile(cards, reference),
        worth_tile(cards, reference),
        speed_tile(bench) if bench else None,
        plan_tile(tuned) if tuned else None,
        classifier_tile(cards),
        cern_tile(cards),
    ]
    return [tile for tile in found if tile is not None][:4]


def verdict_tile(cards: Mapping[str, Scorecard], reference: str) -> Tile:
    """The verdict on the last candidate, and for each how many observables have which."""
    label, card = list(cards.items())[-1]
    big = {INDISTINGUISHABLE: f"✓ Like {reference}", DIFFERS: f"✗ Differs from {reference}"}.get(
        card.verdict, "? Not enough events"
    )
    return Tile(
        f"Verdict on {label}",
        big,
        (),
        _MOODS.get(card.verdict, "unsure"),
        tuple(_verdicts(*item, brief=len(cards) > 2) for item in cards.items()),
    )


def _verdicts(label: str, card: Scorecard, *, brief: bool) -> Bar:
    counts = Counter(score.verdict for score in card.observables.values())
    words = f"{label}: {counts[INDISTINGUISHABLE]} of {counts.total()} observables alike"
    words += f", {counts[NOT_ENOUGH]} with too few events" if counts[NOT_ENOUGH] else ""
    told = [classifier_title(name) for name, score in card.classifier.items() if score and score.verdict == DIFFERS]
    words += f"; {len(told)} classifier{' tells' if len(told) == 1 else 's tell'}" if told else ""
    line = f"{label}: {counts[INDISTINGUISHABLE]} of {counts.total()} alike" if brief else words
    shown = [(counts[verdict], color) for verdict, color in _VERDICT_COLORS.items()]
    return Bar(_shares(shown), words, line)


def worth_tile(cards: Mapping[str, Scorecard], reference: str) -> Tile | None:
    """How many Monte Carlo showers the error of the last candidate is worth."""
    label, card = list(cards.items())[-1]
    fewest = min(card.reference.events, card.candidate.events)
    if (headline := card.headline) is None:
        if card.verdict != INDISTINGUISHABLE:
            return None
        return Tile(
            "Worth of its error", f"> {fewest:,} showers", (f"With {fewest:,} on either side no observable shows any.",), "good"
        )
    if headline.events <= FEWEST:
        lines = [f"Fewer than {FEWEST} {reference} showers show the error of {label}."]
        worth = f"< {FEWEST} showers"
    else:
        worth = f"{headline.events:,} showers"
        lines = [_worth(label, headline, reference)]
    lines.append(f"First seen in: {observable_title(headline.observable).lower()}.")
    worths = [f"{other} {own.headline.events:,}" for other, own in cards.items() if other != label and own.headline]
    return Tile("Worth of its error", worth, (*lines, *([f"Others: {', '.join(worths)}."] if worths else [])))


def _worth(label: str, headline: Headline, reference: str) -> str:
    interval = (
        f" (68 %: {headline.low or 0:,} to {f'{headline.high:,}' if headline.high else 'any number'})" if headline.low else ""
    )
    return f"The error of {label} is worth {headline.events:,} {reference} showers{interval}: with fewer, no observable shows it."


def speed_tile(bench: Mapping[str, Any]) -> Tile | None:
    """Speed-up of the tuned surrogate over FP32 and over the simulator."""
    speedup, runs = bench.get("speedup") or {}, bench.get("runs") or []
    over = speedup.get("tuned_over_fp32")
    if not runs:
        return None
    of_tuned = [run for run in runs if run["precision"] == "tuned"]
    best = max(of_tuned or runs, key=lambda run: float(run["events_per_second"]))
    streams = int(best["streams"])
    with_streams = f"{streams} stream{'s' if streams != 1 else ''}"
    lines = [f"{number(float(best['events_per_second']))} showers/s with {with_streams} ({best['precision']})"]
    if (simulator := speedup.get("over_simulator")) is not None:
        lines.append(f"{number(float(simulator), 2)} times the simulator, core for core")
    if over is None:
        return Tile("Speed", f"{number(float(best['events_per_second']))} /s", tuple(lines))
    return Tile("Speed, tuned over FP32", f"{float(over):.2f} ×", tuple(lines), "good" if float(over) > 1 else "bad")


def plan_tile(tuned: Mapping[str, Any]) -> Tile:
    """Which share of the multiply-accumulates runs in INT8, how many layers in which format, and what it costs."""
    ran = tuned.get("ran") or tuned["plan"]
    counts = Counter(str(name) for name in ran.values())
    order = list(FORMAT_COLORS)
    shown = sorted(counts, key=lambda name: order.index(name) if name in order else len(order))
    words = ", ".join(f"{counts[name]} {name.upper()}" for name in shown)
    bar = Bar(
        _shares([(counts[name], FORMAT_COLORS.get(name, OTHER_FORMAT)) for name in shown]), f"Layers by format: {words}", words
    )
    followed = all(ran.get(layer) == planned for layer, planned in tuned["plan"].items())
    lines = ["The runtime followed the plan." if followed else "The runtime did not follow the plan in every layer."]
    criterion = tuned.get("criterion") or {}
    if criterion.get("value") is not None:
        low, high, tolerance = (_percent(criterion.get(name)) for name in ("low", "high", "tolerance"))
        lines.append(f"Moves observables by {_percent(criterion['value'])} ({low} to {high}, tolerance {tolerance}).")
    share = tuned.get("int8_share")
    big = f"{100 * float(share):.0f} % INT8" if share is not None else words
    return Tile("Precision plan", big, tuple(lines), "" if followed else "bad", (bar,))


def _shares(counts: Sequence[tuple[int, str]]) -> tuple[Share, ...]:
    total = max(1, sum(count for count, _ in counts))
    shares, start = [], 0.0
    for count, color in counts:
        shares.append(Share(round(start, 3), round(100 * count / total, 3), color))
        start += 100 * count / total
    return tuple(share for share in shares if share.width)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{number(100 * float(value), 2)} %"


def cern_tile(cards: Mapping[str, Scorecard]) -> Tile | None:
    """The CERN figure of the last candidate; stands in where nothing was tuned or measured."""
    label, card = list(cards.items())[-1]
    if card.cern_error is None:
        return None
    lines = (f"{label}, mean relative error of the profile moments", f"reference against itself: {number(card.cern_error.floor)}")
    return Tile("CERN figure", number(card.cern_error.value), lines)


def classifier_tile(cards: Mapping[str, Scorecard]) -> Tile | None:
    """How well the best classifier tells the last candidate from the reference."""
    label, card = list(cards.items())[-1]
    found = _classifiers(card)
    if not found:
        return None
    best = max(found, key=lambda name: found[name].auc or 0.0)
    lines = (f"{label} against the reference, {classifier_title(best)}; 0.5 is perfect",)
    return Tile("Classifier AUC", number(found[best].auc), lines, _MOODS.get(found[best].verdict, ""))


def _classifiers(card: Scorecard) -> dict[str, ClassifierScore]:
    return {name: score for name, score in card.classifier.items() if score is not None and score.auc is not None}


def key_numbers(cards: Mapping[str, Scorecard], bench: Mapping[str, Any] | None) -> list[KeyNumber]:
    """The rows of the table of key numbers."""
    values = list(cards.values())
    rows = [
        KeyNumber("Response, largest dev.", tuple(_largest(card.response) for card in values)),
        KeyNumber("Resolution, largest dev.", tuple(_largest(card.resolution) for card in values)),
    ]
    for name, title in (("longitudinal", "Longitudinal profile, largest¹"), ("lateral", "Lateral profile, largest¹")):
        if all(name in card.profiles for card in values):
            rows.append(KeyNumber(title, tuple(_profile_deviation(card.profiles[name]) for card in values)))
    scores: list[tuple[str, float, list[Score | None]]] = [
        ("CERN figure", 1.0, [card.cern_error for card in values]),
        ("FPD × 10³", 1e3, [card.fpd for card in values]),
        ("KPD × 10³", 1e3, [card.kpd for card in values]),
        ("Precision", 1.0, [card.manifold.precision if card.manifold else None for card in values]),
        ("Coverage", 1.0, [card.manifold.coverage if card.manifold else None for card in values]),
    ]
    for title, scale, found in scores:
        if any(found):
            floor = next((score.floor for score in found if score and score.floor is not None), None)
            cells = tuple(with_error(score, scale) for score in found)
            rows.append(KeyNumber(title, cells, number(None if floor is None else floor * scale)))
    best = [max(_classifiers(card).values(), key=lambda found: found.auc or 0.0, default=None) for card in values]
    if any(best):
        cells = tuple("–" if found is None else plus_minus(found.auc, found.error) for found in best)
        rows.append(KeyNumber("AUC of the best classifier", cells, number(next(found.floor for found in best if found))))
    if bench and bench.get("runs"):
        rows.append(KeyNumber("Showers per second, fastest", tuple(_rate(label, bench["runs"]) for label in cards)))
    return rows


def _largest(rows: Sequence[EnergyBin]) -> str:
    """The deviation from one that is largest, in percent, with its own error."""
    known = [(row.ratio - 1, row.error) for row in rows if row.ratio is not None]
    if not known:
        return "–"
    worst = max(known, key=lambda row: abs(row[0]))
    return f"{plus_minus(*worst, scale=100)} %"


def _profile_deviation(profile: Profile) -> str:
    reference, candidate, error = array(profile.reference), array(profile.candidate), array(profile.candidate_error)
    chosen = np.flatnonzero(reference > 0.05 * np.nanmax(reference))
    if not chosen.size:
        return "–"
    deviation = candidate[chosen] / reference[chosen] - 1
    worst = int(np.argmax(np.abs(deviation)))
    return f"{plus_minus(float(deviation[worst]), float(error[chosen][worst] / reference[chosen][worst]), scale=100)} %"


def _rate(label: str, runs: Sequence[Mapping[str, Any]]) -> str:
    rates = [float(run["events_per_second"]) for run in runs if str(run["precision"]).lower() == label.lower()]
    return number(max(rates)) if rates else "–"
