"""A scorecard as text."""

from __future__ import annotations

import math

from minicarlo.cli._common import format_number, format_seconds, format_with_error, table
from minicarlo.fidelity.scorecard import (
    DIFFERS,
    INDISTINGUISHABLE,
    NOT_ENOUGH,
    EnergyBin,
    ObservableScore,
    Score,
    Scorecard,
)

_SHOWN = 6
_SHORT = {INDISTINGUISHABLE: "same", NOT_ENOUGH: "too few events"}


def summary(card: Scorecard) -> str:
    """The scorecard as text: what matters first."""
    rows: list[tuple[str, ...]] = []
    for name, score in card.observables.items():
        found = score.wasserstein or score.deviation
        rows.append(
            (name, *_cells(found), format_number(score.p_value), _places(name, score), _SHORT.get(score.verdict, score.verdict))
        )
    whole: list[tuple[str, ...]] = [
        ("CERN figure", *_cells(card.cern_error)),
        ("FPD", *_cells(card.fpd)),
        ("KPD", *_cells(card.kpd)),
    ]
    whole += [
        (f"classifier AUC, {name}", format_with_error(score.auc, score.error), format_number(score.floor))
        for name, score in card.classifier.items()
        if score is not None
    ]
    if card.manifold is not None:
        names = ("precision", "recall", "density", "coverage")
        whole += [(name, *_cells(getattr(card.manifold, name))) for name in names]
    energies: list[tuple[str, ...]] = [
        (f"{format_number((one.low or 0) / 1000)} - {format_number((one.high or 0) / 1000)}", _ratio(one), _ratio(two))
        for one, two in zip(card.response, card.resolution, strict=True)
    ]
    return "\n\n".join(
        [
            _verdict(card),
            table(rows, ("observable", "Wasserstein*", "floor", "p", "worst", "verdict")),
            "* in standard deviations of the reference; for linearity to correlation the mean deviation",
            table(whole, ("of the whole", "value", "floor")),
            table(energies, ("energy [GeV]", "response / reference", "resolution / reference")),
        ]
    )


def _verdict(card: Scorecard) -> str:
    """The verdict, how much it is worth, and what differs most, in words."""
    scores = card.observables
    counts = [sum(score.verdict == word for score in scores.values()) for word in (DIFFERS, NOT_ENOUGH)]
    lines = [
        f"{card.verdict.capitalize()}: {card.candidate.events:,} events against {card.reference.events:,}, "
        f"{format_seconds(card.seconds or 0.0)}."
    ]
    if card.headline is not None:
        lines.append(f"{card.headline.words[0].upper()}{card.headline.words[1:]}.")
    if counts[0]:
        differing = sorted(
            (name for name, score in scores.items() if score.verdict == DIFFERS), key=lambda name: scores[name].visible_at or 0
        )
        lines.append(f"{counts[0]} of {len(scores)} observables differ, first those that show it with the fewest events:")
        shown = [(f"  {name}", f"{_count(scores[name].visible_at)}", _words(scores[name])) for name in differing[:_SHOWN]]
        widths = [max(len(row[k]) for row in shown) for k in range(2)]
        lines += [f"{name:<{widths[0]}}  {events:>{widths[1]}}  {words}" for name, events, words in shown]
    if counts[1]:
        short = {name: score for name, score in scores.items() if score.verdict == NOT_ENOUGH}
        most = max(short, key=lambda name: short[name].needed or 0)
        lines.append(f"{counts[1]} of {len(scores)} observables have too few events to find a difference of the tolerance;")
        lines.append(f"{most} needs the most, {short[most].needed or 0:,} on either side.")
    lines += [
        f"Classifier {name} tells them apart." for name, score in card.classifier.items() if score and score.verdict == DIFFERS
    ]
    lines += [f"{part.words}." for part in card.interpolation]
    return "\n".join(lines)


def _count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


def _words(score: ObservableScore) -> str:
    return score.difference.words if score.difference is not None else ""


def _places(name: str, score: ObservableScore) -> str:
    """The worst layer (of the azimuth: sector) and the worst bins of energy and angles of what differs."""
    if score.verdict != DIFFERS:
        return ""
    places = [f"{'sector' if name == 'azimuth' else 'layer'} {score.worst_layer}"] if score.worst_layer is not None else []
    if score.bins and score.worst_bin is not None and score.bins[score.worst_bin].verdict == DIFFERS:
        worst = score.bins[score.worst_bin]
        places.append(f"{format_number((worst.low or 0) / 1000)}-{format_number((worst.high or 0) / 1000)} GeV")
    for angle, found in (score.angles or {}).items():
        if (worst := found.bins[found.worst_bin]).verdict == DIFFERS:
            low, high = (math.degrees(limit or 0) for limit in (worst.low, worst.high))
            places.append(f"{angle.removeprefix('incident_')} {low:.3g}-{high:.3g}°")
    return ", ".join(places)


def _cells(score: Score | None) -> tuple[str, str]:
    return ("-", "-") if score is None else (format_with_error(score.value, score.error), format_number(score.floor))


def _ratio(entry: EnergyBin) -> str:
    return format_with_error(entry.ratio, entry.error)
