"""Quantisation-aware training as the last resort: where no plan passes, train on with int8 in the loop, and tune again."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minicarlo.engines import read_model, usable_cores
from minicarlo.engines.network import OpenVinoNetwork
from minicarlo.errors import InvalidConfig, MissingExtra, TuningError
from minicarlo.precision import Quantizer, TuneResult, get_criterion, tune
from minicarlo.precision.evaluation import Evaluation
from minicarlo.precision.surrogates import SurrogateSubject
from minicarlo.surrogate import Surrogate

STEPS = 1000
"""Steps of training with int8 in the loop."""

SLOWER = 4
"""By how much its learning rate is smaller."""


def tune_or_retrain(
    surrogate: Surrogate | Path | str,
    output: Path | str,
    config: Path | str,
    *,
    reference: Path | str,
    steps: int = STEPS,
    tolerance: float = 0.03,
    confidence: float = 0.95,
    evaluation_events: int = 2048,
    seed: int = 1,
    training_progress: Callable[[int, int], None] | None = None,
    **settings: Any,  # noqa: ANN401
) -> TuneResult:
    """`tune`; if no plan passes, train the network on with int8 in its layers, tune what comes of it, and keep it if no worse.

    `config` is the configuration that the surrogate was trained with; its run is where the training goes on from, into a
    run of its own (`RUN-int8`), by the losses of that run in their proportion: scores, or the published ones against the
    discriminator. The result counts as accepted if it passes against its own fp32 as usual and describes the Monte Carlo events
    of `reference` no worse than the fp32 of `surrogate` did: `monte_carlo` says both figures. `settings` are those of `tune`.

    Raises what `tune` and `train` raise, and InvalidConfig when the run is not there.
    """
    output = Path(output)
    original = surrogate if isinstance(surrogate, Surrogate) else Surrogate.load(surrogate)
    shared = {"tolerance": tolerance, "confidence": confidence, "evaluation_events": evaluation_events, "seed": seed}
    result = tune(original, output, reference=reference, **shared, **settings)  # type: ignore[arg-type]
    if result.accepted or result.interrupted:
        return result
    retrained = train_in_int8(original, config, steps, training_progress)
    shutil.rmtree(output)
    result = tune(retrained, output, reference=reference, **shared, **settings)  # type: ignore[arg-type]
    subject = SurrogateSubject(
        original,
        get_criterion("fidelity", threshold_mev=original.manifest.readout_threshold_mev, confidence=confidence, seed=seed),
        seed=seed,
    )
    evaluation = Evaluation(subject, Quantizer.of(subject), events=evaluation_events)
    model, precision = read_model(Surrogate.load(output), "tuned")
    network = OpenVinoNetwork(model, precision, subject.shapes, streams=usable_cores())
    compared = subject.against_monte_carlo(evaluation, network, Path(reference), tolerance)
    verdict = "no worse" if compared["accepted"] else "worse"
    reason = f"after {steps} steps with int8 in the loop, {result.reason}; {verdict} against Monte Carlo events than before"
    return dataclasses.replace(
        result, accepted=result.accepted and bool(compared["accepted"]), reason=reason, monte_carlo=compared
    )


def train_in_int8(
    original: Surrogate, config: Path | str, steps: int, progress: Callable[[int, int], None] | None = None
) -> Surrogate:
    """The surrogate of `steps` more steps of the run of `config`, with int8 in the loop.

    Raises InvalidConfig, MissingExtra, TuningError for another detector, and what `train` raises.
    """
    try:
        from minicarlo.training.config import read_config
        from minicarlo.training.loop import CHECKPOINT, train
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f"Training with int8 needs PyTorch ({error.name} is not installed). Install it with: pip install 'minicarlo[train]'"
        ) from error
    before = read_config(config)
    if before.generator != original.manifest.generator:
        raise TuningError(f"{config} trains a {before.generator}, the surrogate is a {original.manifest.generator}.")
    if not (before.run / CHECKPOINT).exists():
        raise InvalidConfig(f"{before.run}: there is no run of {config} to go on from. Run `minicarlo train {config}` first.")
    own = before.training
    scores = round(steps * own.score_steps / max(own.score_steps + own.steps, 1))
    training = own.model_copy(
        update={
            "int8": True,
            "compile": False,
            "energy_steps": 0,
            "score_steps": scores,
            "steps": steps - scores,
            "learning_rate": own.learning_rate / SLOWER,
            "score_learning_rate": own.score_learning_rate / SLOWER,
        }
    )
    after = before.model_copy(
        update={
            "run": before.run.with_name(f"{before.run.name}-int8"),
            "output": before.output.with_name(f"{before.output.name}-int8"),
            "initial": before.run,
            "training": training,
        }
    )
    return Surrogate.load(train(after, progress=progress).surrogate)
