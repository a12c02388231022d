from __future__ import annotations

import pytest

from minicarlo.detectors import CLIC_ECAL, detector_names, get_detector, infer_detector
from minicarlo.errors import MinicarloError, UnknownDetector


def test_clic_ecal_is_25_layers_whose_materials_fill_the_pitch() -> None:
    detector = get_detector(CLIC_ECAL)
    assert detector.shape == (25, 25, 25)
    assert detector.voxels == 15625
    assert detector.absorber_mm + detector.sensor_mm + detector.gap_mm == pytest.approx(detector.cell_size_mm[0])


def test_readout_threshold_is_a_third_of_the_peak_of_a_minimum_ionising_particle() -> None:
    detector = get_detector(CLIC_ECAL)
    peak = 0.28 * detector.sensor_mm  # 280 eV per micrometre
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
    assert infer_detector(15624) is None
    assert CLIC_ECAL in detector_names()
