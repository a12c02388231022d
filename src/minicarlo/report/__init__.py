"""Plots and pages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minicarlo.detectors import get_detector
from minicarlo.errors import InvalidConfig
from minicarlo.events import ENERGY, EventSet, events_info
from minicarlo.fidelity import Scorecard, validate
from minicarlo.files import atomic_path, check_writable
from minicarlo.report.contents import Plot
from minicarlo.report.display import make_display
from minicarlo.report.export import write_figures
from minicarlo.report.inputs import History, history_of, read_bench, read_json, read_scorecard, tuning_of
from minicarlo.report.names import gev
from minicarlo.report.overview import overview
from minicarlo.report.page import render
from minicarlo.report.sections import sections
from minicarlo.surrogate import Surrogate

__all__ = ["report"]

_MOST = 6  # as many as there are colours that everyone can tell apart


def report(
    reference: Path | str | EventSet,
    candidates: Mapping[str, Path | str | EventSet | Scorecard],
    output: Path | str,
    *,
    surrogate: Surrogate | Path | str | None = None,
    tuning: Mapping[str, Any] | Path | str | None = None,
    bench: Mapping[str, Any] | Path | str | None = None,
    showers: Mapping[str, Path | str | EventSet] | None = None,
    figures: Path | str | None = None,
    seed: int = 0,
    provenance: Mapping[str, object] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write one self-contained HTML page that compares candidates with a reference.

    Arguments:
        reference: event set of the Monte Carlo.
        candidates: label to event set, or to a scorecard that `validate` has made with the same reference, or to the JSON file
            of one; at most six.
            The verdict on top of the page is that of the last one. The labels `FP32` and `tuned` match the runs of `bench`.
        output: the HTML file.
        surrogate: where the candidates come from; when it is tuned, its plan and history are shown.
        tuning: result of `tune`, or the file of its `--json`; default: what the surrogate carries.
        bench: result of `bench`, or the file of its `--json`.
        showers: label to event set, whose single showers are displayed; default: the candidates that are event sets.
        figures: folder for every figure as PDF and PNG, and all of them in `figures.pdf`.
        seed: of the bootstrap.
        provenance: more rows for the last section.
        progress: called with (done, total) candidates.

    Returns the path of the page. Raises InvalidConfig, InvalidEventSet, IncompatibleEventSets, InvalidSurrogate, OutputError.
    """
    if not 1 <= len(candidates) <= _MOST:
        raise InvalidConfig(f"A report compares 1 to {_MOST} candidates with the reference; {len(candidates)} were given.")
    output = Path(output)
    check_writable(output)
    if surrogate is not None and not isinstance(surrogate, Surrogate):
        surrogate = Surrogate.load(surrogate)
    history = History()
    if surrogate is not None:
        tuning = tuning_of(surrogate) if tuning is None else tuning
        history = history_of(surrogate)
    if isinstance(tuning, str | Path):
        tuning = read_json(tuning)
    if isinstance(bench, str | Path):
        bench = read_bench(bench)

    about = _about(reference)
    cards = {}
    for done, (label, candidate) in enumerate(candidates.items()):
        if progress is not None:
            progress(done, len(candidates))
        cards[label] = _card(reference, candidate, seed)
    if progress is not None:
        progress(len(candidates), len(candidates))
    _check_alike(cards)

    detector = get_detector(about["detector"])
    name = _reference_name(about["attributes"])
    energies = about["conditions"][ENERGY]
    what = surrogate.manifest.name if surrogate is not None else ", ".join(candidates)
    sizes = [f"{card.candidate.events:,} of {label}" for label, card in cards.items()]
    lead = (
        f"{about['count']:,} {name} showers at {gev(energies['low'])} to {gev(energies['high'])} GeV in "
        f"{detector.name} ({detector.description}), compared with {_and(sizes)}."
    )
    hero = Plot("All observables, farthest first", overview(cards, name))
    parts = sections(cards, name, tuning, history, bench)
    showers = _event_sets(candidates) if showers is None else showers
    html = render(
        cards,
        hero,
        parts,
        title=f"{'Surrogate ' * (surrogate is not None)}{what} against {name}",
        lead=lead,
        reference=name,
        tuning=tuning,
        bench=bench,
        display=make_display(reference, showers, name=name) if showers else None,
        provenance={**_provenance(reference, candidates, about, surrogate), **(provenance or {})},
    )
    with atomic_path(output) as temporary:
        temporary.write_text(html, encoding="utf-8")
    if figures is not None:
        write_figures(Path(figures), hero, parts)
    return output


def _card(reference: Path | str | EventSet, candidate: Path | str | EventSet | Scorecard, seed: int) -> Scorecard:
    if isinstance(candidate, Scorecard):
        return candidate
    if not isinstance(candidate, EventSet) and Path(candidate).suffix == ".json":
        return read_scorecard(candidate)
    return validate(reference, candidate, seed=seed)


def _event_sets(candidates: Mapping[str, Path | str | EventSet | Scorecard]) -> dict[str, Path | str | EventSet]:
    return {
        label: candidate
        for label, candidate in candidates.items()
        if isinstance(candidate, EventSet) or (isinstance(candidate, Path | str) and Path(candidate).suffix != ".json")
    }


def _check_alike(cards: Mapping[str, Scorecard]) -> None:
    """All must come from one reference: the report draws it once."""

    def shape(card: Scorecard) -> tuple[object, ...]:
        layers = {name: len(score.layers) for name, score in card.observables.items() if score.layers}
        profiles = {name: len(profile.x) for name, profile in card.profiles.items()}
        return card.detector, card.reference.events, card.reference.low_mev, card.reference.high_mev, layers, profiles

    first, *others = cards
    for label in others:
        if shape(cards[label]) != shape(cards[first]):
            raise InvalidConfig(
                f"Candidates {first} and {label} were compared with different references. Validate both with the same one, "
                "and the same version of minicarlo."
            )


def _about(reference: Path | str | EventSet) -> dict[str, Any]:
    if not isinstance(reference, EventSet):
        return events_info(reference)
    energy = reference.incident_energy
    return {
        "count": len(reference),
        "detector": reference.detector,
        "conditions": {ENERGY: {"low": float(np.min(energy)), "high": float(np.max(energy))}},
        "attributes": reference.attributes,
    }


def _reference_name(attributes: Mapping[str, Any]) -> str:
    made_by = str(attributes.get("generator", ""))
    return "Geant4" if made_by.startswith("Geant4") else "reference"


def _provenance(
    reference: Path | str | EventSet,
    candidates: Mapping[str, object],
    about: Mapping[str, Any],
    surrogate: Surrogate | None,
) -> dict[str, object]:
    rows: dict[str, object] = {"Reference": "in memory" if isinstance(reference, EventSet) else reference}
    shown = ("generator", "particle", "physics", "production_cut_mm", "energy_distribution", "seed")
    rows |= {f"Reference: {name.replace('_', ' ')}": about["attributes"][name] for name in shown if name in about["attributes"]}
    rows |= {f"Candidate {label}": value for label, value in candidates.items() if isinstance(value, str | Path)}
    if surrogate is not None:
        manifest = surrogate.manifest
        rows |= {"Surrogate": manifest.name, "Network": manifest.generator, "Surrogate digest (SHA-256)": surrogate.hash}
        rows |= {
            f"Training: {name}": value
            for name, value in list(manifest.training.items())[:12]
            if isinstance(value, str | int | float)
        }
    return rows


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
