"""The whole chain on what the package ships: generate, tune, generate tuned, measure, validate, report."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from minicarlo.errors import InvalidConfig, OutputError
from minicarlo.events import ENERGY, EventSet, read_events, write_events
from minicarlo.fidelity import validate
from minicarlo.files import output_error, write_json
from minicarlo.generation import bench, generate
from minicarlo.precision import tune
from minicarlo.report import report
from minicarlo.surrogate import MANIFEST, Surrogate, sample_path

__all__ = ["STAGES", "DemoResult", "demo"]

STAGES = ("Load", "Generate FP32", "Tune", "Generate tuned", "Measure speed", "Validate FP32", "Validate tuned", "Report")

_FORMAT = 1
_FEWEST = 400
_TUNE_ON = 4  # one Monte Carlo event of so many is for tuning, the others for the verdict


class Watcher(Protocol):
    """What shows the progress of the stages."""

    def start(self, stage: str) -> Callable[[int, int], None]:
        """A stage begins; returns a callable for its (done, total)."""

    def end(self, stage: str, seconds: float, outcome: str) -> None:
        """A stage is done, with one line of what came of it."""


@dataclass(frozen=True)
class DemoResult:
    """Where the report is, and the numbers of the final table."""

    report: Path
    seconds: float
    surrogate: str
    reference_events: int
    accepted: bool
    int8_share: float
    events_per_second: dict[str, float]
    speedup: dict[str, float | None]
    verdict: dict[str, str]
    cern_error: dict[str, dict[str, float | None]]
    trees_auc: dict[str, float | None]
    stages: dict[str, float]


class _Silent:
    def start(self, stage: str) -> Callable[[int, int], None]:
        return lambda done, total: None

    def end(self, stage: str, seconds: float, outcome: str) -> None:
        pass


def demo(
    output: Path | str = "minicarlo-demo",
    surrogate: Surrogate | Path | str = "clic-ecal",
    *,
    sample: Path | str | None = None,
    events: int | None = None,
    seed: int = 1,
    tuning_seconds: float = 90.0,
    bench_seconds: float = 20.0,
    tolerance: float = 0.03,
    evaluation_events: int = 1024,
    watcher: Watcher | None = None,
) -> DemoResult:
    """Run the chain into the folder `output`: event sets, the tuned surrogate, JSON results and `report.html`.

    Arguments:
        surrogate: a shipped name, a path, or a loaded surrogate; it is tuned again whether or not it carries a plan.
        sample: Monte Carlo events to compare with; default: those the package ships for the surrogate's detector.
        events: use only so many of them.
        seed: of latents, bootstrap and calibration.
        tuning_seconds, bench_seconds: how long to search and to measure.
        tolerance, evaluation_events: passed to `tune`.
        watcher: is told of the stages in `STAGES`.

    A second run into the same folder replaces its results. Raises every error of the stages it runs.
    """
    output, began = Path(output), time.monotonic()
    stages: dict[str, float] = {}
    watch = watcher or _Silent()

    @contextmanager
    def stage(name: str) -> Iterator[_Stage]:
        running = _Stage(watch.start(name))
        start = time.monotonic()
        yield running
        stages[name] = time.monotonic() - start
        watch.end(name, stages[name], running.outcome)

    with stage("Load") as running:
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise output_error(output, error) from error
        if not isinstance(surrogate, Surrogate):
            surrogate = Surrogate.load(surrogate)
        source = Path(sample) if sample is not None else sample_path(surrogate.manifest.detector)
        reference = _inside(read_events(source, stop=events), surrogate)
        # Tuning may look at some Monte Carlo events; the verdict is given on others.
        for_tuning = np.arange(len(reference)) % _TUNE_ON == 0
        write_events(output / "reference-tuning.h5", reference[for_tuning])
        write_events(output / "reference.h5", reference[~for_tuning])
        unseen = reference[~for_tuning]
        made_by = str(reference.attributes.get("generator", "Monte Carlo"))
        running.outcome = f"{len(reference):,} showers of {made_by}, surrogate {surrogate.manifest.name}"

    energies = unseen.incident_energy
    with stage("Generate FP32") as running:
        plain = generate(
            surrogate,
            conditions=energies,
            seed=seed,
            output=_fresh(output / "fp32.h5"),
            precision="fp32",
            progress=running.progress,
        )
        running.outcome = f"{plain.events:,} showers on {plain.streams} streams"

    with stage("Tune") as running:
        tuned = tune(
            surrogate,
            _fresh(output / "tuned-surrogate"),
            tolerance=tolerance,
            time_limit=tuning_seconds,
            seed=seed,
            evaluation_events=evaluation_events,
            reference=output / "reference-tuning.h5",
            progress=running.progress,
        )
        write_json(output / "tune.json", tuned.to_dict())
        running.outcome = f"{tuned.trials} plans tried; {tuned.int8_share:.0%} of the arithmetic in INT8"
        surrogate = Surrogate.load(output / "tuned-surrogate")

    with stage("Generate tuned") as running:
        quick = generate(
            surrogate,
            conditions=energies,
            seed=seed,
            output=_fresh(output / "tuned.h5"),
            precision="tuned",
            progress=running.progress,
        )
        running.outcome = f"{quick.events:,} showers on {quick.streams} streams"

    with stage("Measure speed") as running:
        speeds = bench(surrogate, source, seconds=bench_seconds, seed=seed, progress=running.progress)
        write_json(output / "bench.json", speeds)
        ratio = speeds["speedup"]["tuned_over_fp32"]
        running.outcome = f"tuned is {ratio:.2f} times as fast as FP32" if ratio else "no ratio"

    cards = {}
    for label, name in (("FP32", "fp32.h5"), ("tuned", "tuned.h5")):
        with stage(f"Validate {label}") as running:
            card = validate(unseen, output / name, seed=seed, progress=running.progress)
            write_json(output / f"validate-{label.lower()}.json", card.to_dict())
            cards[label] = card
            running.outcome = card.verdict

    with stage("Report") as running:
        page = report(
            output / "reference.h5",
            cards,
            output / "report.html",
            surrogate=surrogate,
            bench=speeds,
            showers={"FP32": output / "fp32.h5", "tuned": output / "tuned.h5"},
            provenance={"Reference taken from": source, "Made by": f"minicarlo demo, seed {seed}"},
        )
        running.outcome = str(page)

    rates = {precision: _fastest(speeds["runs"], precision) for precision in ("fp32", "tuned")}
    result = DemoResult(
        report=page,
        seconds=time.monotonic() - began,
        surrogate=surrogate.manifest.name,
        reference_events=len(reference),
        accepted=tuned.accepted,
        int8_share=tuned.int8_share,
        events_per_second=rates,
        speedup=speeds["speedup"],
        verdict={label: card.verdict for label, card in cards.items()},
        cern_error={label: _score(card.cern_error) for label, card in cards.items()},
        trees_auc={label: _score(card.classifier.get("trees"), "auc")["value"] for label, card in cards.items()},
        stages=stages,
    )
    write_json(output / "demo.json", {"version": _FORMAT, **dataclasses.asdict(result), "report": str(page)})
    return result


class _Stage:
    """A running stage: its progress, and the line it leaves behind."""

    def __init__(self, progress: Callable[[int, int], None]) -> None:
        self.progress = progress
        self.outcome = ""


def _inside(events: EventSet, surrogate: Surrogate) -> EventSet:
    """The events whose energy the surrogate was trained for."""
    allowed = surrogate.manifest.conditions[ENERGY]
    chosen = events[(events.incident_energy >= allowed.low) & (events.incident_energy <= allowed.high)]
    if len(chosen) < _FEWEST:
        raise InvalidConfig(
            f"Only {len(chosen)} Monte Carlo events are inside the range {allowed.low:g} to {allowed.high:g} MeV of surrogate "
            f"{surrogate.manifest.name}; the demo needs {_FEWEST} or more. Give a larger sample."
        )
    return chosen


def _fresh(path: Path) -> Path:
    """The path, with what an earlier demo left there removed."""
    try:
        if path.is_dir() and (path / MANIFEST).exists():
            shutil.rmtree(path)
        elif path.is_dir():
            raise OutputError(
                f"Cannot write {path}: there is a folder of that name that minicarlo did not make. Choose another output folder."
            )
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise output_error(path, error) from error
    return path


def _fastest(runs: list[dict[str, Any]], precision: str) -> float:
    return max(float(run["events_per_second"]) for run in runs if run["precision"] == precision)


def _score(score: Any, key: str = "value") -> dict[str, float | None]:  # noqa: ANN401
    if score is None:
        return {"value": None, "error": None, "floor": None}
    return {"value": getattr(score, key), "error": score.error, "floor": score.floor}
