"""`minicarlo validate`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click

from minicarlo.cli._common import json_option, print_json, progress_bar, say
from minicarlo.errors import InvalidConfig
from minicarlo.files import write_json

_MEV = {"": 1e3, "MeV": 1.0, "GeV": 1e3, "TeV": 1e6}


def _print_schema(ctx: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        from minicarlo.fidelity import Scorecard

        print_json(Scorecard.model_json_schema())
        ctx.exit()


@click.command()
@click.argument("reference", type=click.Path(path_type=Path))
@click.argument("candidate", type=click.Path(path_type=Path))
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of resampling and classifiers.")
@click.option("--bootstrap", type=click.IntRange(10), default=100, show_default=True, help="Replicas for standard errors.")
@click.option("--permutations", type=click.IntRange(99), default=300, show_default=True, help="Permutations for verdicts.")
@click.option("--energy-bins", metavar="E0,E1,...", help="Edges in GeV of the bins of incident energy.  [default: logarithmic]")
@click.option(
    "--held-out",
    multiple=True,
    metavar="LOW:HIGH",
    help="Energies that training left out, such as 20:30 (GeV) or 500MeV:2GeV; compared with those beside.",
)
@click.option(
    "--tolerance",
    multiple=True,
    metavar="[NAME=]VALUE",
    help="Smallest difference to be found, in standard deviations, or of one observable.  [default: 0.1]",
)
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
@click.option(
    "--schema", is_flag=True, is_eager=True, expose_value=False, callback=_print_schema, help="Print the JSON schema of --json."
)
@json_option
def command(
    reference: Path,
    candidate: Path,
    seed: int,
    bootstrap: int,
    permutations: int,
    energy_bins: str | None,
    held_out: tuple[str, ...],
    tolerance: tuple[str, ...],
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
    from minicarlo.cli._scorecard import summary
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
            held_out=[_range(text) for text in held_out],
            tolerances=dict(_tolerance(text) for text in tolerance),
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
    click.echo(summary(card))
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


def _range(text: str) -> tuple[float, float]:
    """(low, high) in MeV from "20:30", "20GeV:30GeV", "500MeV:2GeV"."""
    parts = [re.fullmatch(r"\s*([0-9.eE+-]+)\s*(MeV|GeV|TeV|)\s*", part) for part in text.split(":")]
    try:
        low, high = (float(part[1]) * _MEV[part[2]] for part in parts if part)
    except ValueError:
        raise InvalidConfig(
            f"--held-out {text}: give LOW:HIGH in GeV, or with units, for example 20:30 or 500MeV:2GeV."
        ) from None
    return low, high


def _tolerance(text: str) -> tuple[str, float]:
    """("wasserstein", 0.05) from "0.05", ("linearity", 0.02) from "linearity=0.02"."""
    name, _, value = text.rpartition("=")
    try:
        return name or "wasserstein", float(value)
    except ValueError:
        raise InvalidConfig(f"--tolerance {text}: give a number, or an observable and a number (linearity=0.02).") from None
