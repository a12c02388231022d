"""`minicarlo bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from minicarlo.cli._common import format_number, format_with_error, json_option, print_json, progress_bar, say, table
from minicarlo.errors import TuningError
from minicarlo.generation.settings import LARGEST_DEVIATION

if TYPE_CHECKING:
    from minicarlo.generation.settings import Objective
    from minicarlo.precision import PlannedModel
    from minicarlo.surrogate import Surrogate

_SENTENCES = {
    "tuned_over_fp32": "tuned over FP32",
    "bf16_over_fp32": "BF16 over FP32",
    "int8_over_fp32": "all-INT8 over FP32",
    "streams": "many streams over one",
    "over_simulator": "over the simulator, core for core",
}


@click.command()
@click.argument("surrogate")
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    help="Event set that records its simulator's cost. Default: the shipped sample.",
)
@click.option("--seconds", type=float, default=20.0, show_default=True, help="Time for the measurement itself.")
@click.option("--energy", help="Energies to generate at, e.g. 10GeV. Default: those of --against.")
@click.option("--streams", type=int, help="How many streams 'many' are. Default: the usable cores.")
@click.option("--batch", type=int, help="Events per inference. Default: measured.")
@click.option("--engine", default="openvino", show_default=True, help="NAME or NAME:DEVICE; `minicarlo engines` lists them.")
@click.option("--int8/--no-int8", default=True, show_default=True, help="Also measure the network with every layer in INT8.")
@click.option("--sweep", "sweeping", is_flag=True, help="Also measure against batch and streams, for as long again.")
@click.option(
    "--objective",
    type=click.Choice(["throughput", "latency"]),
    default="throughput",
    show_default=True,
    help="What --sweep is about: many showers per second, or one shower soon.",
)
@json_option
def command(
    surrogate: str,
    against: Path | None,
    seconds: float,
    energy: str | None,
    streams: int | None,
    batch: int | None,
    engine: str,
    int8: bool,
    sweeping: bool,
    objective: Objective,
    as_json: bool,
) -> None:
    """Measure how fast a surrogate is in every precision, as ratios from one interleaved run.

    Showers per second on one stream and on many, milliseconds for a single shower, and the gain over the simulator.
    Writing to disk is not part of it. Time on a quiet machine.

    \b
    Example:
      minicarlo bench clic-ecal
      minicarlo bench ./tuned --against geant4.h5 --seconds 60 --json
      minicarlo bench clic-ecal --engine onnxruntime --sweep
      minicarlo bench clic-ecal --sweep --objective latency
    """
    from minicarlo.generation import bench, sweep
    from minicarlo.surrogate import Surrogate

    loaded = Surrogate.load(surrogate)
    everything = _all_int8(loaded) if int8 and engine.partition(":")[0] == "openvino" else None
    with progress_bar("Measuring", unit="rounds") as progress:
        result = bench(
            loaded,
            against,
            seconds=seconds,
            energy=energy,
            streams=streams,
            batch=batch,
            engine=engine,
            int8=everything,
            progress=progress,
        )
    if sweeping:
        with progress_bar("Sweeping", unit="rounds") as progress:
            result["sweep"] = sweep(loaded, seconds=seconds, energy=energy, engine=engine, objective=objective, progress=progress)
    if as_json:
        print_json(result)
    else:
        click.echo(_text(result))


def _all_int8(surrogate: Surrogate) -> PlannedModel | None:
    """The fastest plan there is, whatever it does to accuracy: how far tuning could go. None when no layer can be quantised."""
    from minicarlo.precision import surrogate_quantizer
    from minicarlo.precision.audit import all_int8

    say("Quantising every layer, to measure how fast that would be.")
    try:
        quantizer = surrogate_quantizer(surrogate, 256, seed=0)
    except TuningError:
        return None
    return quantizer.apply(all_int8(quantizer))


def _text(result: dict[str, Any]) -> str:
    rows: list[tuple[str, ...]] = [
        (
            run["precision"],
            str(run["streams"]),
            str(run["batch"]),
            f"{format_number(run['events_per_second'])} +- {format_number(run['spread'], 2)}",
            format_number(run["milliseconds_batch_1"]),
        )
        for run in result["runs"]
    ]
    lines = [table(rows, ("precision", "streams", "batch", "showers/s", "ms at batch 1")), ""]
    if swept := result.get("sweep"):
        best = max(swept, key=lambda point: float(point["events_per_second"]))
        rate = format_with_error(best["events_per_second"], best["spread"])
        shape = f"{best['streams']} streams of {best['threads']}"
        lines.append(f"sweep: {best['precision']} with batch {best['batch']} on {shape} threads, {rate} showers/s")
        for precision in dict.fromkeys(point["precision"] for point in swept):
            points = [point for point in swept if point["precision"] == precision]
            (chosen,) = (float(point["events_per_second"]) for point in points if point["chosen"])
            share = chosen / max(float(point["events_per_second"]) for point in points)
            lines.append(f"the setting found by search has {share:.0%} of the best rate of the sweep in {precision}")
    for name, sentence in _SENTENCES.items():
        if result["speedup"].get(name) is not None:
            lines.append(f"{sentence}: {format_with_error(result['speedup'][name], result['speedup_spread'][name])}")
    broken = {run["precision"]: run["deviation"] for run in result["runs"] if run["deviation"] > LARGEST_DEVIATION}
    for name, change in broken.items():
        lines.append(f"Warning: {name} computes wrong values on this processor, layer energies change by {change:.0%}.")
    return "\n".join([*lines, f"on {result['machine']['processor']}, {result['machine']['cores']} cores"])
