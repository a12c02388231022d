"""PyTorch's compiler makes the same showers; a file of its own, because it compiles for long."""

from __future__ import annotations

import numpy as np
import pytest

from minicarlo.engines import compile_surrogate, engines
from minicarlo.graph.verify import ROUNDING, deviation
from minicarlo.sampling import normal_latents
from small_surrogate import HIGH_MEV, LATENT_SIZE, LAYERS, LOW_MEV, THRESHOLD_MEV, make_small_surrogate


def test_a_compiled_graph_makes_the_same_showers_and_reports_what_its_kernels_computed_in(tmp_path, monkeypatch):
    if not any(offer.engine == "inductor" and offer.formats for offer in engines()):
        pytest.skip("there is no C++ compiler")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    small = make_small_surrogate(tmp_path / "small", width=8)
    latent, energy = normal_latents(3, 0, 20, LATENT_SIZE), np.geomspace(LOW_MEV, HIGH_MEV, 20, dtype=np.float32)
    expected = compile_surrogate(small, batch=8).run(latent, energy)
    compiled = compile_surrogate(small, engine="inductor", batch=8, streams=2)
    assert compiled.precision_report() == dict.fromkeys(LAYERS, "fp32")
    pieces = [(i, latent[i : i + 8], energy[i : i + 8]) for i in range(0, 20, 8)]
    found = np.concatenate([samples for _, samples in compiled.map(pieces)])
    assert np.count_nonzero(expected) > 100
    assert deviation(expected, found, THRESHOLD_MEV) < ROUNDING
