"""The first screen of the report: a few tiles and the key numbers, from the JSON objects of validate, tune and bench."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minicarlo.fidelity.scorecard import INDISTINGUISHABLE
from minicarlo.report.figure import number
from minicarlo.report.names import FORMAT_COLORS

Cards = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Share:
    """A piece of the bar in a tile, in percent of its width."""

    start: float
    width: float
    color: str


@dataclass(frozen=True)
class Tile:
    """One statement of the first screen."""

    name: str
    big: str
    lines: tuple[str, ...]
    mood: str = ""
    shares: tuple[Share, ...] = ()
    alt: str = ""


@dataclass(frozen=True)
class KeyNumber:
    """One row of the table of key numbers, a cell per candidate."""

    name: str
    cells: tuple[str, ...]
    floor: str = "–"


def with_error(score: Mapping[str, Any] | None, key: str = "value", scale: float = 1.0) -> str:
    """`0.0123 ± 0.0012`, the error with two significant digits."""
    if score is None or score.get(key) is None:
        return "–"
    value, error = float(score[key]) * scale, score.get("error")
    if error is None or not np.isfinite(error) or error <= 0:
        return number(value)
    error = float(error) * scale
    decimals = max(0, 1 - int(np.floor(np.log10(error))))
    if decimals > 6:
        return f"{number(value)} ± {number(error, 2)}"
    return f"{value:,.{decimals}f} ± {error:,.{decimals}f}".replace("-", "−")


def agreement(card: Mapping[str, Any]) -> tuple[int, int]:
    """How many observables agree, and how many there are."""
    verdicts = [entry["verdict"] for entry in card["observables"].values()]
    return verdicts.count(INDISTINGUISHABLE), len(verdicts)


def fidelity_tile(cards: Cards, reference: str) -> Tile:
    """The verdict on the last candidate, and the count of agreeing observables for each."""
    verdict = str(list(cards.values())[-1]["verdict"])
    lines = ["{}: {} of {} observables like {}".format(label, *agreement(card), reference) for label, card in cards.items()]
    return Tile(
        f"Fidelity of {list(cards)[-1]}", verdict.capitalize(), tuple(lines), "good" if verdict == INDISTINGUISHABLE else "bad"
    )


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


def plan_tile(tuning: Mapping[str, Any]) -> Tile:
    """Which share of the multiply-accumulates runs in INT8, and how many layers run in which format."""
    ran = tuning.get("ran") or tuning["plan"]
    counts = Counter(str(name) for name in ran.values())
    total = max(1, sum(counts.values()))
    shares, start = [], 0.0
    for name in sorted(
        counts, key=lambda name: (name not in FORMAT_COLORS, list(FORMAT_COLORS).index(name) if name in FORMAT_COLORS else 0)
    ):
        width = 100 * counts[name] / total
        shares.append(Share(round(start, 3), round(width, 3), FORMAT_COLORS.get(name, "#8A9099")))
        start += width
    words = ", ".join(f"{count} {name.upper()}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))
    followed = all(ran.get(layer) == planned for layer, planned in tuning["plan"].items())
    lines = (
        "of the multiply-accumulates" if tuning.get("int8_share") is not None else "",
        f"Layers: {words}",
        "The runtime followed the plan." if followed else "The runtime did not follow the plan in every layer.",
    )
    share = tuning.get("int8_share")
    big = f"{100 * float(share):.0f} % INT8" if share is not None else words
    return Tile(
        "Precision plan", big, tuple(filter(None, lines)), "" if followed else "bad", tuple(shares), f"Layers by format: {words}"
    )


def criterion_tile(tuning: Mapping[str, Any]) -> Tile | None:
    """What the lower precision costs, in the units of the tuning criterion."""
    criterion = tuning.get("criterion") or {}
    value, tolerance = criterion.get("value"), criterion.get("tolerance")
    if value is None:
        return None
    accepted = bool(tuning.get("accepted"))
    lines = [f"criterion {criterion.get('name', '')}: relative change, tuned against FP32 on the same latents"]
    if criterion.get("low") is not None and criterion.get("high") is not None:
        lines.append(f"interval {_percent(criterion['low'])} to {_percent(criterion['high'])}, tolerance {_percent(tolerance)}")
    return Tile("Cost of lower precision", _percent(value), tuple(lines), "good" if accepted else "bad")


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{number(100 * float(value), 2)} %"


def cern_tile(cards: Cards) -> Tile | None:
    """The CERN figure of the last candidate; stands in where nothing was tuned or measured."""
    label, card = list(cards.items())[-1]
    if not card.get("cern_error"):
        return None
    floor = number(card["cern_error"].get("floor"))
    return Tile(
        "CERN figure",
        number(card["cern_error"]["value"]),
        (f"{label}, mean relative error of the profile moments", f"reference against itself: {floor}"),
    )


def classifier_tile(cards: Cards) -> Tile | None:
    """How well a classifier tells the last candidate from the reference."""
    label, card = list(cards.items())[-1]
    high = (card.get("classifier") or {}).get("high")
    if not high:
        return None
    return Tile("Classifier AUC", number(high["auc"]), (f"{label} against the reference, high-level features; 0.5 is perfect",))


def key_numbers(cards: Cards, bench: Mapping[str, Any] | None) -> list[KeyNumber]:
    """The rows of the table of key numbers."""
    values = list(cards.values())
    rows = [
        KeyNumber("Response, largest dev.", tuple(_largest(card["response"]) for card in values)),
        KeyNumber("Resolution, largest dev.", tuple(_largest(card["resolution"]) for card in values)),
    ]
    for name, title in (("longitudinal", "Longitudinal profile, largest dev.¹"), ("lateral", "Lateral profile, largest dev.¹")):
        if all(name in card["profiles"] for card in values):
            rows.append(KeyNumber(title, tuple(_profile_deviation(card["profiles"][name]) for card in values)))
    for name, title, scale in (("cern_error", "CERN figure", 1.0), ("fpd", "FPD × 10³", 1e3), ("kpd", "KPD × 10³", 1e3)):
        if any(card.get(name) for card in values):
            cells = tuple(with_error(card.get(name), scale=scale) for card in values)
            rows.append(KeyNumber(title, cells, _floor([card.get(name) for card in values], scale)))
    for name, title in (("high", "Classifier AUC, network"), ("trees", "Classifier AUC, trees")):
        scores = [(card.get("classifier") or {}).get(name) for card in values]
        if any(scores):
            rows.append(KeyNumber(title, tuple(with_error(score, "auc") for score in scores), _floor(scores, 1.0)))
    if bench and bench.get("runs"):
        rows.append(KeyNumber("Showers per second, fastest", tuple(_rate(label, bench["runs"]) for label in cards)))
    return rows


def _largest(rows: Sequence[Mapping[str, Any]]) -> str:
    """The deviation from one that is largest, in percent, with its own error."""
    known = [row for row in rows if row.get("ratio") is not None and np.isfinite(row["ratio"])]
    if not known:
        return "–"
    worst = max(known, key=lambda row: abs(row["ratio"] - 1))
    return with_error({"value": worst["ratio"] - 1, "error": worst.get("error")}, scale=100) + " %"


def _profile_deviation(profile: Mapping[str, Any]) -> str:
    reference, candidate, error = (
        np.array([np.nan if value is None else value for value in profile[key]], dtype=np.float64)
        for key in ("reference", "candidate", "candidate_error")
    )
    chosen = np.flatnonzero(reference > 0.05 * np.nanmax(reference))
    if not chosen.size:
        return "–"
    deviation = candidate[chosen] / reference[chosen] - 1
    worst = int(np.argmax(np.abs(deviation)))
    relative = {"value": float(deviation[worst]), "error": float(error[chosen][worst] / reference[chosen][worst])}
    return with_error(relative, scale=100) + " %"


def _floor(scores: Sequence[Mapping[str, Any] | None], scale: float) -> str:
    floor = next((score["floor"] for score in scores if score and score.get("floor") is not None), None)
    return "–" if floor is None else number(float(floor) * scale)


def _rate(label: str, runs: Sequence[Mapping[str, Any]]) -> str:
    rates = [float(run["events_per_second"]) for run in runs if str(run["precision"]).lower() == label.lower()]
    return number(max(rates)) if rates else "–"
