"""`minicarlo validate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from minicarlo.cli._common import (
    format_count,
    format_number,
    format_seconds,
    format_with_error,
    json_option,
    print_json,
    progress_bar,
    say,
    table,
)
from minicarlo.errors import InvalidConfig
from minicarlo.files import write_json

if TYPE_CHECKING:
    from minicarlo.fidelity.scorecard import EnergyBin, Score, Scorecard


@click.command()
@click.argument("reference", type=click.Path(path_type=Path))
@click.argument("candidate", type=click.Path(path_type=Path))
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of resampling and classifiers.")
@click.option("--bootstrap", type=click.IntRange(10), default=100, show_default=True, help="Replicas for standard errors.")
@click.option("--permutations", type=click.IntRange(99), default=300, show_default=True, help="Permutations for verdicts.")
@click.option("--energy-bins", metavar="E0,E1,...", help="Edges in GeV of the bins of incident energy.  [default: logarithmic]")
@click.option("--threshold", type=float, help="Cells at or below (MeV) do not count.  [default: the detector's]")
@click.option("--fast", is_flag=True, help="Leave out classifiers, FPD and KPD.")
@click.option(
    "--classifier",
    "classifiers",
    multiple=True,
    metavar="NAME",
    help="Train this one: high, trees; with PyTorch dnn-high, low, cnn. Several times for several.  [default: high, trees]",
)
@click.option("--classifier-seeds", type=int, help="Trainings of each, 1 to 5.  [default: 3 of high and trees, 1 of others]")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Also write the scorecard to this JSON file.")
@json_option
def command(
    reference: Path,
    candidate: Path,
    seed: int,
    bootstrap: int,
    permutations: int,
    energy_bins: str | None,
    threshold: float | None,
    fast: bool,
    classifiers: tuple[str, ...],
    classifier_seeds: int | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Compare an event set with a reference: every observable, with uncertainty, floor and verdict.

    REFERENCE and CANDIDATE are event sets (a file or a directory of shards) with the same distribution of incident energies.

    \b
    Example:
      minicarlo validate geant4.h5 showers.h5
      minicarlo validate geant4.h5 showers.h5 --json > scorecard.json
      minicarlo validate geant4.h5 showers.h5 --classifier low --classifier cnn
    """
    from minicarlo.fidelity import validate
    from minicarlo.fidelity.classifiers import DEFAULT

    with progress_bar("Validating", unit="%") as progress:
        card = validate(
            reference,
            candidate,
            seed=seed,
            bootstrap=bootstrap,
            permutations=permutations,
            energy_bins=_edges(energy_bins),
            threshold_mev=threshold,
            classifiers=classifiers or (() if fast else DEFAULT),
            classifier_seeds=classifier_seeds,
            feature_distances=not fast,
            progress=progress,
        )
    if output is not None:
        write_json(output, card.to_dict())
    if as_json:
        print_json(json.loads(json.dumps(card.to_dict(), allow_nan=False)))
        return
    click.echo(_summary(card))
    for warning in card.warnings:
        say(f"Warning: {warning}")


def _edges(text: str | None) -> list[float] | None:
    """Edges in MeV from "1,10,100" GeV."""
    if text is None:
        return None
    try:
        return [1000 * float(part) for part in text.split(",")]
    except ValueError:
        raise InvalidConfig(f"--energy-bins {text}: give edges in GeV separated by commas, for example 1,3,10,30,100.") from None


def _summary(card: Scorecard) -> str:
    """The scorecard as text."""
    rows: list[tuple[str, ...]] = []
    for name, score in card.observables.items():
        found = [score.separation_power, score.wasserstein if score.wasserstein else score.deviation]
        rows.append((name, *(cell for part in found for cell in _cells(part)), format_number(score.p_value), score.verdict))
    head = ("observable", "separation", "floor", "Wasserstein*", "floor", "p", "verdict")
    whole: list[tuple[str, ...]] = [
        ("CERN figure", *_cells(card.cern_error)),
        ("FPD", *_cells(card.fpd)),
        ("KPD", *_cells(card.kpd)),
    ]
    whole += [
        (f"classifier AUC, {name}", format_with_error(score.auc, score.error), format_number(score.floor))
        for name, score in card.classifier.items()
        if score is not None
    ]
    energies: list[tuple[str, ...]] = [
        (f"{format_number((one.low or 0) / 1000)} - {format_number((one.high or 0) / 1000)}", _ratio(one), _ratio(two))
        for one, two in zip(card.response, card.resolution, strict=True)
    ]
    differing = f": {', '.join(card.differing[:6])}{' ...' if len(card.differing) > 6 else ''}" if card.differing else ""
    return "\n\n".join(
        [
            table(rows, head),
            "* in standard deviations of the reference; for linearity to correlation the mean relative deviation",
            table(whole, ("of the whole", "value", "floor")),
            table(energies, ("energy [GeV]", "response / reference", "resolution / reference")),
            f"{format_count(card.candidate.events)} events against {format_count(card.reference.events)}, "
            f"{format_seconds(card.seconds or 0.0)}.\n{card.verdict.capitalize()}{differing}",
        ]
    )


def _cells(score: Score | None) -> tuple[str, str]:
    return ("-", "-") if score is None else (format_with_error(score.value, score.error), format_number(score.floor))


def _ratio(entry: EnergyBin) -> str:
    return format_with_error(entry.ratio, entry.error)
