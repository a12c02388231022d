"""What the report calls the observables and distances: titles and axis labels for readers, not for programs."""

from __future__ import annotations

OBSERVABLES: dict[str, tuple[str, str]] = {
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
    "shower_maximum": ("Shower maximum", "layer of the largest energy"),
    "lateral_mean": ("Mean radius", "mean distance from the axis"),
    "lateral_width": ("Lateral width", "rms distance from the axis"),
    "radius_90": ("90 % containment", "radius of 90 % containment"),
    "front_fraction": ("Front half", "energy share of the front half"),
    "azimuth": ("Azimuthal flatness", "energy share of a sector"),
    "layer_energy": ("Layer energies", "energy in the layer"),
    "layer_fraction": ("Layer fractions", "energy share of the layer"),
    "layer_sparsity": ("Layer sparsity", "share of silent cells in the layer"),
}
FORMAT_COLORS = {"int8": "#009E73", "bf16": "#56B4E9", "fp16": "#CC79A7", "fp32": "#8A9099"}


def observable_title(name: str) -> str:
    """`layer_energy_5` becomes `Layer energy 5`."""
    return OBSERVABLES[name][0] if name in OBSERVABLES else name.replace("_", " ").capitalize()


def observable_axis(name: str, unit: str | None) -> str:
    """The axis label with its unit."""
    label = OBSERVABLES[name][1] if name in OBSERVABLES else name.replace("_", " ")
    return f"{label} [{unit}]" if unit and unit not in ("1", "cells", "layer") else label
