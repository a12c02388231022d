"""`minicarlo simulate`."""

from __future__ import annotations

from pathlib import Path

import click

from minicarlo.cli._common import format_count, format_rate, format_seconds, json_option, print_json, progress_bar, say
from minicarlo.detectors import CLIC_ECAL


@click.command()
@click.option("-n", "--events", "n", type=int, help="Number of events.")
@click.option("--energy", required=True, help="Kinetic energy: 10GeV, 1GeV:100GeV:log or 1GeV:100GeV:uniform.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="One file if it ends in .h5, else a folder of shards.")
@click.option("--detector", default=CLIC_ECAL, show_default=True, help="clic-ecal, par04-siw, or a TOML file of yours.")
@click.option("--particle", default="e-", show_default=True, help="e-, e+ or gamma.")
@click.option("--theta", default="0deg", show_default=True, help="Angle to the normal: 30deg, 0deg:30deg or 0deg:30deg:cos.")
@click.option("--phi", default="0deg", show_default=True, help="Angle around the normal: 90deg or 0deg:360deg.")
@click.option("--seed", type=int, default=1, show_default=True, help="Event i of a seed is always the same.")
@click.option("-j", "--jobs", type=int, default=1, show_default=True, help="Processes that simulate at the same time.")
@click.option("--cut", "cut_mm", type=float, default=0.7, show_default=True, help="Production cut in mm.")
@click.option(
    "--physics",
    default="option0",
    show_default=True,
    help="Electromagnetic physics: option0 to option4, livermore, penelope, gs, wvi.",
)
@click.option("--simulator", default="geant4", show_default=True, help="Which Monte Carlo.")
@click.option("--shard-size", type=int, default=1000, show_default=True, help="Events per shard of a folder.")
@click.option("--draw", "picture", type=click.Path(path_type=Path), help="Draw the detector with the first shower, as PNG.")
@json_option
def command(
    n: int | None,
    energy: str,
    output: Path | None,
    detector: str,
    particle: str,
    theta: str,
    phi: str,
    seed: int,
    jobs: int,
    cut_mm: float,
    physics: str,
    simulator: str,
    shard_size: int,
    picture: Path | None,
    as_json: bool,
) -> None:
    """Simulate events with a reference Monte Carlo (Geant4).

    Needs minicarlo[geant4] and Geant4's data sets; see docs/geant4.md. A folder takes up an interrupted run of the same request.
    With --draw alone (no -n, no -o), only the picture is made.

    \b
    Example:
      minicarlo simulate -n 1000 --energy 1GeV:100GeV:log --seed 1 --jobs 4 -o geant4.h5
      minicarlo simulate -n 100000 --energy 10GeV --particle gamma --jobs 16 -o gammas/
      minicarlo simulate -n 1000 --energy 10GeV --theta 0deg:30deg --phi 0deg:360deg --detector my.toml -o inclined.h5
      minicarlo simulate --energy 10GeV --detector my.toml --draw my.png
    """
    from minicarlo.simulators import draw, simulate

    if picture is not None:
        draw(
            energy,
            output=picture,
            detector=detector,
            particle=particle,
            theta=theta,
            phi=phi,
            seed=seed,
            cut_mm=cut_mm,
            physics=physics,
            simulator=simulator,
        )
        say(f"Drew {picture}.")
        if n is None and output is None:
            if as_json:
                print_json({"path": picture})
            return
    if n is None or output is None:
        raise click.UsageError(f"Missing option '{'-n' if n is None else '-o'}'.")
    with progress_bar("Simulating", unit="showers", rate=True) as progress:
        result = simulate(
            n,
            energy,
            output=output,
            detector=detector,
            particle=particle,
            theta=theta,
            phi=phi,
            seed=seed,
            jobs=jobs,
            cut_mm=cut_mm,
            physics=physics,
            simulator=simulator,
            shard_size=shard_size,
            progress=progress,
        )
    if as_json:
        print_json(result)
    else:
        say(
            f"Wrote {format_count(result.events)} events to {result.path} in {format_seconds(result.seconds)} "
            f"({format_rate(result.events_per_second)} with {result.streams} jobs; one event takes "
            f"{format_seconds(result.seconds_per_event)} of a processor)."
        )
