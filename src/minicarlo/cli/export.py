"""`minicarlo export`."""

from __future__ import annotations

from pathlib import Path

import click

from minicarlo.cli._common import format_bytes, format_count, json_option, print_json, progress_bar, say


@click.command()
@click.argument("source", metavar="SURROGATE|TUNED|EVENTS")
@click.option(
    "--to",
    "target",
    type=click.Choice(["par04", "onnx-qdq", "points", "parquet", "root"]),
    required=True,
    help="A surrogate for Geant4's example Par04; what was tuned for ONNX Runtime, its int8 layers as QuantizeLinear and "
    "DequantizeLinear; events as point clouds (showerdata), Parquet or ROOT.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The file; a graph's ends in .onnx.")
@click.option("--max-energy", default="1024GeV", show_default=True, help="Par04's E_max, by which it divides energies.")
@json_option
def command(source: str, target: str, output: Path, max_energy: str, as_json: bool) -> None:
    """Write a surrogate, a tuned network or an event set as another program loads it.

    For Par04, SURROGATE must be of a detector with a cylindrical grid; a macro with Par04's commands is written beside the graph.
    TUNED is what `minicarlo tune` wrote, of a surrogate or of any other network: int8 layers keep their very scales, all others
    are float32. EVENTS is an event set, a file or a folder of shards: its cells with energy are written.

    \b
    Example:
      minicarlo export ./my-surrogate --to par04 -o Generator.onnx
      minicarlo export ./my-surrogate-tuned --to onnx-qdq -o generator.onnx
      minicarlo export showers/ --to parquet -o showers.parquet
    """
    if target == "onnx-qdq":
        _portable(source, output, as_json)
        return
    if target != "par04":
        _convert(source, target, output, as_json)
        return
    from minicarlo.generation.par04 import export
    from minicarlo.sampling import EnergyDistribution

    result = export(source, output, max_energy_mev=EnergyDistribution.parse(max_energy).high_mev)
    if as_json:
        print_json(result)
    else:
        say(f"Wrote {result.path} for a mesh of {' x '.join(map(str, result.mesh))} cells in r, phi, z, and {result.macro}.")


def _portable(source: str, output: Path, as_json: bool) -> None:
    from minicarlo.precision.portable import export_qdq

    result = export_qdq(source, output)
    if as_json:
        print_json(result)
        return
    bf16 = f", {result.bf16} of them bf16 in the plan" if result.bf16 else ""
    say(
        f"Wrote {result.path}: {result.int8} layers in int8, {result.fp32} in float32{bf16}. "
        f"It differs from the tuned model by {result.deviation:.1g}."
    )


def _convert(source: str, target: str, output: Path, as_json: bool) -> None:
    from minicarlo.formats import convert

    with progress_bar("Converting", unit="events") as progress:
        result = convert(source, output, target, progress=progress)
    if as_json:
        print_json(result)
    else:
        say(f"Wrote {format_count(result.events)} events to {result.path} ({format_bytes(result.bytes)}).")
