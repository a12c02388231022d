"""What every observable is: unit, definition, source.

E is the energy of a cell above threshold, z its depth from the front face, x, y and r = sqrt(x^2 + y^2) its place in the
transverse plane, from the axis of the incident particle; <q> = sum(q E) / sum(E). Cells count at their middles.
"""

from __future__ import annotations

from dataclasses import dataclass

CALOCHALLENGE = "CaloChallenge, arXiv:2410.21611"
GEANT4 = "Geant4, example Par04"
THREE_D_GAN = "3DGAN, arXiv:2103.10142"
PDG = "Particle Data Group, Review of Particle Physics, Passage of particles through matter"


@dataclass(frozen=True)
class Definition:
    """An observable's unit (empty for a pure number), what it is in words, and who defines it so."""

    unit: str
    words: str
    source: str


DEFINITIONS: dict[str, Definition] = {
    "response": Definition("", "visible energy over incident energy", CALOCHALLENGE),
    "visible_energy": Definition("MeV", "sum of E", CALOCHALLENGE),
    "occupancy": Definition("cells", "number of cells above threshold", GEANT4),
    "cell_energy": Definition("MeV", "E of every cell above threshold", CALOCHALLENGE),
    "centre_x": Definition("mm", "<x>", CALOCHALLENGE),
    "centre_y": Definition("mm", "<y>", CALOCHALLENGE),
    "centre_z": Definition("mm", "<z>, first longitudinal moment", GEANT4),
    "width_x": Definition("mm", "sqrt(<x^2> - <x>^2)", CALOCHALLENGE),
    "width_y": Definition("mm", "sqrt(<y^2> - <y>^2)", CALOCHALLENGE),
    "width_z": Definition("mm", "sqrt(<(z - <z>)^2>), second longitudinal moment", GEANT4),
    "skewness_z": Definition("", "<(z - <z>)^3> / width_z^3", "third standardised moment"),
    "kurtosis_z": Definition("", "<(z - <z>)^4> / width_z^4, 3 for a Gaussian", "fourth standardised moment"),
    "shower_maximum": Definition("layer", "layer with the largest energy, the first one of several", PDG),
    "lateral_mean": Definition("mm", "<r>, first radial moment", GEANT4),
    "lateral_width": Definition("mm", "sqrt(<r^2>)", GEANT4),
    "lateral_spread": Definition("mm", "sqrt(<r^2> - <r>^2), second radial moment", GEANT4),
    "radius_90": Definition("mm", "radius around the axis that holds 90 % of the visible energy", PDG),
    "front_fraction": Definition("", "share of the energy in the first half of the layers", THREE_D_GAN),
    "front_back_ratio": Definition(
        "", "energy of the first half of the layers over that of the second, which counts as one threshold at least", THREE_D_GAN
    ),
    "azimuth": Definition("", "share of the energy in each sector, flat for an unpolarised beam along the axis", "symmetry"),
    "azimuth_spread": Definition("", "standard deviation over mean of the sectors' energies, 0 when flat", "symmetry"),
    "layer_energy": Definition("MeV", "sum of E per layer", CALOCHALLENGE),
    "layer_fraction": Definition("", "layer energy over visible energy", "CaloFlow, arXiv:2106.05285"),
    "layer_sparsity": Definition("", "share of a layer's cells that are not above threshold", CALOCHALLENGE),
    "layer_centre_x": Definition("mm", "<x> of each layer", CALOCHALLENGE),
    "layer_centre_y": Definition("mm", "<y> of each layer", CALOCHALLENGE),
    "layer_centre_r": Definition("mm", "<r> of each layer", CALOCHALLENGE),
    "layer_width_x": Definition("mm", "sqrt(<x^2> - <x>^2) of each layer", CALOCHALLENGE),
    "layer_width_y": Definition("mm", "sqrt(<y^2> - <y>^2) of each layer", CALOCHALLENGE),
    "layer_width_r": Definition("mm", "sqrt(<r^2> - <r>^2) of each layer", CALOCHALLENGE),
}
"""The observables that `observables` returns, and the spectrum of cells."""

UNITS: dict[str, str] = {name: found.unit for name, found in DEFINITIONS.items()}
"""Units of the observables; empty for pure numbers."""
