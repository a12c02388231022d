"""One self-contained page a person reads: summary, plots with the numbers behind them, scores, precision plan, speed."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from minicarlo import __version__
from minicarlo.fidelity.scorecard import INDISTINGUISHABLE
from minicarlo.report import plots
from minicarlo.report.figure import PALETTE, Picture, Table, number
from minicarlo.report.names import observable_axis, observable_title
from minicarlo.report.summary import (
    Cards,
    Tile,
    cern_tile,
    classifier_tile,
    criterion_tile,
    fidelity_tile,
    key_numbers,
    plan_tile,
    speed_tile,
    with_error,
)

_KEY_NOTE = (
    "¹ among layers or rings that hold at least 5 % of the largest one. The largest of several deviations is rarely zero even "
    "for identical generators: read it with its error. The last column is the same number for two halves of the reference itself."
)
_SCORES_TEXT = (
    "Separation: half the sum of (h₁ − h₂)² / (h₁ + h₂) over the bins of unit-normalised histograms; 0 is identical, 1 disjoint. "
    "Distance: Wasserstein-1 in units of the reference's standard deviation; for profiles, the relative deviation. "
    "Errors by bootstrap; the floor is the same between two halves of the reference, brought to these sample sizes. "
    "✓: a permutation test finds no difference from the reference; ✗: it finds one."
)
_SHORT = {INDISTINGUISHABLE: "same"}


@dataclass(frozen=True)
class Plot:
    """A picture with its caption."""

    title: str
    caption: str
    picture: Picture


@dataclass(frozen=True)
class Section:
    """A heading with plots below it."""

    title: str
    text: str
    plots: tuple[Plot, ...]
    columns: str = ""


def render(
    cards: Cards,
    *,
    title: str,
    lead: str,
    reference: str = "Geant4",
    tuning: Mapping[str, Any] | None = None,
    trials: Sequence[Mapping[str, Any]] = (),
    bench: Mapping[str, Any] | None = None,
    provenance: Mapping[str, object] | None = None,
) -> str:
    """The page as HTML text.

    Arguments:
        cards: label to scorecard, as `Scorecard.to_dict()` gives it; at most six.
        title, lead: heading and the paragraph below it.
        reference: what to call the reference sample.
        tuning: result of `tune` (keys `accepted`, `plan`, `ran`, `int8_share`, `criterion`).
        trials: one mapping per trial: `trial`, `accepted`, and where known `description`, `speedup`, `value`, `low`, `high`.
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
        tiles=_tiles(cards, reference, tuning, bench),
        key_numbers=key_numbers(cards, bench),
        key_note=_KEY_NOTE,
        hero=_hero(cards, reference),
        sections=_sections(cards, reference),
        scores=_scores(cards),
        warnings=[f"{label}: {text}" for label, card in cards.items() for text in card.get("warnings") or ()],
        tuning=_tuning(tuning, trials) if tuning else None,
        speed=_speed(bench) if bench and bench.get("runs") else None,
        provenance=[(name, str(value)) for name, value in (provenance or {}).items()],
    )


def _tiles(cards: Cards, reference: str, tuning: Mapping[str, Any] | None, bench: Mapping[str, Any] | None) -> list[Tile]:
    tiles = [
        fidelity_tile(cards, reference),
        speed_tile(bench) if bench else None,
        plan_tile(tuning) if tuning else None,
        criterion_tile(tuning) if tuning else None,
        cern_tile(cards),
        classifier_tile(cards),
    ]
    return [tile for tile in tiles if tile is not None][:4]


def _hero(cards: Cards, reference: str) -> Plot:
    return _profile_plot(_of(cards, "profiles", "longitudinal"), reference, "longitudinal", "Longitudinal profile", "")


def _profile_plot(
    profiles: Mapping[str, Any], reference: str, name: str, title: str, caption: str, *, small: bool = False
) -> Plot:
    per, x = ("layer", "depth z") if name == "longitudinal" else ("ring", "distance from the axis r")
    first = next(iter(profiles.values()))
    x_label, y_label = f"{x} [{first['x_unit']}]", f"mean energy per {per} [{first['unit']}]"
    picture = plots.profile(profiles, reference, title=title, x_label=x_label, y_label=y_label, small=small)
    return Plot(title, caption, picture)


def _of(cards: Cards, group: str, name: str) -> dict[str, Any]:
    """Label to one entry of a group, for the cards that have it."""
    return {label: card[group][name] for label, card in cards.items() if name in card[group]}


def _histogram_plot(
    histograms: Mapping[str, Any], reference: str, name: str, title: str, caption: str = "", *, wide: bool = False
) -> Plot:
    per = "cells" if name == "cell_energy" else "showers"
    label = observable_axis(name, next(iter(histograms.values())).get("unit"))
    picture = plots.histogram(histograms, reference, title=title, x_label=label, y_label=f"fraction of {per}", wide=wide)
    return Plot(title, caption, picture)


def _sections(cards: Cards, reference: str) -> list[Section]:
    first = next(iter(cards.values()))
    response = plots.against_energy(
        "response", cards, reference, title="Response", y_label="mean visible / incident energy", band=0.03
    )
    resolution = plots.against_energy("resolution", cards, reference, title="Resolution", y_label="standard deviation / mean")
    energy = [Plot("Response", "", response), Plot("Resolution", "", resolution)]
    shape = []
    if "lateral" in first["profiles"]:
        lateral = _of(cards, "profiles", "lateral")
        shape.append(
            _profile_plot(lateral, reference, "lateral", "Lateral profile", "Rings around the axis of the incident particle.")
        )
    if "cell_energy" in first["histograms"]:
        cells = _of(cards, "histograms", "cell_energy")
        shape.append(
            _histogram_plot(
                cells, reference, "cell_energy", "Cell-energy spectrum", "All cells above the readout threshold.", wide=True
            )
        )
    binned = [
        _profile_plot(
            {label: card["energy_profiles"][number]["longitudinal"] for label, card in cards.items()},
            reference,
            "longitudinal",
            f"{number_of_gev(entry['low'])} to {number_of_gev(entry['high'])} GeV",
            "",
            small=True,
        )
        for number, entry in enumerate(first.get("energy_profiles") or [])
        if all(len(card["energy_profiles"]) > number for card in cards.values())
    ]
    distributions = [
        _histogram_plot(_of(cards, "histograms", name), reference, name, observable_title(name))
        for name in first["histograms"]
        if name != "cell_energy" and not name.startswith("layer_energy")
    ]
    layers = (first.get("layer_histograms") or {}).get("layer_energy") or []
    layer_plots = [
        _histogram_plot(
            {label: card["layer_histograms"]["layer_energy"][layer] for label, card in cards.items()},
            reference,
            "layer_energy",
            f"Layer {layer + 1} of {len(layers)}",
        )
        for layer in np.unique(np.linspace(0, len(layers) - 1, 6).round().astype(int)).tolist()
        if layers
    ]
    energy_text = "In intervals of incident energy; lines are statistical errors of each sample, grey is the range of ±3 %."
    shape_text = "Grey band: statistical uncertainty of the reference. Triangles on the rim: points outside the panel."
    sections = [
        Section("Energy", energy_text, tuple(energy)),
        Section("Shape", shape_text, tuple(shape)),
        Section("Longitudinal profile by incident energy", "", tuple(binned) if len(binned) > 1 else (), "three"),
        Section(
            "Average showers",
            "Projections along the third axis; one logarithmic colour scale per row.",
            tuple(_images(cards, reference)),
            "one",
        ),
        Section("Distributions", "Each normalised to one; errors are statistical.", tuple(distributions), "three"),
        Section("Layer energies", "Energy in single layers, first to last.", tuple(layer_plots), "three"),
    ]
    return [section for section in sections if section.plots]


def number_of_gev(energy_mev: float) -> str:
    """Two digits are enough to name an interval: 3162.3 as `3.2`, 99800.0 as `100`."""
    gev = energy_mev / 1000
    return f"{gev:.2g}" if gev < 99.5 else f"{gev:.0f}"


def _images(cards: Cards, reference: str) -> list[Plot]:
    images = next(iter(cards.values())).get("images") or {}
    known = {"zx": ("Side view", "layer", "x [cells]"), "xy": ("Front view", "y [cells]", "x [cells]")}
    return [
        Plot(title, "", plots.shower_images(name, cards, reference, x_label=x_label, y_label=y_label, title=title))
        for name, (title, x_label, y_label) in known.items()
        if name in images
    ]


@dataclass(frozen=True)
class Verdict:
    """A word and whether it is good news."""

    word: str
    good: bool


@dataclass(frozen=True)
class ScoreCells:
    """The cells of one candidate in a row of the table of scores."""

    verdict: Verdict
    cells: tuple[str, ...]


@dataclass(frozen=True)
class ScoreRow:
    """One observable, all candidates."""

    title: str
    candidates: tuple[ScoreCells, ...]
    floors: tuple[str, ...]


def _scores(cards: Cards) -> dict[str, Any]:
    rows = []
    for name, entry in next(iter(cards.values()))["observables"].items():
        candidates = []
        for card in cards.values():
            own = card["observables"].get(name, {})
            word = str(own.get("verdict", "not measured"))
            cells = (with_error(own.get("separation_power")), with_error(_distance(own)))
            candidates.append(ScoreCells(Verdict(_SHORT.get(word, word), word == INDISTINGUISHABLE), cells))
        floors = tuple(number((score or {}).get("floor")) for score in (entry.get("separation_power"), _distance(entry)))
        rows.append(ScoreRow(observable_title(name), tuple(candidates), floors))
    return {"text": _SCORES_TEXT, "distances": [{"title": "separation"}, {"title": "distance"}], "rows": rows}


def _distance(entry: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The Wasserstein distance, or the deviation of what is not a distribution."""
    return entry.get("wasserstein") or entry.get("deviation")


def _tuning(tuning: Mapping[str, Any], trials: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    criterion = tuning.get("criterion") or {}
    plan, ran = tuning["plan"], tuning.get("ran") or {}
    layers = [{"layer": layer, "planned": str(planned), "ran": str(ran.get(layer, "unknown"))} for layer, planned in plan.items()]
    name = str(criterion.get("name", "criterion"))
    plot = None
    if trials:
        caption = "Each point is a plan, numbered by trial, with its confidence interval; lower and further right is better."
        plot = Plot(
            "Tuning history", caption, plots.tuning_history(trials, criterion.get("tolerance"), f"loss by the criterion: {name}")
        )
    text = (
        "Which number format each layer computes in. The plan was chosen by comparing candidates with FP32 on the same latents "
        "and incident energies; “ran as” is what the runtime reports about the compiled model."
    )
    return {"text": text, "plot": plot, "layers": layers}


def _speed(bench: Mapping[str, Any]) -> dict[str, Any]:
    runs = bench["runs"]
    rows = tuple(
        (
            str(run["precision"]),
            str(run["streams"]),
            str(run["batch"]),
            number(run["events_per_second"]),
            number(run.get("spread")),
            number(run.get("milliseconds_batch_1")),
        )
        for run in runs
    )
    header = ("precision", "streams", "batch", "showers/s", "spread", "ms, batch 1")
    simulator = bench.get("simulator")
    cost = simulator.get("seconds_per_event") if isinstance(simulator, Mapping) else None
    words = machine_words(bench.get("machine"))
    text = f"Measured in interleaved windows of one run, so that other load cancels in the ratios. Machine: {words}."
    plot = Plot(
        "Throughput",
        "Median and spread of the windows of one run.",
        plots.throughput(runs, 1 / cost if isinstance(cost, float) and cost > 0 else None),
    )
    return {"text": text, "plot": plot, "table": Table(header, rows)}


def machine_words(machine: object) -> str:
    """The processor, its cores and instructions, in a few words."""
    if not isinstance(machine, Mapping):
        return str(machine)
    instructions = machine.get("instructions")
    shown = " ".join(map(str, instructions)) if isinstance(instructions, list | tuple) else ""
    parts = (machine.get("processor"), f"{machine.get('cores')} cores", shown, f"OpenVINO {machine.get('openvino')}")
    return ", ".join(str(part) for part in parts if part)
