from __future__ import annotations

import numpy as np
import pytest

from minicarlo.detectors import CLIC_ECAL, PAR04_SIW, detector_names, get_detector, infer_detector
from minicarlo.errors import MinicarloError, UnknownDetector


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
