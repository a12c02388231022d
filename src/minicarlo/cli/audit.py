"""`minicarlo audit`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from minicarlo.cli._common import format_number, json_option, print_json, progress_bar, table

if TYPE_CHECKING:
    from minicarlo.precision.audit import KernelCheck


@click.command()
@click.argument("model")
@click.option("--formats", default="int8,bf16", show_default=True, help="Formats to check.")
@click.option(
    "--inputs",
    type=click.Path(path_type=Path),
    help="Arrays for a network that is no surrogate (.npz, events first).  [default: unit normal]",
)
@click.option("--batch", type=int, help="Events of one inference, for a network that is no surrogate.  [default: 64]")
@click.option("--calibration-events", type=int, default=256, show_default=True, help="Events that int8 ranges are measured on.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of latents, energies and normal inputs.")
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    model: str,
    formats: str,
    inputs: Path | None,
    batch: int | None,
    calibration_events: int,
    seed: int,
    as_json: bool,
) -> None:
    """Check that a network's low-precision kernels compute what they should on this machine.

    MODEL is a surrogate (directory or shipped name) or any network that `minicarlo tune` takes, such as an ONNX file. Each
    layer runs alone in each format on the values that really reach it, and is compared with float32 arithmetic on the same
    rounded numbers. Ends with 1 if a kernel is wrong.

    \b
    Example:
      minicarlo audit clic-ecal
      minicarlo audit network.onnx --inputs events.npz --json
    """
    from minicarlo.precision.audit import audit

    with progress_bar("Auditing", unit="kernels") as progress:
        result = audit(
            model,
            inputs=inputs,
            batch=batch,
            formats=tuple(part.strip() for part in formats.split(",") if part.strip()),
            calibration_events=calibration_events,
            seed=seed,
            progress=progress,
        )
    if as_json:
        print_json(result.to_dict())
    else:
        rows: list[tuple[str, ...]] = [
            (
                check.layer,
                check.format,
                check.kernel or "-",
                format_number(check.error, 2),
                _verdict(check),
            )
            for check in result.checks
        ]
        click.echo(table(rows, ("layer", "format", "kernel", "error", "verdict")))
        click.echo()
        count = len(result.wrong)
        click.echo(f"{count} of {len(rows)} kernels wrong on {result.machine['processor']}." if count else "No kernel is wrong.")
    if result.wrong:
        ctx.exit(1)


def _verdict(check: KernelCheck) -> str:
    if check.error is None:
        return f"runs in {check.ran}"
    if not check.wrong:
        return "right"
    return f"WRONG; right with half-range weights ({format_number(check.half_range, 2)})" if check.mended else "WRONG"
