"""`minicarlo engines`."""

from __future__ import annotations

import click

from minicarlo.cli._common import json_option, print_json, table


@click.command()
@json_option
def command(as_json: bool) -> None:
    """List the engines that can run a surrogate on this machine: version, device, number formats.

    What is not offered is listed with the reason. Give an engine to `generate` and `bench` as NAME or NAME:DEVICE.

    \b
    Example:
      minicarlo engines
      minicarlo generate clic-ecal -n 1000 --engine onnxruntime -o showers.h5
    """
    from minicarlo.engines import engines

    offers = engines()
    if as_json:
        print_json({"engines": offers})
        return
    rows: list[tuple[str, ...]] = [
        (o.engine, o.device, o.version or "-", ", ".join(o.formats), o.hardware or "") for o in offers if o.formats
    ]
    click.echo(table(rows, ("engine", "device", "version", "formats", "hardware")))
    click.echo("\nNot offered here:")
    missing: dict[tuple[str, str], list[str]] = {}
    for offer in offers:
        if offer.reason is not None:
            missing.setdefault((offer.engine, offer.reason), []).append(offer.device)
    for (engine, reason), devices in missing.items():
        click.echo(f"{engine} on {', '.join(devices)}: {reason}.")
