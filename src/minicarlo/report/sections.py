"""What the report shows below its first screen: sections of plots and tables, made from the results of the other verbs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from minicarlo.fidelity.scorecard import ObservableScore, Profile, Scorecard
from minicarlo.report import classifiers, distributions, energy, images, speed, tuning
from minicarlo.report.figure import Picture, number
from minicarlo.report.inputs import History
from minicarlo.report.names import GROUPS, classifier_title, gev, observable_axis, observable_title
from minicarlo.report.scores import (
    Cell,
    Grid,
    distance,
    observable_scores,
    plus_minus,
    verdict_cell,
    whole_shower_scores,
    with_error,
)

_BANDS = (
    "Dark grey: statistical uncertainty of the reference. Light grey: the floor, where 95 % of the points of a perfect candidate "
    "of this size would lie. Triangles on the rim: points outside the panel."
)
_SCORES = (
    "Difference: the most telling one, with its bootstrap error. p: the chance that any observable of a perfect candidate looks "
    "as different as this one. Separation: half the sum of (h₁ − h₂)² / (h₁ + h₂) over the bins of unit-normalised histograms; "
    "0 is identical, 1 disjoint. Distance: Wasserstein-1 in standard deviations of the reference; for profiles, linearity, "
    "resolution and correlations the mean deviation. Floor: the same between two halves of the reference, brought to these "
    "sample sizes. KS: Kolmogorov-Smirnov. Shows with: events on either side at which the difference is found with 90 % power. "
    "Asks for: events at which a difference of the tolerance would be found."
)
_CONDITIONAL = (
    "p-values of every observable in bins of incident energy, corrected for the number of tests. ✗: differs; n: not enough "
    "events to say. The worst bin of each observable is framed."
)
_CLASSIFIERS = (
    "A classifier is trained to tell the candidate from the reference and tested on events it has not seen. An area under the "
    "ROC curve of 0.5 means that it cannot; the floor is the same between two halves of the reference. Small dots: every run."
)
_TUNING = (
    "Which number format each layer computes in. Plans were compared with FP32 on the same latents and incident energies; "
    "“ran as” is what the runtime reports about the compiled model."
)
_IMAGES = (
    "Mean of all showers, projected along the third axis. One logarithmic scale of colours per row; ratios from half to double."
)
_IMAGE_TITLES = {"zx": "Side view", "zy": "View from above", "xy": "Front view"}


@dataclass(frozen=True)
class Note:
    """A line of a caption: a verdict on one candidate."""

    candidate: int
    verdict: Cell
    text: str


@dataclass(frozen=True)
class Plot:
    """A picture with its caption."""

    title: str
    picture: Picture
    caption: str = ""
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True)
class Group:
    """Plots in so many columns below a heading."""

    title: str
    plots: tuple[Plot, ...]
    columns: str = "three"


@dataclass(frozen=True)
class Section:
    """A heading that the contents lists, with plots, and tables below them."""

    title: str
    text: str = ""
    groups: tuple[Group, ...] = ()
    tables: tuple[tuple[str, Grid], ...] = ()

    @property
    def slug(self) -> str:
        """For addresses within the page and names of files."""
        return self.title.lower().replace(" ", "-")


def sections(
    cards: Mapping[str, Scorecard],
    reference: str,
    tuned: Mapping[str, Any] | None,
    history: History,
    bench: Mapping[str, Any] | None,
) -> tuple[Section, ...]:
    """All sections that there is something to show in."""
    makers = _Makers(cards, reference)
    found = [
        Section("Scores", _SCORES, tables=(("", observable_scores(cards)),)),
        Section("By energy", _CONDITIONAL, makers.conditional()),
        *makers.observables(),
        makers.average_showers(),
        makers.correlations(),
        makers.classifiers(),
        _tuning(tuned, history) if tuned else None,
        _speed(bench) if bench and bench.get("runs") else None,
    ]
    return tuple(section for section in found if section and (section.groups or section.tables))


class _Makers:
    """The sections that compare candidates with the reference."""

    def __init__(self, cards: Mapping[str, Scorecard], reference: str) -> None:
        self.cards, self.reference = cards, reference
        self.first, self.last = next(iter(cards.values())), list(cards.values())[-1]

    def conditional(self) -> tuple[Group, ...]:
        plots = tuple(
            Plot(label, energy.conditional(card.observables, title=f"p-values by energy of {label}"))
            for label, card in self.cards.items()
            if any(score.bins for score in card.observables.values())
        )
        return (Group("", plots, "one"),) if plots else ()

    def observables(self) -> list[Section]:
        special = {
            "Energy": (Group("", self._against_energy(), ""),),
            "Depth": (
                Group("", (*self._profiles("longitudinal"), *self._by_layer("layer_energy", wide=True)), ""),
                Group("Longitudinal profile by incident energy", self._binned()),
            ),
            "Breadth": (Group("", (*self._profiles("lateral"), *self._by_layer("azimuth", wide=True)), ""),),
            "Cells": (
                Group("", (*self._distributions("cell_energy", wide=True), *self._by_layer("layer_sparsity", wide=True)), ""),
            ),
        }
        above = ("layer_energy", "azimuth", "layer_sparsity")
        named = {name for names in GROUPS.values() for name in names}
        found = []
        for title, names in GROUPS.items():
            others = [name for name in self.first.histograms if name not in named and not name.startswith(("layer_", "cell_"))]
            wanted = [*names, *(others if title == list(GROUPS)[-1] else ())]
            plots = tuple(plot for name in wanted for plot in self._distributions(name))
            layered = tuple(plot for name in wanted for plot in self._layers(name, name not in above))
            groups = (*special[title], Group("Distributions", plots), Group("Layer by layer", layered))
            found.append(Section(title, _BANDS, tuple(group for group in groups if group.plots)))
        return found

    def _notes(self, name: str, extra: Mapping[str, str] | None = None) -> tuple[Note, ...]:
        """A line per candidate: its verdict on the observable and the difference, or the distance with its floor."""
        return tuple(
            Note(index, verdict_cell(score.verdict), (extra or {}).get(label) or _difference(score))
            for index, (label, card) in enumerate(self.cards.items())
            if (score := card.observables.get(name)) is not None
        )

    def _against_energy(self) -> tuple[Plot, ...]:
        response = energy.against_energy(
            "response", self.cards, self.reference, title="Response", y_label="mean visible / incident energy", band=0.03
        )
        resolution = energy.against_energy(
            "resolution", self.cards, self.reference, title="Resolution", y_label="standard deviation / mean"
        )
        fits = {label: energy.fit_words(card.resolution_fit.get("candidate")) for label, card in self.cards.items()}
        words = energy.fit_words(self.first.resolution_fit.get("reference"))
        plots = [
            Plot("Response", response, "Light grey: ±3 %.", self._notes("linearity")),
            Plot(
                "Resolution", resolution, f"Lines: fits, {self.reference} {words}." * bool(words), self._notes("resolution", fits)
            ),
        ]
        if all(card.cern_error and len(card.cern_error.bins) > 1 for card in self.cards.values()):
            scores = {label: card.cern_error for label, card in self.cards.items() if card.cern_error}
            plots.append(Plot("CERN figure", energy.cern_figure(scores), "Mean relative error of the moments of the profiles."))
        return tuple(plots)

    def _profiles(self, name: str) -> tuple[Plot, ...]:
        found = {label: card.profiles[name] for label, card in self.cards.items() if name in card.profiles}
        if not found:
            return ()
        title = observable_title(f"{name}_profile")
        return (Plot(title, _profile(found, self.reference, name, title), "", self._notes(f"{name}_profile")),)

    def _binned(self) -> tuple[Plot, ...]:
        bins = self.first.energy_profiles
        if len(bins) < 2 or any(len(card.energy_profiles) != len(bins) for card in self.cards.values()):
            return ()
        return tuple(
            Plot(
                title := f"{gev(entry.low)} to {gev(entry.high)} GeV",
                _profile(
                    {label: card.energy_profiles[place].longitudinal for label, card in self.cards.items()},
                    self.reference,
                    "longitudinal",
                    f"Longitudinal profile, {title}",
                    small=True,
                ),
            )
            for place, entry in enumerate(bins)
        )

    def _distributions(self, name: str, *, wide: bool = False) -> Iterator[Plot]:
        found = {label: card.histograms[name] for label, card in self.cards.items() if name in card.histograms}
        if found:
            title = observable_title(name)
            label = observable_axis(name, next(iter(found.values())).unit)
            per = "fraction of cells" if name == "cell_energy" else "fraction of showers"
            drawn = distributions.histogram(found, self.reference, title=title, x_label=label, y_label=per, wide=wide)
            yield Plot(title, drawn, "", self._notes(name))

    def _by_layer(self, name: str, *, wide: bool = False) -> Iterator[Plot]:
        scores = {label: layers for label, card in self.cards.items() if (layers := _layer_scores(card, name))}
        if scores:
            title, x_label = observable_title(name), "sector" if name == "azimuth" else "layer"
            drawn = distributions.by_layer(scores, title=title, x_label=x_label, wide=wide)
            yield Plot(title, drawn, "", self._notes(name))

    def _layers(self, name: str, distances: bool) -> Iterator[Plot]:
        """What is measured per layer: its distance in every layer, and the distribution in the worst one."""
        title = observable_title(name)
        if distances:
            yield from self._by_layer(name)
        for layer in self._shown_layers(name):
            found = {
                label: card.layer_histograms[name][layer] for label, card in self.cards.items() if name in card.layer_histograms
            }
            where = "sector" if name == "azimuth" else "layer"
            words = f"{title}, {where} {layer}"
            label = observable_axis(name, next(iter(found.values())).unit)
            drawn = distributions.histogram(found, self.reference, title=words, x_label=label, y_label="fraction of showers")
            yield Plot(words, drawn, f"The {where} with the most significant difference." * (len(self._shown_layers(name)) == 1))

    def _shown_layers(self, name: str) -> list[int]:
        """The worst layer; of layer energies, a few more from front to back."""
        count = min((len(card.layer_histograms.get(name) or ()) for card in self.cards.values()), default=0)
        score = self.last.observables.get(name)
        worst = score.worst_layer if score is not None else None
        chosen = {worst} if worst is not None and worst < count else set()
        if name == "layer_energy" and count:
            chosen |= set(np.linspace(0, count - 1, 5).round().astype(int).tolist())
        return sorted(chosen)

    def average_showers(self) -> Section:
        plots = []
        for name in self.first.images:
            if all(name in card.images for card in self.cards.values()):
                title = _IMAGE_TITLES.get(name, f"Projection {name}")
                plots.append(Plot(title, images.average_showers(name, self.cards, self.reference, title=title)))
                ratio = f"{title}, ratio to {self.reference}"
                plots.append(Plot(ratio, images.shower_ratios(name, self.cards, self.reference, title=title)))
        return Section("Average showers", _IMAGES, (Group("", tuple(plots), "one"),) if plots else ())

    def correlations(self) -> Section:
        plots = tuple(
            Plot(
                label,
                images.correlation_matrices(card.correlations, label, self.reference),
                "",
                _only(self._notes("correlation"), index),
            )
            for index, (label, card) in enumerate(self.cards.items())
            if card.correlations
        )
        text = "Pearson coefficients of quantities of the shower and the energy fractions of its layers."
        return Section("Correlations", text, (Group("", plots, "one"),) if plots else ())

    def classifiers(self) -> Section:
        methods = list(dict.fromkeys(name for card in self.cards.values() for name in card.classifier))
        found = {
            name: {label: score for label, card in self.cards.items() if (score := card.classifier.get(name)) is not None}
            for name in methods
        }
        found = {name: scores for name, scores in found.items() if scores}
        groups: list[Group] = []
        if found:
            groups.append(Group("", (Plot("Areas under the ROC curve", classifiers.areas(found)),), ""))
        labels = list(self.cards)
        plots = tuple(
            Plot(
                f"{label}: {classifier_title(method)}",
                classifiers.score_distribution(method, label, score, self.reference, labels.index(label)),
                "",
                (Note(labels.index(label), verdict_cell(score.verdict), f"AUC {plus_minus(score.auc, score.error)}"),),
            )
            for method, scores in found.items()
            for label, score in scores.items()
        )
        groups += [Group("Scores of held-out events", plots)] if plots else []
        grid = whole_shower_scores(self.cards)
        tables = (("All features at once", grid),) if grid.rows else ()
        return Section("Classifiers", _CLASSIFIERS, tuple(groups), tables)


def _only(notes: tuple[Note, ...], candidate: int) -> tuple[Note, ...]:
    return tuple(note for note in notes if note.candidate == candidate)


def _difference(score: ObservableScore) -> str:
    if score.difference is not None:
        return score.difference.words
    apart = score.separation_power or distance(score)
    kind = "separation" if score.separation_power else "deviation"
    return "" if apart is None else f"{kind} {with_error(apart)}, floor {number(apart.floor)}"


def _layer_scores(card: Scorecard, name: str) -> list[Any] | None:
    score = card.observables.get(name)
    return score.layers if score is not None else None


def _profile(profiles: Mapping[str, Profile], reference: str, name: str, title: str, *, small: bool = False) -> Picture:
    per, x = ("layer", "depth z") if name == "longitudinal" else ("ring", "distance from the axis r")
    first = next(iter(profiles.values()))
    x_label, y_label = f"{x} [{first.x_unit}]", f"mean energy per {per} [{first.unit}]"
    return distributions.profile(profiles, reference, title=title, x_label=x_label, y_label=y_label, small=small)


def _tuning(tuned: Mapping[str, Any], history: History) -> Section:
    criterion = tuned.get("criterion") or {}
    tolerance = criterion.get("tolerance")
    name = f"loss ({criterion.get('name', 'criterion')})"
    plots = []
    if history.trials:
        caption = "A point per plan, with its confidence interval; lower and further right is better."
        plots.append(Plot("Tuning history", tuning.trials_picture(history.trials, tolerance, name), caption))
    if history.sensitivities:
        caption = "Loss with this one layer in a lower format; the dashed line is the tolerance for all."
        plots.append(Plot("One layer at a time", tuning.sensitivity_picture(history.sensitivities, tolerance, name), caption))
    groups = [Group("", tuple(plots), "")] if plots else []
    if any(trial.ran for trial in history.trials):
        caption = "What the runtime ran each layer in. ✓: accepted."
        groups.append(Group("", (Plot("Formats by layer and trial", tuning.plans_picture(history.trials), caption),), "one"))
    ran = tuned.get("ran") or {}
    rows = tuple(
        (Cell(str(layer), head=True), Cell(str(planned)), Cell(form, "" if form == str(planned) else "bad"))
        for layer, planned in tuned["plan"].items()
        for form in (str(ran.get(layer, "unknown")),)
    )
    return Section(
        "Numerical precision", _TUNING, tuple(groups), (("Precision plan", Grid(("layer", "planned", "ran as"), rows)),)
    )


def _speed(bench: Mapping[str, Any]) -> Section:
    runs = bench["runs"]
    simulator = bench.get("simulator")
    simulator = simulator if isinstance(simulator, Mapping) else {}
    cost = simulator.get("seconds_per_event")
    rate = 1 / cost if isinstance(cost, float) and cost > 0 else None
    name = str(simulator.get("name", "simulator")).split()
    plots = [
        Plot("Throughput", speed.throughput(runs, name[0] if name else "simulator", rate), "Median and spread of the windows.")
    ]
    swept = bench.get("sweep") or []
    for precision in dict.fromkeys(point["precision"] for point in swept):
        points = [point for point in swept if point["precision"] == precision]
        plots.append(Plot(f"Batch and streams, {speed.precision_title(precision)}", speed.sweep(points, precision)))
    header = ("precision", "streams", "batch", "showers/s", "spread", "ms, batch 1")
    numbers = ("events_per_second", "spread", "milliseconds_batch_1")
    rows = tuple(
        (
            Cell(speed.precision_title(run["precision"]), head=True),
            *(Cell(str(run[key])) for key in ("streams", "batch")),
            *(Cell(number(run.get(key))) for key in numbers),
        )
        for run in runs
    )
    words = machine_words(bench.get("machine"))
    text = f"Measured in interleaved windows of one run, so that other load cancels in the ratios. Machine: {words}."
    return Section("Speed", text, (Group("", tuple(plots), ""),), (("Measured runs", Grid(header, rows)),))


def machine_words(machine: object) -> str:
    """The processor, its cores and instructions, in a few words."""
    if not isinstance(machine, Mapping):
        return str(machine)
    instructions = machine.get("instructions")
    shown = " ".join(map(str, instructions)) if isinstance(instructions, list | tuple) else ""
    parts = (machine.get("processor"), f"{machine.get('cores')} cores", shown, f"OpenVINO {machine.get('openvino')}")
    return ", ".join(str(part) for part in parts if part)
