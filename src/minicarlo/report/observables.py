"""The sections that show every observable: its distribution or profile, its ratio, its verdict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from minicarlo.fidelity.scorecard import LayerScore, ObservableScore, Profile, Scorecard
from minicarlo.report import distributions, energy
from minicarlo.report.contents import Group, Note, Plot, Section
from minicarlo.report.figure import Picture, number
from minicarlo.report.names import GROUPS, gev, observable_axis, observable_title
from minicarlo.report.scores import distance, verdict_cell, with_error

_BANDS = (
    "Dark grey: statistical uncertainty of the reference. Light grey: the floor, where 95 % of the points of a perfect candidate "
    "of this size would lie. Triangles on the rim: points outside the panel."
)


def observable_sections(cards: Mapping[str, Scorecard], reference: str) -> list[Section]:
    """Energy, depth, breadth, cells."""
    return _Observables(cards, reference).sections()


def notes(cards: Mapping[str, Scorecard], name: str, extra: Mapping[str, str] | None = None) -> tuple[Note, ...]:
    """A line per candidate: its verdict on the observable and the difference, or the distance with its floor."""
    return tuple(
        Note(index, verdict_cell(score.verdict), (extra or {}).get(label) or _difference(score))
        for index, (label, card) in enumerate(cards.items())
        if (score := card.observables.get(name)) is not None
    )


def _difference(score: ObservableScore) -> str:
    if score.difference is not None:
        return score.difference.words
    apart = score.separation_power or distance(score)
    kind = "separation" if score.separation_power else "deviation"
    return "" if apart is None else f"{kind} {with_error(apart)}, floor {number(apart.floor)}"


class _Observables:
    def __init__(self, cards: Mapping[str, Scorecard], reference: str) -> None:
        self.cards, self.reference = cards, reference
        self.first, self.last = next(iter(cards.values())), list(cards.values())[-1]

    def sections(self) -> list[Section]:
        """One per group of observables."""
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
            Plot("Response", response, "Light grey: ±3 %.", notes(self.cards, "linearity")),
            Plot(
                "Resolution",
                resolution,
                f"Lines: fits, {self.reference} {words}." * bool(words),
                notes(self.cards, "resolution", fits),
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
        return (Plot(title, _profile(found, self.reference, name, title), "", notes(self.cards, f"{name}_profile")),)

    def _binned(self) -> tuple[Plot, ...]:
        bins = self.first.energy_profiles
        limits = [(entry.low, entry.high) for entry in bins]
        if len(bins) < 2 or any([(own.low, own.high) for own in card.energy_profiles] != limits for card in self.cards.values()):
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
            yield Plot(title, drawn, "", notes(self.cards, name))

    def _by_layer(self, name: str, *, wide: bool = False) -> Iterator[Plot]:
        scores = {label: layers for label, card in self.cards.items() if (layers := _layer_scores(card, name))}
        if scores:
            title, x_label = observable_title(name), "sector" if name == "azimuth" else "layer"
            drawn = distributions.by_layer(scores, title=title, x_label=x_label, wide=wide)
            yield Plot(title, drawn, "", notes(self.cards, name))

    def _layers(self, name: str, distances: bool) -> Iterator[Plot]:
        """What is measured per layer: its distance in every layer, and the distribution in the worst one."""
        title = observable_title(name)
        if distances:
            yield from self._by_layer(name)
        chosen, worst = self._shown_layers(name)
        for layer in chosen:
            found = {
                label: card.layer_histograms[name][layer] for label, card in self.cards.items() if name in card.layer_histograms
            }
            where = "sector" if name == "azimuth" else "layer"
            words = f"{title}, {where} {layer}"
            label = observable_axis(name, next(iter(found.values())).unit)
            drawn = distributions.histogram(found, self.reference, title=words, x_label=label, y_label="fraction of showers")
            yield Plot(words, drawn, f"The {where} with the most significant difference." * (layer == worst))

    def _shown_layers(self, name: str) -> tuple[list[int], int | None]:
        """The worst layer, of layer energies a few more from front to back; and which the worst is."""
        count = min((len(card.layer_histograms.get(name) or ()) for card in self.cards.values()), default=0)
        score = self.last.observables.get(name)
        worst = score.worst_layer if score is not None else None
        chosen = {worst} if worst is not None and worst < count else set()
        if name == "layer_energy" and count:
            chosen |= set(np.linspace(0, count - 1, 5).round().astype(int).tolist())
        return sorted(chosen), worst


def _layer_scores(card: Scorecard, name: str) -> list[LayerScore] | None:
    score = card.observables.get(name)
    return score.layers if score is not None else None


def _profile(profiles: Mapping[str, Profile], reference: str, name: str, title: str, *, small: bool = False) -> Picture:
    per, x = ("layer", "depth z") if name == "longitudinal" else ("ring", "distance from the axis r")
    first = next(iter(profiles.values()))
    x_label, y_label = f"{x} [{first.x_unit}]", f"mean energy per {per} [{first.unit}]"
    return distributions.profile(profiles, reference, title=title, x_label=x_label, y_label=y_label, small=small)
