"""`minicarlo simulate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from minicarlo.cli._common import format_count, format_rate, format_seconds, json_option, print_json, progress_bar, say
from minicarlo.detectors import CLIC_ECAL


@click.command()
@click.option("-n", "--events", "n", type=int, help="Number of events.")
@click.option("--energy", help="Kinetic energy: 10GeV, 1GeV:100GeV:log or 1GeV:100GeV:uniform.")
@click.option(
    "--conditions",
    type=click.Path(path_type=Path),
    help="Instead of an energy: CSV with a line per particle (event, particle, energy, x, y, theta, phi), or an event set.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="One file if it ends in .h5, else a folder of shards.")
@click.option("--detector", help="clic-ecal, par04-siw, or a TOML file of yours. Default: clic-ecal, or that of --fast.")
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
@click.option("--cluster", help="Dask workers: local[:N], ssh:HOST,HOST, slurm[:N], htcondor[:N], tcp:// or tls://HOST:PORT.")
@click.option("--overwrite", is_flag=True, help="Replace what is at --output.")
@click.option("--fast", help="Surrogate that makes the showers it was trained for; Geant4 tracks the rest.")
@click.option("--precision", type=click.Choice(["fp32", "bf16", "tuned"]), help="Of --fast. Default: tuned if it is, else fp32.")
@click.option("--fast-particles", help="Whose showers --fast makes: e-,e+. Default: what it was trained on.")
@click.option("--fast-above", help="Energy from which --fast is used. Default: all it was trained for.")
@click.option("--fast-offset", type=float, help="Largest distance of an entry from a cell's centre, in cells.  [default: 0.05]")
@click.option("--fast-angle", help="Largest angle to the normal.  [default: 0.25deg]")
@click.option("--draw", "picture", type=click.Path(path_type=Path), help="Draw the detector with the first shower, as PNG.")
@json_option
def command(
    n: int | None,
    energy: str | None,
    conditions: Path | None,
    output: Path | None,
    detector: str | None,
    particle: str,
    theta: str,
    phi: str,
    seed: int,
    jobs: int,
    cut_mm: float,
    physics: str,
    simulator: str,
    shard_size: int,
    cluster: str | None,
    overwrite: bool,
    fast: str | None,
    precision: str | None,
    fast_particles: str | None,
    fast_above: str | None,
    fast_offset: float | None,
    fast_angle: str | None,
    picture: Path | None,
    as_json: bool,
) -> None:
    """Simulate events with a reference Monte Carlo (Geant4).

    Needs minicarlo[geant4] and Geant4's data sets; see docs/geant4.md. An interrupted run is completed by the same command.
    With --draw alone (no -n, no -o), only the picture is made.

    \b
    Example:
      minicarlo simulate -n 1000 --energy 1GeV:100GeV:log --seed 1 --jobs 4 -o geant4.h5
      minicarlo simulate -n 100000 --energy 10GeV --particle gamma --jobs 16 -o gammas/
      minicarlo simulate -n 1000 --energy 10GeV --theta 0deg:30deg --phi 0deg:360deg --detector my.toml -o inclined.h5
      minicarlo simulate --energy 10GeV --detector my.toml --draw my.png
      minicarlo simulate -n 100000 --energy 1GeV:100GeV --fast clic-ecal --jobs 4 -o fast/
      minicarlo simulate --conditions particles.csv --fast clic-ecal -o fast.h5
    """
    from minicarlo.simulators import draw, simulate

    if energy is None and conditions is None:
        raise click.UsageError("Missing option '--energy' or '--conditions'.")
    if energy is None and picture is not None:
        raise click.UsageError("Option '--draw' needs '--energy'.")
    options: dict[str, Any] = {
        "precision": precision,
        "particles": tuple(name.strip() for name in fast_particles.split(",")) if fast_particles else None,
        "above": fast_above,
        "offset": fast_offset,
        "angle": fast_angle,
    }
    given = {name: value for name, value in options.items() if value is not None}
    parameterisation = None
    if fast is not None:
        from minicarlo.hybrid import SurrogateShowers

        parameterisation = SurrogateShowers(fast, **given)
    elif given:
        raise click.UsageError("The precision and what takes the fast path are those of '--fast', which is missing.")
    detector = detector or (CLIC_ECAL if parameterisation is None else parameterisation.detector.name)
    if picture is not None and energy is not None:
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
        if n is None and conditions is None and output is None:
            if as_json:
                print_json({"path": picture})
            return
    if n is None and conditions is None:
        raise click.UsageError("Missing option '-n'.")
    if output is None:
        raise click.UsageError("Missing option '-o'.")
    with progress_bar("Simulating", unit="showers", rate=True) as progress:
        result = simulate(
            n,
            energy,
            output=output,
            conditions=conditions,
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
            cluster=cluster,
            overwrite=overwrite,
            parameterisation=parameterisation,
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
        if result.fast is not None:
            say(_fates(result.fast))


def _fates(fast: dict[str, float]) -> str:
    tracked = {name.removeprefix("tracked_for_"): count for name, count in fast.items() if name.startswith("tracked") and count}
    reasons = ", ".join(f"{format_count(int(count))} for their {name}" for name, count in tracked.items()) or "none"
    taken = f"{format_count(int(fast['fast_particles']))} particles with {fast['energy_fraction']:.1%} of the energy"
    return f"{taken} took the fast path; tracked: {reasons}."
