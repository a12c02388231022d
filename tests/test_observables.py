"""Observables: definitions against loops over cells, symmetries, sub-samples, what a user can do wrong."""

from __future__ import annotations

import importlib
import math
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cylinder import in_cylinder
from minicarlo.detectors import CLIC_ECAL, PAR04_SIW, Detector, Material, get_detector, register_detector
from minicarlo.errors import InvalidConfig, InvalidEventSet
from minicarlo.events import EventSet, read_events, write_events
from minicarlo.fidelity import DEFINITIONS, Measured, high_level_features, measure, observables, validate
from minicarlo.fidelity.binning import edges_of
from minicarlo.fidelity.observables import layer_depths, ring_radii, shower_quantities
from minicarlo.surrogate import sample_path
from small_events import make_events

module = importlib.import_module("minicarlo.fidelity.observables")  # the package has a function of that name
DETECTORS = [CLIC_ECAL, PAR04_SIW]
ODD_ONES = [
    # no cell on the axis and none within half a pitch of it; oblong cells; one layer; sectors that 8 does not divide
    Detector("even", (4, 6, 6), "cartesian", (2.0, 5.0, 5.0), (Material("G4_Si", 2.0, True),), 0.05, ""),
    Detector("oblong", (3, 4, 9), "cartesian", (2.0, 7.0, 3.0), (Material("G4_Si", 2.0, True),), 0.05, ""),
    Detector("single", (1, 3, 3), "cartesian", (2.0, 5.0, 5.0), (Material("G4_Si", 2.0, True),), 0.05, ""),
    Detector("five", (2, 5, 1), "cylindrical", (2.0, 2 * math.pi / 5, 9.0), (Material("G4_Si", 2.0, True),), 0.05, ""),
]
# results are float32; sums are float64
CLOSE = {"rtol": 3e-6, "atol": 3e-5}


@pytest.fixture(scope="module")
def showers() -> dict[str, EventSet]:
    """Geant4 showers on both grids: seven, one without energy, one with a single cell, one with a single layer."""
    real = read_events(sample_path(CLIC_ECAL), stop=10)
    found = {CLIC_ECAL: real, PAR04_SIW: in_cylinder(real)}
    for events in found.values():
        brightest = np.unravel_index(events.samples[8].argmax(), events.samples[8].shape)
        kept = events.samples[8, brightest[0]].copy()
        events.samples[7:] = 0
        events.samples[(8, *brightest)] = kept.max()
        events.samples[9, 3] = kept
    for detector in map(register_detector, ODD_ONES):
        random = np.random.default_rng(len(detector.name))
        samples = random.exponential(0.2, (10, *detector.shape)) * (random.random((10, *detector.shape)) < 0.5)
        samples[3] = 0
        found[detector.name] = EventSet({"incident_energy": np.linspace(1e3, 9e3, 10)}, samples, detector.name)
    return found


# definitions


def middle(detector: Detector, a: int, b: int) -> tuple[float, float]:
    """Where the middle of a cell is, mm from the axis."""
    _, first, second = detector.cell_size
    if detector.grid == "cylindrical":
        r, phi = (b + 0.5) * second, (a + 0.5) * first
        return r * math.cos(phi), r * math.sin(phi)
    return (a - (detector.shape[1] - 1) / 2) * first, (b - (detector.shape[2] - 1) / 2) * second


def moments(cells: list[tuple[float, float]]) -> tuple[float, float]:
    """Mean and standard deviation of places weighted with energies, two passes."""
    total = sum(energy for _, energy in cells)
    if not total:
        return 0.0, 0.0
    mean = sum(place * energy for place, energy in cells) / total
    return mean, math.sqrt(sum((place - mean) ** 2 * energy for place, energy in cells) / total)


def containment(detector: Detector, hits: list[tuple[float, float]], share: float) -> float:
    """Radius at which the growth curve of energy, linear between its points, reaches a share of the whole."""
    wanted = share * sum(energy for _, energy in hits)
    if detector.grid == "cylindrical":
        radii = [(k + 1) * detector.cell_size[2] for k in range(detector.shape[2])]
    else:
        radii = sorted({round(math.hypot(*middle(detector, a, b)), 6) for a, b in np.ndindex(detector.shape[1:])})
    last, before = 0.0, 0.0
    for radius in radii:
        inside = sum(energy for r, energy in hits if r <= radius + 1e-5)
        if inside >= wanted:
            return last + (wanted - before) / (inside - before) * (radius - last) if inside > before else radius
        last, before = radius, inside
    return last


def by_hand(detector: Detector, shower: np.ndarray, incident: float, threshold: float) -> dict[str, object]:
    """All observables of one shower as their definitions are written, cell by cell."""
    layers, n1, n2 = detector.shape
    hits = []  # layer, first index, second index, x, y, r, energy
    for layer, a, b in np.argwhere(shower > threshold):
        x, y = middle(detector, a, b)
        hits.append((int(layer), int(a), int(b), x, y, math.hypot(x, y), float(shower[layer, a, b])))
    visible = sum(hit[-1] for hit in hits)
    depth = [(hit[0] + 0.5) * detector.cell_size[0] for hit in hits]
    per_layer = [[hit for hit in hits if hit[0] == layer] for layer in range(layers)]
    layer_energy = [sum(hit[-1] for hit in part) for part in per_layer]
    found: dict[str, object] = {
        "response": visible / incident,
        "visible_energy": visible,
        "occupancy": len(hits),
        "shower_maximum": layer_energy.index(max(layer_energy)),
        "layer_energy": layer_energy,
        "layer_fraction": [energy / visible if visible else 0 for energy in layer_energy],
        "layer_sparsity": [1 - len(part) / (n1 * n2) for part in per_layer],
    }
    for place, axis in ((3, "x"), (4, "y"), (5, "r")):
        per = [moments([(hit[place], hit[-1]) for hit in part]) for part in per_layer]
        found[f"layer_centre_{axis}"] = [centre for centre, _ in per]
        found[f"layer_width_{axis}"] = [width for _, width in per]
    found["centre_x"], found["width_x"] = moments([(hit[3], hit[-1]) for hit in hits])
    found["centre_y"], found["width_y"] = moments([(hit[4], hit[-1]) for hit in hits])
    found["lateral_mean"], found["lateral_spread"] = moments([(hit[5], hit[-1]) for hit in hits])
    found["lateral_width"] = math.sqrt(sum(hit[5] ** 2 * hit[-1] for hit in hits) / visible) if visible else 0
    found["centre_z"], found["width_z"] = moments([(z, hit[-1]) for z, hit in zip(depth, hits, strict=True)])
    for order, name in ((3, "skewness_z"), (4, "kurtosis_z")):
        width = found["width_z"]
        powers = [((z - found["centre_z"]) / width) ** order if width > 1e-6 else 0 for z in depth]
        found[name] = sum(power * hit[-1] for power, hit in zip(powers, hits, strict=True)) / visible if visible else 0
    front = sum(layer_energy[: layers // 2])
    found["front_fraction"] = front / visible if visible else 0
    found["front_back_ratio"] = front / max(sum(layer_energy[layers // 2 :]), threshold)
    sectors = [0.0] * (n1 if detector.grid == "cylindrical" else 8)
    for _, a, _, x, y, r, energy in hits:
        if detector.grid == "cylindrical":
            sectors[a] += energy
        elif r > 0:
            sectors[round(math.atan2(y, x) / (math.pi / 4)) % 8] += energy  # none lies on the border of two
    around = sum(sectors)
    found["azimuth"] = [energy / around if around else 0 for energy in sectors]
    found["azimuth_spread"] = float(np.std(sectors)) / (around / len(sectors)) if around else 0
    found["radius_90"] = containment(detector, [(hit[5], hit[-1]) for hit in hits], 0.9) if visible else 0
    return found


ALL = [*DETECTORS, *(detector.name for detector in ODD_ONES)]


@pytest.mark.parametrize("name", ALL)
def test_observables_are_their_definitions(showers: dict[str, EventSet], name: str) -> None:
    events, detector = showers[name], get_detector(name)
    found = observables(events)
    if name in DETECTORS:
        assert found["occupancy"].tolist()[7:9] == [0, 1] and found["occupancy"][:7].min() > 30
    for index in range(len(events)):
        expected = by_hand(detector, events.samples[index], events.incident_energy[index], detector.readout_threshold_mev)
        assert expected.keys() == found.keys()
        for key, value in expected.items():
            # a width is the root of a difference: a few digits less
            close = {"rtol": 1e-4, "atol": 1e-3} if "width" in key or "spread" in key else CLOSE
            np.testing.assert_allclose(found[key][index], value, **close, err_msg=f"{key} of event {index}")


@pytest.mark.parametrize("name", ALL)
def test_rings_images_and_cells_are_sums_over_cells(showers: dict[str, EventSet], name: str) -> None:
    events, detector = showers[name], get_detector(name)
    threshold = detector.readout_threshold_mev
    measured = measure(events)
    one, two = detector.axes[1][0], detector.axes[2][0]
    lit = np.where(events.samples > threshold, events.samples, 0).astype(np.float64)
    whole = {key: sum(image[key] for image in measured.images.values()) for key in ("z" + one, "z" + two, one + two)}
    np.testing.assert_allclose(whole["z" + one], lit.sum(axis=(0, 3)).T, rtol=1e-6)
    np.testing.assert_allclose(whole["z" + two], lit.sum(axis=(0, 2)).T, rtol=1e-6)
    np.testing.assert_allclose(whole[one + two], lit.sum(axis=(0, 1)), rtol=1e-6)
    np.testing.assert_allclose(measured.along[detector.axes[1]], lit.sum(axis=(1, 3)), rtol=1e-6)
    np.testing.assert_allclose(measured.along[detector.axes[2]], lit.sum(axis=(1, 2)), rtol=1e-6)
    rings = {}
    for a, b in np.ndindex(detector.shape[1:]):
        r = math.hypot(*middle(detector, a, b))
        ring = b if detector.grid == "cylindrical" else int(r / min(detector.cell_size[1:]) + 0.5)
        rings.setdefault(ring, []).append((r, lit[:, :, a, b].sum(axis=1)))
    assert len(rings) == measured.rings.shape[1]
    for ring, (_, cells) in enumerate(sorted(rings.items())):
        np.testing.assert_allclose(measured.rings[:, ring], sum(energy for _, energy in cells), rtol=1e-6, atol=1e-6)
        assert ring_radii(detector)[ring] == pytest.approx(np.mean([r for r, _ in cells]))
    assert layer_depths(detector).tolist() == pytest.approx([(k + 0.5) * detector.cell_size[0] for k in range(detector.layers)])
    for index, shower in enumerate(events.samples):
        cells = measured.cells[measured.offsets[index] : measured.offsets[index + 1]]
        np.testing.assert_array_equal(cells, shower[shower > threshold])
        voxels = measured.voxels[measured.offsets[index] : measured.offsets[index + 1]]
        np.testing.assert_array_equal(voxels, np.flatnonzero(shower > threshold))
        soft = shower[(shower > 0) & (shower <= threshold)]
        assert measured.below_cells[index] == len(soft)
        assert measured.below_energy[index] == pytest.approx(soft.sum(dtype=np.float64), rel=1e-6)
        assert measured.unlit[index] == detector.voxels - len(cells)
    assert measured.empty == 1


def published_features(events: EventSet) -> np.ndarray:
    """CaloChallenge's array for data set 2 from its published formulas: sectors from -pi, widths from <q^2> - <q>^2."""
    columns = [np.log10(events.incident_energy.astype(np.float64))]
    kept = np.where(events.samples > 0.01515, events.samples, 0).astype(np.float64).reshape(len(events), 45, 16 * 9)
    alpha = -np.pi + (np.arange(16) + 0.5) * np.pi / 8
    r = (np.arange(9) + 0.5) * 4.65
    places = {"eta": np.outer(np.cos(alpha), r).ravel(), "phi": np.outer(np.sin(alpha), r).ravel(), "r": np.tile(r, 16)}
    energy = kept.sum(axis=2)
    centre, width = {}, {}
    for name, q in places.items():
        centre[name] = (kept * q).sum(axis=2) / (energy + 1e-16)
        variance = (kept * q * q).sum(axis=2) / (energy + 1e-16) - centre[name] ** 2
        width[name] = np.sqrt(variance.clip(min=0))
    columns += [*np.log10(energy + 1e-8).T, *centre["eta"].T / 100, *centre["phi"].T / 100]
    columns += [*width["eta"].T / 100, *width["phi"].T / 100, np.log10(energy.sum(axis=1) + 1e-8)]
    columns += [*(1 - (kept > 0).mean(axis=2)).T, *centre["r"].T / 100, *width["r"].T / 100]
    return np.stack(columns, axis=1)


def test_high_level_features_are_calochallenges(showers: dict[str, EventSet]) -> None:
    found, expected = high_level_features(measure(showers[PAR04_SIW])), published_features(showers[PAR04_SIW])
    assert found.shape == expected.shape == (10, 2 + 8 * 45)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert high_level_features(measure(showers[CLIC_ECAL])).shape == (10, 2 + 6 * 25)


def test_correlations_are_between_all_observables_of_the_shower(showers: dict[str, EventSet]) -> None:
    measured = measure(showers[CLIC_ECAL])
    names, values = shower_quantities(measured)
    assert values.shape == (10, len(names)) and len(set(names)) == len(names)
    single = {name for name in DEFINITIONS if not name.startswith("layer_")} - {"cell_energy", "azimuth"}
    assert set(names) == single | {f"layer_fraction_{layer}" for layer in range(25)}
    np.testing.assert_array_equal(values[:, names.index("layer_fraction_3")], measured.values["layer_fraction"][:, 3])


def test_every_observable_has_a_definition_in_the_documentation(showers: dict[str, EventSet]) -> None:
    assert set(observables(showers[CLIC_ECAL])) | {"cell_energy"} == set(DEFINITIONS)
    text = (Path(__file__).parents[1] / "docs" / "fidelity.md").read_text()
    assert [name for name in DEFINITIONS if f"`{name}`" not in text] == []
    for definition in DEFINITIONS.values():
        assert definition.words and definition.source


@pytest.mark.parametrize("name", ALL)
def test_every_observable_gets_rising_edges(showers: dict[str, EventSet], name: str) -> None:
    measured = measure(showers[name])
    for key, values in measured.values.items():
        for column in values.reshape(len(measured), -1).T:
            assert np.all(np.diff(edges_of(key, column, measured.threshold_mev)) > 0), key


def test_the_spectrum_of_cells_counts_those_below_threshold() -> None:
    real = read_events(sample_path(CLIC_ECAL), stop=120)
    card = validate(real[:60], real[60:], classifiers=(), feature_distances=False, permutations=99, bootstrap=10)
    spectrum = card.histograms["cell_energy"]
    for counts, (below, above), events in (
        (spectrum.reference, spectrum.reference_outside, real[:60]),
        (spectrum.candidate, spectrum.candidate_outside, real[60:]),
    ):
        assert below == np.count_nonzero(events.samples <= 0.05)
        assert below + sum(counts) + above == events.samples.size


@pytest.mark.parametrize("name", DETECTORS)
def test_halves_of_one_sample_do_not_differ_on_either_grid(name: str) -> None:
    real = read_events(sample_path(CLIC_ECAL), stop=600)
    events = real if name == CLIC_ECAL else in_cylinder(real)
    card = validate(events[:300], events[300:], classifiers=(), feature_distances=False, permutations=199, bootstrap=20)
    assert card.differing == []
    assert set(DEFINITIONS) <= set(card.observables)
    wider = replace(events, samples=events.samples.copy())
    wider.samples[300:] = np.roll(wider.samples[300:], 1, axis=3)  # a cell to the side, a ring outwards
    card = validate(wider[:300], wider[300:], classifiers=(), feature_distances=False, permutations=199, bootstrap=20)
    assert {"lateral_mean", "lateral_profile", "layer_centre_r"} <= set(card.differing)


def test_responses_are_binned_around_one_where_the_detector_is_calibrated() -> None:
    published = np.linspace(0.5, 1.5, 101)
    np.testing.assert_array_equal(edges_of("response", np.array([0.8, 1.0, 1.1]), 0.05), published)
    np.testing.assert_allclose(edges_of("response", np.array([0.027, 0.029]), 0.05), 0.028 * published)
    np.testing.assert_array_equal(edges_of("response", np.zeros(3), 0.05), published)


# symmetries


@st.composite
def sparse_showers(draw: st.DrawFn, name: str) -> EventSet:
    """Three showers of a few cells each, between 0.1 and 100 MeV."""
    shape = get_detector(name).shape
    samples = np.zeros((3, *shape), np.float32)
    cell = st.tuples(st.integers(0, 2), *(st.integers(0, length - 1) for length in shape), st.floats(0.125, 100, width=32))
    for *place, energy in draw(st.lists(cell, min_size=1, max_size=30)):
        samples[tuple(place)] = energy
    return EventSet({"incident_energy": np.array([1e3, 2e3, 5e3])}, samples, name)


SHAPES = [name for name, found in DEFINITIONS.items() if found.unit != "MeV" and name != "response"]
QUICK = settings(max_examples=25, deadline=None)


@pytest.mark.parametrize("name", DETECTORS)
@QUICK
@given(st.data())
def test_scaled_energies_scale_energies_and_no_shape(name: str, data: st.DataObject) -> None:
    events = data.draw(sparse_showers(name))
    once, twice = measure(events, 0.1), measure(replace(events, samples=events.samples * 2), 0.2)
    for key in ("response", "visible_energy", "layer_energy"):
        np.testing.assert_array_equal(2 * once.values[key], twice.values[key])
    for key in SHAPES:
        np.testing.assert_allclose(once.values[key], twice.values[key], rtol=1e-6, atol=1e-6, err_msg=key)
    np.testing.assert_array_equal(2 * once.rings, twice.rings)
    np.testing.assert_array_equal(2 * once.cells, twice.cells)


def turned(events: EventSet) -> EventSet:
    """By 90 degrees about the axis: x becomes y, y becomes -x."""
    if events.detector == PAR04_SIW:
        return replace(events, samples=np.roll(events.samples, 4, axis=2))
    return replace(events, samples=np.rot90(events.samples, axes=(2, 3)))


def mirrored(events: EventSet) -> EventSet:
    """y becomes -y."""
    return replace(events, samples=np.flip(events.samples, axis=2 if events.detector == PAR04_SIW else 3))


AROUND = {"centre_x", "centre_y", "width_x", "width_y", "azimuth"}


def assert_same(first: Measured, second: Measured, but: set[str]) -> None:
    for key, values in first.values.items():
        if key.removeprefix("layer_") not in but:
            np.testing.assert_allclose(values, second.values[key], rtol=1e-4, atol=2e-4, err_msg=key)
    np.testing.assert_allclose(first.rings, second.rings, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("name", DETECTORS)
@QUICK
@given(st.data())
def test_a_turn_about_the_axis_turns_centres_and_sectors_only(name: str, data: st.DataObject) -> None:
    events = data.draw(sparse_showers(name))
    before, after = measure(events), measure(turned(events))
    assert_same(before, after, AROUND)
    for whole in ("", "layer_"):
        for moment, sign in (("centre", -1), ("width", 1)):
            x, y = (f"{whole}{moment}_{axis}" for axis in "xy")
            np.testing.assert_allclose(after.values[y], before.values[x], rtol=1e-4, atol=2e-3)
            np.testing.assert_allclose(after.values[x], sign * before.values[y], rtol=1e-4, atol=2e-3)
    sectors = before.values["azimuth"].shape[1]
    np.testing.assert_allclose(after.values["azimuth"], np.roll(before.values["azimuth"], sectors // 4, axis=1), atol=1e-6)


@pytest.mark.parametrize("name", DETECTORS)
@QUICK
@given(st.data())
def test_a_mirror_turns_one_centre_around(name: str, data: st.DataObject) -> None:
    events = data.draw(sparse_showers(name))
    before, after = measure(events), measure(mirrored(events))
    assert_same(before, after, {"centre_y", "azimuth"})
    np.testing.assert_allclose(after.values["centre_y"], -before.values["centre_y"], rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(after.values["layer_centre_y"], -before.values["layer_centre_y"], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", DETECTORS)
@QUICK
@given(st.data())
def test_energies_of_two_showers_in_one_add_up(name: str, data: st.DataObject) -> None:
    one, two = data.draw(sparse_showers(name)), data.draw(sparse_showers(name))
    first, second, both = (measure(events, 0.0) for events in (one, two, replace(one, samples=one.samples + two.samples)))
    for key in ("response", "visible_energy", "layer_energy"):
        np.testing.assert_allclose(first.values[key] + second.values[key], both.values[key], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(first.rings + second.rings, both.rings, rtol=1e-6, atol=1e-5)
    for axis, profile in both.along.items():
        np.testing.assert_allclose(first.along[axis] + second.along[axis], profile, rtol=1e-6, atol=1e-5)
    for number, images in both.images.items():
        for key, image in images.items():
            np.testing.assert_allclose(first.images[number][key] + second.images[number][key], image, rtol=1e-6, atol=1e-5)


# sets in pieces


def assert_equal(first: Measured, second: Measured) -> None:
    for name in first.values:
        np.testing.assert_array_equal(first.values[name], second.values[name])
    for name in ("energy", "rings", "cells", "voxels", "offsets", "below_cells", "below_energy", "strata", "unlit", "empty"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    for axis in first.along:
        np.testing.assert_array_equal(first.along[axis], second.along[axis])


@pytest.mark.parametrize(
    "rows", [slice(2, 9), slice(None, None, 3), [4, 1, 1, 11], np.arange(12) % 5 == 0, np.zeros(0, int), 3], ids=repr
)
def test_a_sub_sample_is_what_measuring_its_events_gives(rows: object) -> None:
    events = make_events(12)
    events.samples[4] = 0
    events.samples[11, 3] = 0
    part, whole = measure(events)[rows], np.arange(12)[rows]
    assert len(part) == np.size(whole)
    if not len(part):
        assert part.offsets.tolist() == [0] and part.cells.size == 0
        return
    assert_equal(part, measure(events[rows]))


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
@pytest.mark.parametrize("name", DETECTORS)
def test_chunks_of_any_size_give_the_same(
    showers: dict[str, EventSet], name: str, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = measure(showers[name])
    write_events(tmp_path / "showers.h5", showers[name])
    monkeypatch.setattr(module, "CHUNK", chunk)
    seen: list[tuple[int, int]] = []
    for source in (showers[name], tmp_path / "showers.h5"):
        part = measure(source, progress=lambda done, total: seen.append((done, total)))
        assert_equal(whole, part)
        for number, images in whole.images.items():
            for key, image in images.items():
                np.testing.assert_allclose(image, part.images[number][key], rtol=1e-12)
    assert seen[-1] == (10, 10)


# what a user can do wrong


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.5])
@pytest.mark.parametrize("name", DETECTORS)
def test_impossible_cells_are_refused(showers: dict[str, EventSet], name: str, value: float) -> None:
    samples = showers[name].samples.copy()
    samples[6, 2, 3, 4] = value
    with pytest.raises(InvalidEventSet, match=f"'showers': event 6 holds {value}"):
        measure(replace(showers[name], samples=samples))


@pytest.mark.parametrize("name", DETECTORS)
def test_impossible_cells_of_a_file_are_refused_wherever_they_are(
    showers: dict[str, EventSet], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", 4)
    write_events(tmp_path / "showers.h5", showers[name])
    with h5py.File(tmp_path / "showers.h5", "a") as file:
        file["showers"][9, 77] = np.nan
    with pytest.raises(InvalidEventSet, match="showers.h5.*'showers': event 9 holds nan"):
        measure(tmp_path / "showers.h5")


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, -1000.0])
def test_impossible_incident_energies_are_refused(showers: dict[str, EventSet], value: float) -> None:
    energy = showers[CLIC_ECAL].incident_energy.copy()
    energy[3] = value
    with pytest.raises(InvalidEventSet, match=f"'incident_energies': event 3 holds {value}"):
        measure(replace(showers[CLIC_ECAL], conditions={"incident_energy": energy}))


def test_energies_beyond_float32_are_refused(showers: dict[str, EventSet], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 4)
    samples = showers[CLIC_ECAL].samples.copy()
    samples[6, 2, 3, 4] = 3e38
    with pytest.raises(InvalidEventSet, match="Event 6 has a visible energy of 3e.38 MeV"):
        measure(replace(showers[CLIC_ECAL], samples=samples))
    energy = showers[CLIC_ECAL].incident_energy.copy()
    energy[5] = 1e-40
    with pytest.raises(InvalidEventSet, match="Event 5 .* incident energy of 1e-40 MeV"):
        measure(replace(showers[CLIC_ECAL], conditions={"incident_energy": energy}))


@pytest.mark.parametrize("threshold", [-0.1, np.nan, np.inf])
def test_impossible_thresholds_are_refused(showers: dict[str, EventSet], threshold: float) -> None:
    with pytest.raises(InvalidConfig, match="threshold"):
        measure(showers[CLIC_ECAL], threshold)


def test_showers_without_energy_are_zero_everywhere_and_counted(showers: dict[str, EventSet]) -> None:
    for events in showers.values():
        nothing = measure(replace(events, samples=np.zeros_like(events.samples)))
        assert nothing.empty == 10 and nothing.cells.size == 0
        for name, values in nothing.values.items():
            assert np.all(values == (1 if name == "layer_sparsity" else 0)), name
        assert np.isfinite(high_level_features(nothing)).all()


def test_no_events_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidEventSet, match="holds no events"):
        measure(make_events(0))
    write_events(tmp_path / "none.h5", make_events(0))
    with pytest.raises(InvalidEventSet, match="holds no events"):
        measure(tmp_path / "none.h5")
