from __future__ import annotations

import json
from dataclasses import replace

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicarlo.detectors import (
    CLIC_ECAL,
    PAR04_SIW,
    Material,
    described_detector,
    detector_names,
    find_detector,
    get_detector,
    infer_detector,
    parse_detector,
    register_detector,
)
from minicarlo.errors import InvalidConfig, InvalidEventSet, MinicarloError, UnknownDetector
from minicarlo.events import EventSet, events_info, read_events, write_events


def test_clic_ecal_is_25_layers_whose_materials_fill_the_pitch() -> None:
    detector = get_detector(CLIC_ECAL)
    assert detector.shape == (25, 25, 25)
    assert detector.voxels == 15625
    assert sum(plate.mm for plate in detector.materials) == pytest.approx(detector.cell_size[0])


def test_readout_threshold_is_a_third_of_the_peak_of_a_minimum_ionising_particle() -> None:
    detector = get_detector(CLIC_ECAL)
    (sensor,) = (plate for plate in detector.materials if plate.sensitive)
    peak = 0.28 * sensor.mm  # 280 eV per micrometre
    assert detector.readout_threshold_mev == pytest.approx(peak / 3, rel=0.1)


@pytest.mark.parametrize("name", ["", "clic", "CLIC-ECAL", "x" * 1000, None, ["clic-ecal"]])
def test_an_unknown_detector_is_an_error_that_lists_the_known_ones(name: str) -> None:
    with pytest.raises(UnknownDetector, match="Known detectors: .*clic-ecal") as caught:
        get_detector(name)
    assert isinstance(caught.value, MinicarloError) and caught.value.exit_code == 2
    assert len(str(caught.value)) < 250


def test_a_detector_is_inferred_from_its_number_of_voxels_only_when_that_is_unambiguous() -> None:
    inferred = infer_detector(15625)
    assert inferred is not None and inferred.name == CLIC_ECAL
    inferred = infer_detector(6480)  # CaloChallenge's data set 2
    assert inferred is not None and inferred.name == PAR04_SIW
    assert infer_detector(15624) is None
    assert {CLIC_ECAL, PAR04_SIW} <= set(detector_names())


def test_par04_siw_is_90_layers_in_45_cells_of_16_sectors_and_9_rings() -> None:
    detector = get_detector(PAR04_SIW)
    assert detector.shape == (45, 16, 9) and detector.axes == ("z", "phi", "r")
    layer = sum(plate.mm for plate in detector.materials)
    assert detector.layers_per_cell * layer == pytest.approx(detector.cell_size[0])
    assert detector.cell_size[1] * 16 == pytest.approx(2 * np.pi)
    assert detector.readout_threshold_mev == pytest.approx(0.5e-3 / 0.033, rel=1e-3)  # as in CaloChallenge's evaluate.py


@pytest.mark.parametrize("name", [CLIC_ECAL, PAR04_SIW])
def test_cells_of_a_layer_tile_it_around_the_axis(name: str) -> None:
    detector = get_detector(name)
    (x, y), radius, area = detector.transverse(), detector.radii_mm(), detector.areas_mm2()
    assert x.shape == y.shape == radius.shape == area.shape == (detector.shape[1] * detector.shape[2],)
    np.testing.assert_allclose(radius, np.hypot(x, y), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose([x.sum(), y.sum()], 0, atol=1e-9)  # the axis is in the middle
    window = 127.5**2 if detector.grid == "cartesian" else np.pi * 41.85**2
    assert area.sum() == pytest.approx(window)


def test_cells_are_where_their_indices_say() -> None:
    x, y = (part.reshape(25, 25) for part in get_detector(CLIC_ECAL).transverse())
    assert (x[12, 12], y[12, 12]) == (0, 0) and (x[13, 10], y[13, 10]) == pytest.approx((5.1, -10.2))
    x, y = (part.reshape(16, 9) for part in get_detector(PAR04_SIW).transverse())
    phi, r = 2.5 * np.pi / 8, 3.5 * 4.65
    assert (x[2, 3], y[2, 3]) == pytest.approx((r * np.cos(phi), r * np.sin(phi)))
    assert get_detector(PAR04_SIW).areas_mm2()[8] == pytest.approx(np.pi * (41.85**2 - 37.2**2) / 16)


DESCRIPTION = {
    "name": "mine",
    "grid": "cartesian",
    "cells": [30, 9, 11],
    "cell_mm": [20, 10.5],
    "layers": [{"material": "G4_Pb", "mm": 4.2}, {"material": "G4_Si", "mm": 0.3, "read_out": True}],
}


def test_a_description_needs_only_what_cannot_be_guessed() -> None:
    detector = parse_detector(DESCRIPTION)
    assert (detector.shape, detector.axes, detector.cell_size) == ((30, 9, 11), ("z", "x", "y"), (4.5, 20, 10.5))
    assert detector.materials == (Material("G4_Pb", 4.2), Material("G4_Si", 0.3, sensitive=True))
    assert (detector.layers_per_cell, detector.energy_scale, detector.readout_threshold_mev) == (1, 1, 0)
    pairs = parse_detector(DESCRIPTION | {"grid": "cylindrical", "cell_mm": 5, "layers_per_cell": 2})
    assert (pairs.axes, pairs.cell_size) == (("z", "phi", "r"), (9.0, 2 * np.pi / 9, 5))


plates = st.builds(Material, st.sampled_from(["G4_Pb", "G4_Si", "G4_AIR"]), st.floats(1e-3, 10), st.booleans())


@settings(deadline=None, max_examples=50)
@given(
    materials=st.lists(plates, max_size=4),
    grid=st.sampled_from(["cartesian", "cylindrical"]),
    cells=st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40)),
    cell_mm=st.floats(0.1, 4.9),
    layers_per_cell=st.integers(1, 5),
    scale=st.floats(1e-3, 1e3),
)
def test_a_detector_reads_back_from_the_json_of_its_description(materials, grid, cells, cell_mm, layers_per_cell, scale) -> None:
    layers = [{"material": m.name, "mm": m.mm, "read_out": m.sensitive} for m in (*materials, Material("G4_Si", 1, True))]
    description = {"name": "mine", "grid": grid, "cells": list(cells), "cell_mm": cell_mm, "layers": layers}
    detector = parse_detector(description | {"layers_per_cell": layers_per_cell, "energy_scale": scale})
    assert detector.materials[: len(materials)] == tuple(materials)
    assert parse_detector(json.loads(json.dumps(detector.to_description()))) == detector


@pytest.mark.parametrize("name", [CLIC_ECAL, PAR04_SIW])
def test_built_in_detectors_are_valid_descriptions(name: str) -> None:
    detector = get_detector(name)
    assert register_detector(detector) is detector
    assert parse_detector(json.loads(detector.attributes()["geometry"])) == detector


LEAD = {"material": "G4_Pb", "mm": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cells": [30, 9]}, r"cells\[2\]: is missing"),
        ({"cells": [30, 0, 9]}, r"cells\[1\]: .*greater than or equal to 1, not 0"),
        ({"cells": [3000, 100, 100]}, r"cells: 30,000,000 are too many; 1,000,000 at most; cells: 3,000 layers are too many"),
        ({"cell_mm": 50}, r"plate_mm: the grid is 550 mm wide and does not fit into plates of 400 mm; make them wider"),
        ({"cell_mm": [1, 2], "grid": "cylindrical"}, r"cell_mm: a cylindrical grid has one, the width of its rings"),
        ({"grid": "hexagonal"}, r"grid: .*'cartesian' or 'cylindrical', not 'hexagonal'"),
        ({"layers": []}, r"layers: .*at least 1"),
        ({"layers": [LEAD]}, r"layers: none of them is read out; add `read_out = true`"),
        ({"layers": [LEAD | {"mm": -1}]}, r"layers\[0\]\.mm: .*greater than 0, not -1"),
        ({"layers": [LEAD | {"mm": float("nan")}]}, r"layers\[0\]\.mm: "),
        ({"layers": [LEAD | {"material": "lead; rm -rf"}]}, r"layers\[0\]\.material: .*not 'lead; rm -rf'"),
        ({"layers": [LEAD | {"readout": True}]}, r"layers\[0\]\.readout: is unknown; remove or rename it"),
        ({"energy_scale": 0}, r"energy_scale: .*greater than 0"),
        ({"readout_threshold_mev": "50keV"}, r"readout_threshold_mev: .*not '50keV'"),
        ({"name": "my detector"}, r"name: .*not 'my detector'"),
    ],
)
def test_a_mistake_in_a_description_is_told_with_its_field_and_what_is_right(tmp_path, change, message) -> None:
    with pytest.raises(InvalidConfig, match=rf"Detector my\.toml: .*{message}") as caught:
        parse_detector(DESCRIPTION | change, "Detector my.toml")
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name = ", "is not TOML"),
        ("name = 'x'", "grid: is missing; cells: is missing"),
        ("\x00", "is not TOML"),
        (None, "cannot be read"),
    ],
)
def test_a_file_that_is_no_detector_is_told_with_its_name(tmp_path, content, message) -> None:
    path = tmp_path / "my.toml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InvalidConfig, match=rf"my\.toml.*{message}"):
        find_detector(path)


def test_two_different_detectors_of_one_name_are_refused_with_what_differs() -> None:
    first = find_detector(parse_detector(DESCRIPTION | {"name": "twins"}))
    assert find_detector("twins") == first and "twins" in detector_names()
    assert find_detector(replace(first, description="the same in other words")) == first
    with pytest.raises(
        InvalidConfig, match=r"two different detectors 'twins' \(cells \[30, 9, 11\] and \[31, 9, 11\]\)\. Rename"
    ):
        find_detector(parse_detector(DESCRIPTION | {"name": "twins", "cells": [31, 9, 11]}))
    with pytest.raises(InvalidConfig, match="two different detectors 'clic-ecal'"):
        find_detector(parse_detector(DESCRIPTION | {"name": CLIC_ECAL}))
    with pytest.raises(InvalidConfig, match="cell_size does not follow"):
        find_detector(replace(first, name="other", cell_size=(1, 20, 10.5)))


@pytest.mark.parametrize("geometry", ["", "{", "[" * 10_000, "null", "7", '{"layers": 3}', '{"absorber_mm": 2.24}', 7.5])
def test_a_description_in_a_file_of_a_stranger_is_read_or_refused(geometry: object) -> None:
    try:
        assert described_detector(geometry, "a.h5") is None
    except InvalidConfig as error:
        assert str(error).startswith("a.h5")


def test_an_event_set_holds_its_whole_detector(tmp_path) -> None:
    detector = find_detector(parse_detector(DESCRIPTION | {"name": "whole", "cells": [3, 2, 2]}))
    samples = np.ones((2, 3, 2, 2), np.float32)
    conditions = {"incident_energy": [1e3, 2e3], "incident_theta": [0.1, 0.2], "incident_phi": [0.0, 0.0]}
    write_events(tmp_path / "a.h5", EventSet(conditions, samples, "whole"))
    info = events_info(tmp_path / "a.h5")
    assert parse_detector(json.loads(info["attributes"]["geometry"])) == detector
    assert info["conditions"]["incident_theta"] == {"unit": "rad", "low": pytest.approx(0.1), "high": pytest.approx(0.2)}
    for geometry, message in (
        (
            json.dumps(detector.to_description() | {"name": "another"}),
            "'detector' is 'whole', but 'geometry' describes 'another'",
        ),
        (
            json.dumps(detector.to_description() | {"cells": [3, 2, 1]}),
            r"attribute 'geometry': there are two different detectors",
        ),
        (json.dumps(detector.to_description() | {"grid": "round"}), r"a\.h5, attribute 'geometry': grid: "),
        ("{", r"a\.h5, attribute 'geometry': no valid JSON"),
    ):
        with h5py.File(tmp_path / "a.h5", "r+") as file:
            file.attrs["geometry"] = np.bytes_(geometry)
        with pytest.raises(InvalidEventSet, match=message):
            read_events(tmp_path / "a.h5")
