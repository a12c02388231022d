"""The result of a comparison: every number, and every array that a report plots."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

INDISTINGUISHABLE = "indistinguishable"
DIFFERS = "differs"


def _number(value: object) -> float | None:
    """Seven digits are plenty; what is not finite is null."""
    if value is None:
        return None
    number = float(value)  # type: ignore[arg-type]
    return float(f"{number:.7g}") if math.isfinite(number) else None


Number = Annotated[float | None, BeforeValidator(_number)]
Numbers = list[Number]
Image = list[Numbers]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Score(_Part):
    """A distance, its bootstrap error, and its floor: the same between two halves of the reference, at these sample sizes."""

    value: Number
    error: Number
    floor: Number


class CernScore(Score):
    """The CERN figure; `as_coded` is what the original code prints (the moments twice), `profiles` the error of mean profiles."""

    as_coded: Number
    profiles: Score
    bins: list[dict[str, Number]]


class LayerScore(_Part):
    """One column of an observable measured per layer (or sector)."""

    layer: int
    separation_power: Score
    wasserstein: Score


class ObservableScore(_Part):
    """How one observable compares. Only the distances that apply are there; `worst_layer` has the most significant difference."""

    verdict: str
    p_value: Number
    unit: str = ""
    separation_power: Score | None = None
    wasserstein: Score | None = None
    deviation: Score | None = None
    reference_mean: Number = None
    candidate_mean: Number = None
    scale: Number = None
    worst_layer: int | None = None
    layers: list[LayerScore] | None = None


class ClassifierScore(_Part):
    """A classifier's area under the curve on held-out events; histogram of its scores."""

    auc: Number
    error: Number
    floor: Number
    p_value: Number
    verdict: str
    edges: Numbers
    reference: list[int]
    candidate: list[int]


class EnergyBin(_Part):
    """Candidate over reference in one bin of incident energy (MeV), and both by themselves."""

    low: Number
    high: Number
    ratio: Number
    error: Number
    reference: Number
    reference_error: Number
    candidate: Number
    candidate_error: Number
    reference_events: int
    candidate_events: int


class Histogram(_Part):
    """Counts between edges, and how many lie below and above."""

    edges: Numbers
    reference: list[int]
    candidate: list[int]
    unit: str
    reference_outside: tuple[int, int] = (0, 0)
    candidate_outside: tuple[int, int] = (0, 0)


class Profile(_Part):
    """Mean profile with standard errors, the candidate's weighted to the reference's incident energies."""

    x: Numbers
    reference: Numbers
    reference_error: Numbers
    candidate: Numbers
    candidate_error: Numbers
    unit: str
    x_unit: str


class ImagePair(_Part):
    """Mean energy per cell of a projection, rows and columns named by its two letters (column first)."""

    reference: Image
    candidate: Image
    unit: str = "MeV"


class Correlations(_Part):
    """Pearson matrices of the named quantities."""

    names: list[str]
    reference: Image
    candidate: Image


class BinProfiles(_Part):
    """Profiles in one bin of incident energy (MeV)."""

    low: Number
    high: Number
    longitudinal: Profile
    lateral: Profile


class Sample(_Part):
    """What was compared."""

    path: str | None
    events: int
    low_mev: Number
    high_mev: Number
    empty: int
    duplicates: int


class Scorecard(_Part):
    """Everything `validate` finds; `to_dict` is what `minicarlo validate --json` prints."""

    verdict: str
    observables: dict[str, ObservableScore]
    classifier: dict[str, ClassifierScore | None]
    fpd: Score | None
    kpd: Score | None
    cern_error: CernScore | None
    response: list[EnergyBin]
    resolution: list[EnergyBin]
    resolution_fit: dict[str, dict[str, Number]]
    profiles: dict[str, Profile]
    histograms: dict[str, Histogram]
    layer_histograms: dict[str, list[Histogram]]
    energy_profiles: list[BinProfiles]
    images: dict[str, ImagePair]
    correlations: Correlations | None
    detector: str
    threshold_mev: Number
    reference: Sample
    candidate: Sample
    settings: dict[str, Any] = Field(default_factory=dict)
    warnings: list[str] = Field(default_factory=list)
    seconds: Number = None

    @property
    def differing(self) -> list[str]:
        """Names of the observables, and classifiers, that differ; most significant first."""
        found = [(score.p_value, name) for name, score in self.observables.items() if score.verdict == DIFFERS]
        found += [
            (score.p_value, f"classifier {name}") for name, score in self.classifier.items() if score and score.verdict == DIFFERS
        ]
        return [name for _, name in sorted(found, key=lambda item: item[0] or 0)]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; distances that do not apply to an observable are left out."""
        found = self.model_dump(mode="json")
        found["observables"] = {
            name: {key: value for key, value in score.items() if value is not None}
            for name, score in found["observables"].items()
        }
        return found

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Scorecard:
        """The inverse of `to_dict`. Raises pydantic's ValidationError."""
        return cls.model_validate(values)
