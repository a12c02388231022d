"""A picture of a detector with one real shower in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from minicarlo.detectors import CLIC_ECAL, Detector, find_detector
from minicarlo.errors import InvalidConfig
from minicarlo.files import atomic_path, check_writable
from minicarlo.sampling import AngleDistribution, EnergyDistribution, event_seed
from minicarlo.simulators.base import FloatArray, Primaries, Setup, Track
from minicarlo.simulators.incidence import incidence
from minicarlo.simulators.registry import get_simulator
from minicarlo.simulators.tasks import Task
from minicarlo.simulators.workers import Workers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SENSITIVE, _THIN, _OTHERS = "#79b8dc", "#f6f6f6", ("#cfcfcf", "#e3d8c0", "#d6cde0", "#d3e0cd")
_TRACKS = {"gamma": ("#404040", 0.2, 0.35), "e-": ("#d55e00", 0.7, 1.0), "e+": ("#8c2be2", 0.7, 1.0)}  # colour, width, opacity
_GASES = ("G4_AIR", "G4_Galactic")


def draw(
    energy: str | EnergyDistribution,
    *,
    output: Path | str,
    detector: str | Path | Detector = CLIC_ECAL,
    particle: str = "e-",
    theta: str | AngleDistribution = "0deg",
    phi: str | AngleDistribution = "0deg",
    seed: int = 1,
    cut_mm: float = 0.7,
    physics: str = "option0",
    simulator: str = "geant4",
) -> Path:
    """Draw the detector, seen from the side and from the front, with event 0 of `seed` as a PNG. Arguments as for `simulate`.

    Raises what `simulate` does.
    """
    output = Path(output)
    if output.suffix.lower() != ".png":
        raise InvalidConfig(f"A detector is drawn as PNG: give a name that ends in .png instead of {output}.")
    distribution = energy if isinstance(energy, EnergyDistribution) else EnergyDistribution.parse(energy)
    angles = incidence(theta, phi)
    engine = get_simulator(simulator)
    setup = Setup(find_detector(detector), (particle,), physics, cut_mm, tracks=True)
    environment = engine.prepare(setup)
    check_writable(output)
    primaries = Primaries.single(
        particle,
        distribution.sample(seed, 0, 1),
        np.array([event_seed(seed, 0)], np.int64),
        angles[0].sample("theta", seed, 0, 1),
        angles[1].sample("phi", seed, 0, 1),
    )
    with Workers(engine, setup, environment, 1) as workers:
        ((_, batch),) = workers.run([Task(0, primaries)])
    figure = detector_figure(setup.detector, batch.samples[0], batch.tracks)
    figure.suptitle(f"{setup.detector.name}: {particle}, {primaries.particles.energies[0] / 1e3:.3g} GeV", x=0.02, ha="left")
    with atomic_path(output) as temporary:
        figure.savefig(temporary, format="png", dpi=200)
    return output


def detector_figure(detector: Detector, sample: FloatArray, tracks: Sequence[Track] = ()) -> Figure:
    """Side view with tracks, energy by depth below it, front view. `sample` has the detector's shape, MeV."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.6), layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(1.55, 1), height_ratios=(2.2, 1))
    side, depth, front = (figure.add_subplot(grid[where]) for where in ((0, 0), (1, 0), (slice(None), 1)))
    depth.sharex(side)
    _draw_side(side, detector, tracks)
    pitch = detector.cell_size[0]
    middles = (np.arange(detector.layers) + 0.5) * pitch
    depth.bar(middles, sample.sum(axis=(1, 2)), width=0.9 * pitch, color="#0072b2")
    depth.set(xlabel="depth z / mm", ylabel="energy / MeV")
    _draw_front(figure, front, detector, sample.sum(axis=0))
    return figure


def _draw_side(axes: Axes, detector: Detector, tracks: Sequence[Track]) -> None:
    from matplotlib.collections import LineCollection

    half = _half_window(detector) * 1.25
    starts = np.cumsum([0.0, *(plate.mm for plate in detector.materials)])
    layers = np.arange(detector.layers * detector.layers_per_cell) * starts[-1]
    colours = _colours(detector)
    labelled: set[str] = set()
    for plate, start in zip(detector.materials, starts, strict=False):
        name = f"{plate.name.removeprefix('G4_')}{' (read out)' if plate.sensitive else ''}"
        label = "_" * (name in labelled) + name
        labelled.add(name)
        bands = [(begin, plate.mm) for begin in layers + start]
        axes.broken_barh(bands, (-half, 2 * half), facecolor=colours[plate.name, plate.sensitive], linewidth=0, label=label)
    for order, (particle, (colour, width, opacity)) in enumerate(_TRACKS.items(), start=2):
        ways = [track.points[:, [2, 0]] for track in tracks if track.particle == particle]
        if ways:
            lines = LineCollection(ways, colors=colour, linewidths=width, alpha=opacity, zorder=order, label=particle)
            axes.add_collection(lines)
    axes.set(xlim=(-0.04 * layers[-1], layers[-1] + 1.04 * starts[-1]), ylim=(-half, half), ylabel="x / mm")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=6, fontsize="small", frameon=False)


def _draw_front(figure: Figure, axes: Axes, detector: Detector, plane: NDArray[np.float32]) -> None:
    from matplotlib.colors import LogNorm

    x, y = _corners(detector)
    peak = float(plane.max()) or 1.0
    colours: Any = axes.pcolormesh(
        x, y, np.where(plane > 0, plane, np.nan), norm=LogNorm(peak / 1e4, peak), cmap="viridis", edgecolor="0.85", linewidth=0.2
    )
    half = _half_window(detector)
    axes.set(xlabel="x / mm", ylabel="y / mm", aspect="equal", xlim=(-half, half), ylim=(-half, half))
    figure.colorbar(colours, ax=axes, label="energy, summed over depth / MeV", shrink=0.7)


def _corners(detector: Detector) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """x and y of the (n1 + 1, n2 + 1) corners of the cells of a layer, mm."""
    (_, n1, n2), (_, first, second) = detector.shape, detector.cell_size
    if detector.grid == "cylindrical":
        phi, r = np.meshgrid(np.arange(n1 + 1) * first, np.arange(n2 + 1) * second, indexing="ij")
        return r * np.cos(phi), r * np.sin(phi)
    x, y = np.meshgrid((np.arange(n1 + 1) - n1 / 2) * first, (np.arange(n2 + 1) - n2 / 2) * second, indexing="ij")
    return x, y


def _half_window(detector: Detector) -> float:
    x, y = _corners(detector)
    return float(max(abs(x).max(), abs(y).max()))


def _colours(detector: Detector) -> dict[tuple[str, bool], str]:
    """A colour for each material of a layer: one for all that is read out, hardly any for gases."""
    others = iter(_OTHERS * len(detector.materials))
    colours: dict[tuple[str, bool], str] = {}
    for plate in detector.materials:
        if (plate.name, plate.sensitive) not in colours:
            colour = _SENSITIVE if plate.sensitive else _THIN if plate.name in _GASES else next(others)
            colours[plate.name, plate.sensitive] = colour
    return colours
