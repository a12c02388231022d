"""The result of a comparison: every number, and every array that a report plots."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

INDISTINGUISHABLE: Final = "indistinguishable"
DIFFERS: Final = "differs"
NOT_ENOUGH: Final = "not enough events"
Verdict = Literal["indistinguishable", "differs", "not enough events"]
"""No difference found, and one of the tolerance would have been; a difference found; neither."""


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
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Score(_Part):
    """A distance with its uncertainty and its floor."""

    value: Number
    """The distance of the candidate from the reference."""
    error: Number
    """Standard deviation over bootstrap replicas of both sets."""
    floor: Number
    """The same distance between two samples of the Monte Carlo of these sizes (from halves of the reference)."""


class CernBin(_Part):
    """The CERN figure in one bin of incident energy."""

    low: Number
    """MeV; null for the bin of all energies."""
    high: Number
    """MeV; null for the bin of all energies."""
    value: Number
    """Mean relative error of the moments."""
    error: Number
    """Its bootstrap error."""
    floor: Number
    """Its floor."""


class CernScore(Score):
    """The accuracy figure of CERN's 3DGAN studies: mean relative error of the moments of the energy profiles."""

    as_coded: Number
    """What the original code prints (the moments twice)."""
    profiles: Score
    """Mean relative error of the mean profiles, cell by cell."""
    bins: list[CernBin]
    """The figure in every bin of incident energy, "all" first."""


class LayerScore(_Part):
    """One column of an observable measured per layer (or sector)."""

    layer: int
    """Number of the layer, from zero at the front face; of the sector for `azimuth`."""
    separation_power: Score
    """Separation power of this layer."""
    wasserstein: Score
    """Wasserstein-1 distance of this layer, in its standard deviation."""
    kolmogorov_smirnov: Score | None = None
    """Kolmogorov-Smirnov distance of this layer."""
    fixed_energy: Score | None = None
    """Wasserstein-1 distance of this layer at fixed incident energy."""


class Difference(_Part):
    """How large a difference is, in terms of physics."""

    value: Number
    """Candidate minus reference, in `unit`."""
    error: Number
    """Its bootstrap error."""
    unit: str
    """"%" of the reference's own value, or the observable's unit."""
    words: str
    """The same for people, as in "mean 1.2 ± 0.3 % higher"."""


class PairScore(_Part):
    """Two quantities, and how they go together."""

    first: str
    """Name of one, as in `Correlations`."""
    second: str
    """Name of the other."""
    reference: Number
    """Pearson coefficient in the reference, at fixed incident energy."""
    candidate: Number
    """The candidate's."""
    error: Number
    """Bootstrap error of their difference."""
    words: str
    """The same for people, as in "layer 3 and layer 4: 0.81 instead of 0.95"."""


class BinScore(_Part):
    """One observable in one bin of incident energy or of an angle of incidence."""

    low: Number
    """MeV; of an angle rad."""
    high: Number
    """MeV; of an angle rad."""
    events: int
    """Events of the smaller of the two sets in this bin."""
    p_value: Number
    """Adjusted for all observables and bins; null with too few events."""
    verdict: Verdict
    """Verdict in this bin."""
    wasserstein: Number = None
    """Wasserstein-1 distance in this bin, in the reference's standard deviation there, less what chance alone gives."""
    kolmogorov_smirnov: Number = None
    """Kolmogorov-Smirnov distance in this bin, less what chance alone gives."""
    held_out: bool = False
    """Whether training left this bin out."""


class AngleBins(_Part):
    """One observable in bins of an angle of incidence."""

    bins: list[BinScore]
    """The observable in every bin."""
    worst_bin: int
    """Place in `bins` of the most significant difference."""


class ObservableScore(_Part):
    """How one observable compares. Only the distances that apply are there."""

    verdict: Verdict
    """Whether it differs; when not, whether there were enough events to see a difference of the tolerance."""
    p_value: Number
    """Chance that any observable of a perfect candidate looks as different as this one (permutations, Westfall and Young)."""
    unit: str = ""
    """Unit of the observable, empty for pure numbers."""
    separation_power: Score | None = None
    """1/2 sum (h1 - h2)^2 / (h1 + h2) of histograms normalised to one; per layer: the mean over the layers."""
    wasserstein: Score | None = None
    """Wasserstein-1 distance, in `scale`; per layer: the mean over the layers."""
    kolmogorov_smirnov: Score | None = None
    """Largest difference of the two cumulative distributions; per layer: the mean over the layers."""
    fixed_energy: Score | None = None
    """Wasserstein-1 distance at fixed incident energy, in the standard deviation there; per layer: the mean over the layers."""
    deviation: Score | None = None
    """Mean relative deviation of linearity, resolution and profiles, mean absolute one of correlations."""
    shared: Score | None = None
    """Of linearity and resolution: relative change of mean response, or of its relative spread, that all energies share."""
    reference_mean: Number = None
    """Mean of the reference, in `unit`."""
    candidate_mean: Number = None
    """Mean of the candidate, in `unit`."""
    scale: Number = None
    """Standard deviation of the reference, in `unit` (of log10 E for `cell_energy`)."""
    worst_layer: int | None = None
    """The layer with the most significant difference."""
    layers: list[LayerScore] | None = None
    """Every layer by itself."""
    worst_pair: PairScore | None = None
    """For `correlation`: the pair with the most significant difference."""
    difference: Difference | None = None
    """The most telling difference, in words."""
    visible_at: int | None = None
    """Events on either side at which the estimated difference is found with 90 % power; null when none was found."""
    needed: int | None = None
    """Events on either side at which a difference of the tolerance is found with 90 % power."""
    bins: list[BinScore] | None = None
    """The observable in bins of incident energy."""
    worst_bin: int | None = None
    """Place in `bins` of the most significant difference."""
    angles: dict[str, AngleBins] | None = None
    """The observable in bins of every angle of incidence that varies, by its name ("incident_theta", "incident_phi"; rad)."""


class ClassifierSeed(_Part):
    """One training of a classifier."""

    auc: Number
    """Area under the ROC curve."""
    jsd: Number
    """Jensen-Shannon divergence in bits, from the calibrated cross entropy."""


class ClassifierScore(_Part):
    """How well a classifier tells the sets apart on events it has not seen; histogram of the scores of its first training."""

    auc: Number
    """Area under the ROC curve on events it has not seen, 0.5 when it cannot tell."""
    error: Number
    """Its standard error from the number of test events."""
    floor: Number
    """The same, trained and tested on two halves of the reference, hence on half as many events."""
    p_value: Number
    """Chance of an area as large without a difference."""
    verdict: Verdict
    """Whether the classifier tells the sets apart."""
    edges: Numbers
    """Edges of the histograms of scores."""
    reference: list[int]
    """Reference events per bin of score."""
    candidate: list[int]
    """Candidate events per bin of score."""
    jsd: Number = None
    """Jensen-Shannon divergence in bits: 0 when it cannot tell, 1 when it always can."""
    jsd_error: Number = None
    """Its standard error."""
    jsd_floor: Number = None
    """The same, trained and tested on two halves of the reference."""
    seeds: list[ClassifierSeed] = Field(default_factory=list)
    """Every training by itself."""
    spread: Number = None
    """Standard deviation of the area under the curve over trainings."""


class Manifold(_Part):
    """Whether the candidate covers the reference, and stays on it (Naeem et al., arXiv:2002.09797)."""

    precision: Score
    """Share of the candidate within the reference's neighbourhoods."""
    recall: Score
    """Share of the reference within the candidate's neighbourhoods."""
    density: Score
    """How many of the reference's neighbourhoods a candidate event lies in, over what is expected."""
    coverage: Score
    """Share of the reference's neighbourhoods that hold a candidate event."""
    events: int | None = None
    """Events on either side in each of the comparisons whose mean these are: all four depend on it."""


class Headline(_Part):
    """How many Monte Carlo events the surrogate's error is worth: with fewer, no observable shows it."""

    events: int
    """The smallest `visible_at` of all observables."""
    observable: str
    """The observable that shows it first."""
    low: int | None = None
    """16 % quantile of `events` over bootstrap replicas."""
    high: int | None = None
    """84 % quantile of `events` over bootstrap replicas; null when it is compatible with no difference."""
    words: str = ""
    """The same for people."""


class Interpolated(_Part):
    """A Wasserstein distance in a held-out bin and in those beside it, both beyond what chance gives."""

    held_out: Number
    """In the bin that training left out, in the reference's standard deviation there."""
    held_out_error: Number
    """Its bootstrap error."""
    beside: Number
    """Mean of the bins beside it."""
    beside_error: Number
    """Its bootstrap error."""


class Interpolation(_Part):
    """How the candidate fares at energies that training left out."""

    low: Number
    """MeV."""
    high: Number
    """MeV."""
    events: int
    """Events of the smaller of the two sets in this bin."""
    mean: Interpolated
    """Mean over all observables."""
    observables: dict[str, Interpolated]
    """Every observable measured per event."""
    worst: str
    """The observable that is most significantly worse than beside."""
    words: str
    """The same for people."""


class EnergyBin(_Part):
    """Candidate over reference in one bin of incident energy, and both by themselves."""

    low: Number
    """MeV."""
    high: Number
    """MeV."""
    ratio: Number
    """Candidate over reference."""
    error: Number
    """Bootstrap error of the ratio."""
    reference: Number
    """Mean response, or standard deviation over mean, of the reference."""
    reference_error: Number
    """Its bootstrap error."""
    candidate: Number
    """The candidate's."""
    candidate_error: Number
    """Its bootstrap error."""
    reference_events: int
    """Events of the reference in this bin."""
    candidate_events: int
    """Events of the candidate in this bin."""


class Histogram(_Part):
    """Counts of both sets in one set of bins."""

    edges: Numbers
    """Edges of the bins, in `unit`."""
    reference: list[int]
    """Events (for `cell_energy` cells) of the reference."""
    candidate: list[int]
    """Events (cells) of the candidate."""
    unit: str
    """Unit of the edges."""
    reference_outside: tuple[int, int] = (0, 0)
    """How many of the reference lie below and above (for `cell_energy` below: cells that are not above threshold)."""
    candidate_outside: tuple[int, int] = (0, 0)
    """How many of the candidate lie below and above."""


class Profile(_Part):
    """Mean profile with standard errors, the candidate's weighted to the reference's incident energies."""

    x: Numbers
    """Depth of the layer or radius of the ring, in `x_unit`."""
    reference: Numbers
    """Mean of the reference, in `unit`."""
    reference_error: Numbers
    """Its standard error."""
    candidate: Numbers
    """Mean of the candidate."""
    candidate_error: Numbers
    """Its standard error."""
    unit: str
    """Unit of the means."""
    x_unit: str
    """Unit of `x`."""


class ImagePair(_Part):
    """Mean energy per cell of a projection, rows and columns named by its two letters (column first)."""

    reference: Image
    """Mean of the reference."""
    candidate: Image
    """Mean of the candidate."""
    unit: str = "MeV"
    """Unit of the means."""


class Correlations(_Part):
    """Pearson matrices of the named quantities at fixed incident energy."""

    names: list[str]
    """The quantities."""
    reference: Image
    """Matrix of the reference."""
    candidate: Image
    """Matrix of the candidate."""


class BinProfiles(_Part):
    """Profiles in one bin of incident energy."""

    low: Number
    """MeV."""
    high: Number
    """MeV."""
    longitudinal: Profile
    """Mean energy per layer."""
    lateral: Profile
    """Mean energy per ring around the axis."""


class Sample(_Part):
    """What was compared."""

    path: str | None
    """File or directory; null for events in memory."""
    events: int
    """Events."""
    low_mev: Number
    """Smallest incident energy."""
    high_mev: Number
    """Largest incident energy."""
    empty: int
    """Events without any cell above the threshold."""
    duplicates: int
    """Events that repeat another event of the set."""


class ResolutionFit(_Part):
    """sigma / mean = a / sqrt(E) (+) b / E (+) c, E in GeV; nulls with fewer than four bins."""

    stochastic: Number
    """a."""
    noise: Number
    """b."""
    constant: Number
    """c."""


class Scorecard(_Part):
    """Everything `validate` finds; `to_dict` is what `minicarlo validate --json` prints."""

    verdict: Verdict
    """"differs" when any observable or classifier does; "not enough events" when any has too few."""
    observables: dict[str, ObservableScore]
    """Every observable by name, as in docs/fidelity.md."""
    classifier: dict[str, ClassifierScore | None]
    """Classifiers by method; null when not trained."""
    fpd: Score | None
    """Frechet physics distance of the high-level features; null with too few events."""
    kpd: Score | None
    """Kernel physics distance of the high-level features; null with too few events."""
    cern_error: CernScore | None
    """The CERN figure; null with too few events."""
    response: list[EnergyBin]
    """Mean response per bin of incident energy."""
    resolution: list[EnergyBin]
    """Standard deviation over mean of the response per bin of incident energy."""
    resolution_fit: dict[str, ResolutionFit]
    """The resolution's terms for "reference" and "candidate"."""
    profiles: dict[str, Profile]
    """"longitudinal" and "lateral" mean profile."""
    histograms: dict[str, Histogram]
    """One per observable, and of five layers."""
    layer_histograms: dict[str, list[Histogram]]
    """One per layer of every observable measured per layer."""
    energy_profiles: list[BinProfiles]
    """Mean profiles per bin of incident energy."""
    images: dict[str, ImagePair]
    """Mean shower, projected."""
    correlations: Correlations | None
    """Pearson matrices of both sets."""
    detector: str
    """Name of the detector."""
    threshold_mev: Number
    """Cells at or below do not count, MeV."""
    reference: Sample
    """The Monte Carlo."""
    candidate: Sample
    """What is judged."""
    headline: Headline | None = None
    """How many Monte Carlo events the error is worth; null when no difference was found."""
    interpolation: list[Interpolation] = Field(default_factory=list)
    """Bins of incident energy that training left out (`--held-out`)."""
    manifold: Manifold | None = None
    """Precision, recall, density, coverage."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Seed, replicas, permutations, energy bins (MeV), levels of the tests, tolerances."""
    warnings: list[str] = Field(default_factory=list)
    """What a reader should know, in sentences."""
    seconds: Number = None
    """What the comparison took."""

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
