"""`minicarlo info`."""

from __future__ import annotations

from typing import Any

import click

from minicarlo.cli._common import format_count, json_option, key_values, print_json


@click.command()
@click.argument("path")
@json_option
def command(path: str, as_json: bool) -> None:
    """Show what a surrogate or an event set holds, after checking that it is intact.

    PATH is a surrogate's directory, the name of a shipped surrogate, or an event set (a file or a directory of shards).

    \b
    Example:
      minicarlo info clic-ecal
      minicarlo info showers.h5 --json
    """
    from minicarlo.surrogate import info

    found = info(path)
    if as_json:
        print_json(found)
    else:
        click.echo(key_values(_rows(found)))


def _rows(found: dict[str, Any]) -> dict[str, object]:
    rows: dict[str, object] = {"kind": found["kind"], "path": found["path"], "detector": found["detector"]}
    for name, allowed in found["conditions"].items():
        rows[name] = "none" if allowed["low"] is None else f"{allowed['low']:g} to {allowed['high']:g} {allowed['unit']}".rstrip()
    rows["sample"] = f"{' x '.join(map(str, found['sample_shape']))}, {found['unit']}"
    if found["kind"] == "events":
        rows["events"] = format_count(found["count"])
        rows |= found["attributes"]
        return rows
    rows |= {"name": found["name"], "generator": found["generator"], "latents": found["latent_size"]}
    rows["precisions"] = ", ".join(found["precisions"])
    plan = found["plan"] or {"plan": {}, "ran": {}}
    for layer, form in plan["plan"].items():
        ran = plan["ran"].get(layer, form)
        rows[f"  {layer}"] = form if ran == form else f"{form} (ran in {ran})"
    for part in ("training", "fidelity", "speed", "graph"):
        simple = {name: value for name, value in (found[part] or {}).items() if not isinstance(value, dict | list)}
        rows |= {f"{part}.{name}": value for name, value in simple.items()}
    rows["hash"] = found["hash"]
    return rows
