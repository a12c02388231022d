"""What the report calls observables, classifiers and energies: words for readers, not for programs."""

from __future__ import annotations

OBSERVABLES: dict[str, tuple[str, str]] = {
    "linearity": ("Linearity", "mean response"),
    "resolution": ("Resolution", "standard deviation / mean"),
    "longitudinal_profile": ("Longitudinal profile", "mean energy per layer"),
    "lateral_profile": ("Lateral profile", "mean energy per ring"),
    "correlation": ("Correlations", "Pearson coefficients"),
    "response": ("Response", "visible / incident energy"),
    "visible_energy": ("Visible energy", "visible energy"),
    "occupancy": ("Occupancy", "cells above threshold"),
    "cell_energy": ("Cell-energy spectrum", "cell energy"),
    "centre_x": ("Centre in x", "centre of energy in x"),
    "centre_y": ("Centre in y", "centre of energy in y"),
    "centre_z": ("Centre in depth", "centre of energy in z"),
    "width_x": ("Width in x", "width in x"),
    "width_y": ("Width in y", "width in y"),
    "width_z": ("Length", "width in z"),
    "skewness_z": ("Skewness in depth", "skewness in z"),
    "kurtosis_z": ("Kurtosis in depth", "kurtosis in z"),
    "shower_maximum": ("Shower maximum", "layer of the largest energy"),
    "lateral_mean": ("Mean radius", "mean distance from the axis"),
    "lateral_width": ("Lateral width", "rms distance from the axis"),
    "lateral_spread": ("Lateral spread", "standard deviation of r"),
    "radius_90": ("90 % containment", "radius of 90 % containment"),
    "front_fraction": ("Front half", "energy share of the front half"),
    "front_back_ratio": ("Front over back", "energy of front half / back half"),
    "azimuth_spread": ("Azimuthal spread", "spread of sectors / mean"),
    "azimuth": ("Azimuthal flatness", "energy share of a sector"),
    "duplicates": ("Repeated showers", "share of showers that repeat another"),
    "layer_energy": ("Layer energies", "energy in the layer"),
    "layer_fraction": ("Layer fractions", "energy share of the layer"),
    "layer_sparsity": ("Layer sparsity", "share of silent cells in the layer"),
    "layer_centre_x": ("Layer centres in x", "centre of the layer in x"),
    "layer_centre_y": ("Layer centres in y", "centre of the layer in y"),
    "layer_centre_r": ("Layer radii", "mean radius in the layer"),
    "layer_width_r": ("Layer radial widths", "radial width of the layer"),
    "layer_width_x": ("Layer widths in x", "width of the layer in x"),
    "layer_width_y": ("Layer widths in y", "width of the layer in y"),
}
GROUPS: dict[str, tuple[str, ...]] = {
    "Energy": ("response", "visible_energy"),
    "Depth": (
        "centre_z",
        "width_z",
        "shower_maximum",
        "front_fraction",
        "front_back_ratio",
        "skewness_z",
        "kurtosis_z",
        "layer_energy",
        "layer_fraction",
    ),
    "Breadth": (
        *("lateral_mean", "lateral_width", "lateral_spread", "radius_90", "width_x", "width_y", "centre_x", "centre_y"),
        *("azimuth_spread", "azimuth", "layer_centre_x", "layer_centre_y", "layer_centre_r"),
        *("layer_width_x", "layer_width_y", "layer_width_r"),
    ),
    "Cells": ("occupancy", "layer_sparsity"),
}
"""Which observable stands under which heading; all others stand under the last one."""

FORMAT_COLORS = {"int8": "#009E73", "bf16": "#56B4E9", "fp16": "#CC79A7", "fp32": "#C3C7CD", "w8": "#0072B2", "w4": "#D55E00"}
OTHER_FORMAT = "#E69F00"

FAMILIES = {
    "z": "longitudinal profile",
    "x": "profile in x",
    "y": "profile in y",
    "rings": "lateral profile",
    "moments": "profile moments",
    "width": "lateral width",
    "spectrum": "cell spectrum",
}
"""Families of observables of a tuning's criterion; the others are called what they are."""

_CLASSIFIERS = {
    "high": "network, features",
    "trees": "trees, features",
    "low": "network, cells",
    "cnn": "convolutional, cells",
    "dnn-high": "CaloChallenge network",
}


def observable_title(name: str) -> str:
    """`layer_energy_5` becomes `Layer energy 5`."""
    return OBSERVABLES[name][0] if name in OBSERVABLES else name.replace("_", " ").capitalize()


def observable_axis(name: str, unit: str | None) -> str:
    """The axis label with its unit."""
    label = OBSERVABLES[name][1] if name in OBSERVABLES else name.replace("_", " ")
    return f"{label} [{unit}]" if unit and unit not in ("1", "cells", "layer") else label


def classifier_title(method: str) -> str:
    """What a classifier is and looks at."""
    return _CLASSIFIERS.get(method, method)


def gev(energy_mev: float | None) -> str:
    """Two digits are enough to name an interval: 3162.3 as `3.2`, 99800.0 as `100`."""
    if energy_mev is None:
        return "–"
    value = energy_mev / 1000
    return f"{value:.2g}" if value < 99.5 else f"{value:.0f}"
