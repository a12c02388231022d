"""`minicarlo train`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from minicarlo.cli._common import json_option, print_json, progress_bar


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--steps", type=click.IntRange(min=1), help="Stop after this many steps; the same command takes the run up again.")
@json_option
def command(config: Path, steps: int | None, as_json: bool) -> None:
    """Train a generator on an event set, as CONFIG (TOML) says, and save it as a surrogate.

    A stopped run goes on from its last checkpoint when the same command is given again. Losses and validation figures are logged
    for TensorBoard, and plots against the validation showers are written while it trains, in the folder `run` of CONFIG.
    Needs the extra `train`.

    \b
    Example:
      minicarlo train configs/shower2d.toml
      tensorboard --logdir runs/shower2d

    \b
    A configuration (paths are relative to its file; unknown fields are refused):
      name = "my-calorimeter"
      generator = "shower2d"          # or gan3d, gan2d
      output = "surrogate"            # the result
      run = "run"                     # checkpoints, log, plots
      [data]
      train = ["train.h5"]
      validation = "validation.h5"
      [training]
      steps = 6500
    """
    from minicarlo.training.loop import train

    with progress_bar("Training", unit="steps") as progress:
        result = train(config, steps=steps, progress=progress)
    if as_json:
        print_json(asdict(result))
    else:
        click.echo(f"{result.surrogate}: trained to step {result.steps:,} in {result.seconds:.0f} s.")
