"""`minicarlo generate`."""

from __future__ import annotations

from pathlib import Path

import click

from minicarlo.cli._common import format_count, format_rate, format_seconds, json_option, print_json, progress_bar, say


@click.command()
@click.argument("surrogate")
@click.option("-n", "events", type=int, help="Number of events; all of --conditions by default.")
@click.option("--energy", help="10GeV, 1GeV:100GeV:log or 1GeV:100GeV:uniform. Default: log over the trained range.")
@click.option(
    "--conditions",
    type=click.Path(path_type=Path),
    help="Event set, or CSV with a column incident_energy (MeV), used event by event.",
)
@click.option("--seed", type=int, default=1, show_default=True, help="Event i of a seed is always the same.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="A file ending in .h5, or a folder for shards."
)
@click.option("--precision", type=click.Choice(["fp32", "bf16", "tuned"]), help="Default: tuned if the surrogate is, else fp32.")
@click.option("--engine", default="openvino", show_default=True, help="NAME or NAME:DEVICE; `minicarlo engines` lists them.")
@click.option("--streams", type=int, help="Inferences at once. Default: measured once on this machine.")
@click.option("--threads", type=int, help="Threads of each stream. Default: measured.")
@click.option("--batch", type=int, help="Events per inference. Default: measured.")
@click.option("--shard-size", type=int, default=10_000, show_default=True, help="Events in a shard.")
@click.option("--mantissa-bits", type=int, help="Round energies to so many bits: smaller files. Default: exact float32.")
@click.option("--cluster", help="Dask workers: local[:N], ssh:HOST,HOST, slurm[:N], htcondor[:N], tcp:// or tls://HOST:PORT.")
@click.option("--overwrite", is_flag=True, help="Replace what another request made at --output.")
@json_option
def command(
    surrogate: str,
    events: int | None,
    energy: str | None,
    conditions: Path | None,
    seed: int,
    output: Path,
    precision: str | None,
    engine: str,
    streams: int | None,
    threads: int | None,
    batch: int | None,
    shard_size: int,
    mantissa_bits: int | None,
    overwrite: bool,
    cluster: str | None,
    as_json: bool,
) -> None:
    """Generate events with a surrogate.

    SURROGATE is a directory or the name of a shipped one (clic-ecal). The same seed gives the same files whatever --streams,
    --threads and --batch are. A run that was killed is completed by the same command.

    \b
    Example:
      minicarlo generate clic-ecal -n 10000 --energy 1GeV:100GeV:log -o showers.h5
      minicarlo generate clic-ecal -n 10000000 --seed 7 -o showers/
      minicarlo generate clic-ecal -n 100000000 --cluster slurm:50 -o showers/
      minicarlo generate ./my-surrogate --conditions geant4.h5 --precision fp32 -o fp32.h5
      minicarlo generate clic-ecal -n 10000 --engine onnxruntime -o onnxruntime.h5
    """
    from minicarlo.generation import generate
    from minicarlo.surrogate import Surrogate

    with progress_bar("Generating", unit="events") as progress:
        result = generate(
            surrogate,
            events,
            energy,
            conditions=conditions,
            seed=seed,
            output=output,
            precision=precision,
            engine=engine,
            streams=streams,
            threads=threads,
            batch=batch,
            shard_size=shard_size,
            mantissa_bits=mantissa_bits,
            overwrite=overwrite,
            cluster=cluster,
            progress=progress,
        )
    if as_json:
        print_json(result)
        return
    resumed = f", {format_count(result.resumed)} of them there already" if result.resumed else ""
    rate = ""
    if result.events_per_second is not None:
        rate = f" in {format_seconds(result.seconds)}, {format_rate(result.events_per_second)}"
    say(
        f"Wrote {format_count(result.events)} events{resumed} to {result.path}{rate} "
        f"({result.precision}, {result.streams} x {result.threads} threads, batch {result.batch})."
    )
    unused = precision is None and result.precision == "fp32" and "tuned" in Surrogate.load(surrogate).precisions
    if unused and engine == "openvino":
        say("The tuned model is not computed right on this processor and was not used: `minicarlo tune` makes one that is.")
