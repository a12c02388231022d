"""`minicarlo demo`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from minicarlo.cli._common import format_number, format_seconds, format_with_error, json_option, print_json, say, table

if TYPE_CHECKING:
    from rich.progress import Progress

    from minicarlo.demo import DemoResult


@click.command()
@click.argument("surrogate", default="clic-ecal")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("minicarlo-demo"),
    show_default=True,
    help="Folder for everything.",
)
@click.option(
    "--sample", type=click.Path(path_type=Path), help="Monte Carlo events to compare with. Default: those that minicarlo ships."
)
@click.option("--events", type=click.IntRange(min=400), help="Use only so many of them.")
@click.option("--seed", type=int, default=1, show_default=True, help="Seed of the latents and the bootstrap.")
@click.option("--tuning-seconds", type=float, default=90.0, show_default=True, help="Time limit of the tuning.")
@click.option("--bench-seconds", type=float, default=20.0, show_default=True, help="Time for the measurement of speed.")
@json_option
def command(
    surrogate: str,
    output: Path,
    sample: Path | None,
    events: int | None,
    seed: int,
    tuning_seconds: float,
    bench_seconds: float,
    as_json: bool,
) -> None:
    """Run the whole chain on what minicarlo ships and write a report: generate, tune, generate tuned, measure, validate.

    Takes a few minutes on two cores, needs neither PyTorch nor Geant4, and leaves every intermediate file in the output folder.

    \b
    Example:
      minicarlo demo
      minicarlo demo ./my-surrogate --sample geant4.h5 -o my-demo
    """
    say("minicarlo demo: Geant4 showers, a neural surrogate, and the surrogate in reduced precision.")
    say("Loading the libraries ...")
    from minicarlo.demo import demo

    with _Stages(silent=as_json) as watcher:
        result = demo(
            output,
            surrogate,
            sample=sample,
            events=events,
            seed=seed,
            tuning_seconds=tuning_seconds,
            bench_seconds=bench_seconds,
            watcher=watcher,
        )
    if as_json:
        print_json(dataclasses.asdict(result))
    else:
        click.echo(_summary(result))


def _summary(result: DemoResult) -> str:
    rows: list[tuple[str, ...]] = []
    for name, label in (("fp32", "FP32"), ("tuned", "tuned")):
        cern = result.cern_error[label]
        rows.append(
            (
                label,
                format_number(result.events_per_second[name]),
                format_with_error(cern["value"], cern["error"]),
                format_number(cern["floor"]),
                format_number(result.trees_auc[label]),
                result.verdict[label],
            )
        )
    header = ("", "showers/s", "CERN figure", "its floor", "AUC (trees)", "verdict")
    speedup = result.speedup
    lines = ["", table(rows, header), ""]
    if (ratio := speedup.get("tuned_over_fp32")) is not None:
        lines.append(
            f"The tuned surrogate is {ratio:.2f} times as fast as FP32; {result.int8_share:.0%} of its arithmetic is in INT8."
        )
    if (over := speedup.get("over_simulator")) is not None:
        lines.append(f"It is {over:,.0f} times as fast as the simulator, core for core.")
    if not result.accepted:
        lines.append(
            "No plan in lower precision met the criterion in time on this machine; the tuned surrogate computes in FP32."
        )
    lines += [f"All of it took {format_seconds(result.seconds)}.", "", f"Open {result.report} in a browser."]
    return "\n".join(lines)


class _Stages:
    """Shows the stages on standard error: a bar for the one that runs, one line for each that is done."""

    def __init__(self, silent: bool) -> None:
        self._silent = silent
        self._bars: Progress | None = None
        self._number = 0

    def __enter__(self) -> _Stages:
        if not self._silent and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
            self._bars = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def start(self, stage: str) -> Callable[[int, int], None]:
        """See `minicarlo.demo.Watcher`."""
        from minicarlo.demo import STAGES

        self._number += 1
        title = f"[{self._number}/{len(STAGES)}] {stage}"
        if self._bars is None:
            say(f"{title} ...")
            return lambda done, total: None
        bars = self._bars
        for task in bars.task_ids:
            bars.remove_task(task)
        task = bars.add_task(title, total=None)
        return lambda done, total: bars.update(task, completed=done, total=total)

    def end(self, stage: str, seconds: float, outcome: str) -> None:
        """See `minicarlo.demo.Watcher`."""
        line = f"{stage:<16} {format_seconds(seconds):>11}   {outcome}"
        if self._bars is None:
            say(f"      {line}")
        else:
            self._bars.console.print(line, markup=False, highlight=False)
