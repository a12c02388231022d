"""`minicarlo export`."""

from __future__ import annotations

from pathlib import Path

import click

from minicarlo.cli._common import json_option, print_json, say


@click.command()
@click.argument("surrogate")
@click.option("--to", "target", type=click.Choice(["par04"]), required=True, help="Who will load it: Geant4's example Par04.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The graph, ending in .onnx.")
@click.option("--max-energy", default="1024GeV", show_default=True, help="Par04's E_max, by which it divides energies.")
@json_option
def command(surrogate: str, target: str, output: Path, max_energy: str, as_json: bool) -> None:
    """Write a surrogate as another program loads it.

    SURROGATE must be of a detector with a cylindrical grid. A macro with Par04's commands is written beside the graph.

    \b
    Example:
      minicarlo export ./my-surrogate --to par04 -o Generator.onnx
    """
    from minicarlo.generation.par04 import export
    from minicarlo.sampling import EnergyDistribution

    result = export(surrogate, output, max_energy_mev=EnergyDistribution.parse(max_energy).high_mev)
    if as_json:
        print_json(result)
    else:
        say(f"Wrote {result.path} for a mesh of {' x '.join(map(str, result.mesh))} cells in r, phi, z, and {result.macro}.")
