"""From what a user names to what is tuned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minicarlo.errors import TuningError
from minicarlo.models import Inputs
from minicarlo.models.inputs import read_inputs
from minicarlo.precision.criterion import get_criterion
from minicarlo.precision.losses import UserFunction, get_loss
from minicarlo.precision.networks import NetworkSubject
from minicarlo.precision.rewriting import fastest
from minicarlo.precision.surrogates import SurrogateSubject
from minicarlo.surrogate import MANIFEST, Surrogate, shipped_surrogates


def subject_of(
    model: Any,  # noqa: ANN401
    *,
    inputs: Inputs | Path | str | None,
    criterion: str | UserFunction | None,
    confidence: float,
    batch: int | None,
    calibration_events: int,
    rewrite: bool,
    seed: int,
) -> SurrogateSubject | NetworkSubject:
    """A surrogate (its graph made faster first, with `rewrite`) or any other network, with its criterion.

    Raises TuningError, InvalidSurrogate, InvalidModel, MissingExtra.
    """
    if is_surrogate(model):
        if inputs is not None or batch is not None:
            raise TuningError("A surrogate brings inputs and batch of its own: leave out the inputs and the batch.")
        name = criterion or "fidelity"
        if not isinstance(name, str):
            raise TuningError("A surrogate is judged by fidelity, profile or families of observables, not by a function.")
        loaded = model if isinstance(model, Surrogate) else Surrogate.load(model)
        if rewrite:
            loaded = fastest(loaded)
        threshold = loaded.manifest.readout_threshold_mev
        measure = get_criterion(name, threshold_mev=threshold, confidence=confidence, seed=seed)
        return SurrogateSubject(loaded, measure, calibration_events=calibration_events, seed=seed)
    loss = get_loss(criterion or "relative-l2", confidence=confidence, seed=seed)
    if isinstance(inputs, str | Path):
        inputs = read_inputs(Path(inputs))
    if inputs is None:
        raise TuningError(
            "A network that is no surrogate is calibrated and judged on inputs of yours: give a file of arrays (.npz), one for "
            "each input, the first axis being events."
        )
    return NetworkSubject(model, inputs, loss, batch=batch, calibration_events=calibration_events, seed=seed)


def is_surrogate(model: Any) -> bool:  # noqa: ANN401
    """Whether `model` is a surrogate, the directory of one, or the name of a shipped one."""
    if isinstance(model, str | Path):
        return str(model) in shipped_surrogates() or (Path(model) / MANIFEST).exists()
    return isinstance(model, Surrogate)
