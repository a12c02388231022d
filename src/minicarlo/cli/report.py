"""`minicarlo report`."""

from __future__ import annotations

from pathlib import Path

import click

from minicarlo.cli._common import json_option, print_json, progress_bar, say
from minicarlo.errors import InvalidConfig


@click.command()
@click.argument("reference", type=click.Path(path_type=Path))
@click.argument("candidates", nargs=-1, required=True, metavar="[LABEL=]CANDIDATE...")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("report.html"), show_default=True, help="The page.")
@click.option("--surrogate", help="Path or shipped name; shows its precision plan and tuning history.")
@click.option("--tuning", type=click.Path(path_type=Path), help="File saved from `minicarlo tune --json`.")
@click.option("--bench", type=click.Path(path_type=Path), help="File saved from `minicarlo bench --json`.")
@click.option("--figures", type=click.Path(path_type=Path), help="Folder for every figure as PDF and PNG.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the bootstrap.")
@json_option
def command(
    reference: Path,
    candidates: tuple[str, ...],
    output: Path,
    surrogate: str | None,
    tuning: Path | None,
    bench: Path | None,
    figures: Path | None,
    seed: int,
    as_json: bool,
) -> None:
    """Write one self-contained page that compares event sets with a reference.

    REFERENCE is an event set (a file or a directory of shards), each CANDIDATE another one or the
    file that `minicarlo validate --json` made of it. The last candidate gives the verdict on top.

    \b
    Example:
      minicarlo report geant4.h5 FP32=fp32.h5 tuned=tuned.h5 --surrogate tuned-surrogate --bench bench.json -o report.html
    """
    from minicarlo.report import report

    with progress_bar("Comparing", unit="candidates") as progress:
        page = report(
            reference,
            _labelled(candidates),
            output,
            surrogate=surrogate,
            tuning=tuning,
            bench=bench,
            figures=figures,
            seed=seed,
            progress=progress,
        )
    if as_json:
        print_json({"path": page, "bytes": page.stat().st_size, "candidates": list(_labelled(candidates))})
    else:
        say(f"Wrote {page}. Open it in a browser; it needs no network.")
        if figures is not None:
            say(f"Wrote the figures to {figures}.")


def _labelled(candidates: tuple[str, ...]) -> dict[str, Path]:
    """`FP32=showers.h5` or `showers.h5`, whose label is then the file's name."""
    found: dict[str, Path] = {}
    for text in candidates:
        label, separator, path = text.partition("=")
        if not separator or Path(text).exists():
            label, path = Path(text).stem, text
        if not label or label in found:
            raise InvalidConfig(
                f"Candidate {text}: the label {label!r} is empty or used twice. Write LABEL=PATH with another label."
            )
        found[label] = Path(path)
    return found
