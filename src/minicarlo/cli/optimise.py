"""`minicarlo optimise`."""

from __future__ import annotations

from pathlib import Path

import click

from minicarlo.cli._common import format_seconds, json_option, key_values, print_json, progress_bar, table


@click.command()
@click.argument("surrogate")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="New directory for the surrogate.")
@click.option(
    "--objective",
    type=click.Choice(["time", "macs"]),
    default="time",
    show_default=True,
    help="Choose by measured time or by multiply-accumulates.",
)
@json_option
def command(surrogate: str, output: Path, objective: str, as_json: bool) -> None:
    """Rewrite a surrogate's graph into a faster one that computes the same showers.

    SURROGATE is a directory or the name of a shipped one. Each rewrite is checked against the given graph and timed on this
    machine, and kept if it pays. Tune the result, not the original: a tuned model does not carry over.

    \b
    Example:
      minicarlo optimise my-surrogate -o my-surrogate-fast
      minicarlo tune my-surrogate-fast -o my-surrogate-tuned
    """
    from minicarlo.precision.rewriting import optimise

    with progress_bar("Rewriting", unit="graphs") as progress:
        result = optimise(surrogate, output, objective="time" if objective == "time" else "macs", progress=progress)
    if as_json:
        print_json(result.to_dict())
        return
    rows: list[tuple[str, ...]] = [
        (a.kind, a.target, f"{a.speedup:.2f}", f"{a.deviation:.1e}", "yes" if a.kept else "no") for a in result.attempts
    ]
    click.echo(table(rows, ("rewrite", "of", "speed", "deviation", "kept")) if rows else "This graph offers no rewrite.")
    click.echo()
    facts: dict[str, object] = {f"speed in {form}": f"{value:.2f} times" for form, value in result.speedup.items()}
    facts |= {
        "multiply-accumulates": f"{result.macs_before / 1e6:.1f} million, now {result.macs_after / 1e6:.1f} million",
        "deviation": f"{result.deviation:.1e} of a shower's largest cell",
        "time": format_seconds(result.seconds),
        "surrogate": result.path,
    }
    for layer, formats in result.wrong_kernels.items():
        facts[f"wrong on this machine: {layer}"] = ", ".join(formats)
    click.echo(key_values(facts))
