"""`minicarlo tune`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from minicarlo.cli._common import NotedProgress, format_seconds, json_option, key_values, print_json, progress_bar, table

if TYPE_CHECKING:
    from minicarlo.precision.result import Status, TuneResult


@click.command()
@click.argument("model")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="New directory for the tuned network.")
@click.option(
    "--formats",
    help="Formats that layers may have: int8, bf16, fp16, w8 and w4 (weights alone), fp32.  [default: int8,bf16,fp32, and w8,w4 "
    "where size or latency is the first objective]",
)
@click.option("--inputs", type=click.Path(path_type=Path), help="Arrays for a network that is no surrogate (.npz, events first).")
@click.option("--batch", type=int, help="Events of one inference, for a network that is no surrogate.  [default: 64]")
@click.option(
    "--criterion",
    help="Surrogates: fidelity (largest change of any observable, default), profile (CERN's figure), or families of observables "
    "with weights (response=2,resolution=1). Others: relative-l2 "
    "(default), max-error, cosine, wasserstein, accuracy, or a function of yours, module:function, which is imported and run.",
)
@click.option("--tolerance", type=float, default=0.03, show_default=True, help="Largest change the upper bound may reach.")
@click.option("--confidence", type=float, default=0.95, show_default=True, help="Of the bootstrap interval.")
@click.option("--max-trials", type=int, default=20, show_default=True, help="Plans to judge by the criterion, at most.")
@click.option("--time-limit", type=float, help="Seconds after which the best plan so far is taken.")
@click.option(
    "--exit",
    "exit_policy",
    type=click.Choice(["first", "exhausted"]),
    default="exhausted",
    show_default=True,
    help="End at the first plan that passes, or when there is nothing left to try.",
)
@click.option(
    "--strategy",
    default="pareto",
    show_default=True,
    help="How plans are searched for: pareto, basic, mse, mse_v2, tpe, bayesian, random, exhaustive.",
)
@click.option(
    "--reference", type=click.Path(path_type=Path), help="Monte Carlo events that the result must not describe worse than fp32."
)
@click.option(
    "--ranges",
    default="min-max,percentile,mse,kl",
    show_default=True,
    help="How ranges of int8 are found, each symmetric if that word follows: layers begin with the first, those that harm are "
    "tried with the others.",
)
@click.option(
    "--smooth/--no-smooth", default=None, help="Make channels smoother before int8.  [default: if it moves events less]"
)
@click.option(
    "--portable",
    is_flag=True,
    help="Int8 weights of half the range: right on processors without VNNI, too, for a little accuracy.",
)
@click.option("--calibration-events", type=int, default=256, show_default=True, help="Events that int8 ranges are measured on.")
@click.option("--evaluation-events", type=int, default=2048, show_default=True, help="Events per evaluation, and again held out.")
@click.option(
    "--objective",
    default="throughput",
    show_default=True,
    help="What to be better at: throughput, latency (one event), size (on disk), memory (peak), energy (where it is reported), "
    "or macs (an estimate, nothing is timed). Several with commas: the first decides, and the plans that no other beats in all "
    "of them are listed.",
)
@click.option("--plan", type=click.Path(path_type=Path), help="Apply exactly this plan (a plan.yaml) instead of searching.")
@click.option("--sensitivity", is_flag=True, help="Measure what each layer does alone in each format even if no search needs it.")
@click.option(
    "--cluster", help="Dask workers for what needs no clock: local[:N], ssh:HOST,HOST, slurm[:N], htcondor[:N], tcp://HOST:PORT."
)
@click.option(
    "--qat",
    type=click.Path(path_type=Path),
    help="As the last resort, where no plan passes: the configuration that the surrogate was trained with. Its run goes on with "
    "int8 in the loop, and what comes of it is tuned. Needs --reference.",
)
@click.option("--qat-steps", type=int, default=1000, show_default=True, help="Steps of that training.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of latents, energies and the bootstrap.")
@json_option
def command(
    model: str,
    output: Path,
    inputs: Path | None,
    batch: int | None,
    formats: str | None,
    criterion: str | None,
    tolerance: float,
    confidence: float,
    max_trials: int,
    time_limit: float | None,
    exit_policy: str,
    strategy: str,
    reference: Path | None,
    ranges: str,
    portable: bool,
    smooth: bool | None,
    calibration_events: int,
    evaluation_events: int,
    objective: str,
    plan: Path | None,
    sensitivity: bool,
    cluster: str | None,
    qat: Path | None,
    qat_steps: int,
    seed: int,
    as_json: bool,
) -> None:
    """Lower the precision of a network's layers as far as a criterion allows.

    MODEL is a surrogate (a directory or the name of a shipped one), an ONNX file, a PyTorch exported program (.pt2), a Keras
    file (.keras) or the directory of a TensorFlow SavedModel; no file is allowed to run code. Plans are compared with fp32 on
    the same inputs; the fastest that passes is written to OUTPUT. Ctrl-C ends the search with the best plan so far; after a
    kill, the same command goes on where it stopped.

    \b
    Example:
      minicarlo tune clic-ecal -o clic-ecal-tuned
      minicarlo tune my-surrogate -o my-surrogate-tuned --tolerance 0.01 --reference geant4.h5
      minicarlo tune my-surrogate -o edited --plan edited-plan.yaml
      minicarlo tune my-surrogate -o my-surrogate-tuned --reference geant4.h5 --qat my.toml
      minicarlo tune net.onnx -o net-tuned --inputs data.npz --criterion wasserstein --tolerance 0.01
    """
    from minicarlo.precision import tune
    from minicarlo.qat import tune_or_retrain

    if qat is not None and (reference is None or plan is not None or inputs is not None or batch is not None):
        raise click.UsageError("--qat needs --reference, and goes together with neither --plan nor the inputs of other networks.")
    with progress_bar("Tuning", unit="plans") as progress:
        display = _Display(progress)
        search = partial(tune, model, output, inputs=inputs, batch=batch, plan=plan)
        if qat is not None:
            search = partial(tune_or_retrain, model, output, qat, steps=qat_steps, training_progress=display.training)
        result = search(
            formats=None if formats is None else tuple(part.strip() for part in formats.split(",") if part.strip()),
            criterion=criterion,
            tolerance=tolerance,
            confidence=confidence,
            max_trials=max_trials,
            time_limit=time_limit,
            exit_policy="first" if exit_policy == "first" else "exhausted",
            strategy=strategy,
            reference=reference,
            ranges=tuple(part.strip() for part in ranges.split(",") if part.strip()),
            portable=portable,
            smooth=smooth,
            calibration_events=calibration_events,
            evaluation_events=evaluation_events,
            objective=objective,
            sensitivity=sensitivity,
            cluster=cluster,
            seed=seed,
            progress=display.progress,
            status=display.status,
        )
    if as_json:
        print_json(result.to_dict())
        return
    found = result.criterion
    click.echo(_layers(result))
    click.echo()
    if len(result.measures) > 1:
        rows = [
            (str(each["description"]), *(f"{value:.2f}" for value in each["measures"].values()))
            for each in result.candidates
            if each["front"]
        ]
        click.echo(table(rows, ("plans that no other beats, over fp32", *result.measures)))
        click.echo()
    facts: dict[str, object] = {
        "accepted": "yes" if result.accepted else "no",
        "why": result.reason,
        f"criterion {found['name']}": f"{found['value']:.4f} ({found['low']:.4f} to {found['high']:.4f})",
        "tolerance": f"{found['tolerance']:g}",
        "int8 share": f"{result.int8_share:.0%} of multiply-accumulates",
        "speed over fp32": f"{result.speedup:.2f}" + ("" if {"throughput", "latency"} & set(result.measures) else " (estimated)"),
        "trials": f"{result.trials}, {result.full_evaluations} judged, {result.events:,} events, {format_seconds(result.seconds)}"
        + (", interrupted" if result.interrupted else ""),
        "written to": result.path,
    }
    if result.monte_carlo is not None:
        mc = result.monte_carlo
        facts["against Monte Carlo"] = (
            f"fp32 {mc['fp32']:.4f}, tuned {mc['tuned']:.4f} (difference {mc['low']:+.4f} to {mc['high']:+.4f})"
        )
    for form, reason in result.not_offered.items():
        facts[f"not offered: {form}"] = reason
    mended = [check["layer"] for check in result.wrong_kernels if check.get("half_range") is not None]
    for check in result.wrong_kernels:
        if check["layer"] not in mended:
            facts[f"wrong on this machine: {check['layer']}"] = f"{check['format']} ({check['kernel']})"
    if mended:
        facts["sums saturate on this machine"] = f"half-range weights for {len(mended)} of {len(result.layers)} layers"
    click.echo(key_values(facts))


def _layers(result: TuneResult) -> str:
    """The table of layers; of what was not measured there are no columns."""
    from minicarlo.precision.plan import FORMATS

    def measured(key: str) -> list[str]:
        return [form for form in FORMATS if any(form in row[key] for row in result.layers)]

    def cell(values: dict[str, float], form: str) -> str:
        return f"{values[form]:.2g}" if form in values else "-"

    harms, times = measured("harm"), measured("seconds")
    header = ["layer", "MACs", "planned", "ran", *(f"harm {form}" for form in harms), *(["moves"] if harms else [])]
    rows = []
    for row in result.layers:
        worst = max(row["moves"], key=lambda form: row["harm"][form], default="")
        scheme = "" if row["scheme"] in (None, "min-max") else f" {row['scheme']}"
        cells = [row["name"], f"{row['mac_share']:.1%}", row["format"] + scheme, row["ran"] or "-"]
        cells += [*(cell(row["harm"], form) for form in harms), *([row["moves"].get(worst, "-")] if harms else [])]
        rows.append((*cells, *(f"{1e6 * row['seconds'][form]:.0f}" for form in times)))
    return table(rows, (*header, *(f"µs {form}" for form in times)))


class _Display:
    """Progress with a note: what is being tried, the best so far, how much of the time limit is left."""

    def __init__(self, show: NotedProgress) -> None:
        self._show = show
        self._done, self._total, self._note = 0, 0, ""

    def progress(self, done: int, total: int) -> None:
        self._done, self._total = done, total
        self._show(done, total, self._note)

    def training(self, done: int, total: int) -> None:
        self._show(done, total, "steps of training with int8 in the loop")

    def status(self, status: Status) -> None:
        best = status.best
        parts = [status.doing if len(status.doing) <= 60 else f"{status.doing[:59]}…"]
        parts.append("none passed yet" if best is None else f"best so far {best.gain:.2f} times with {best.upper:.2g}")
        if status.seconds_left is not None:
            parts.append(f"{format_seconds(status.seconds_left)} left")
        self._note = "; ".join(parts)
        self._show(self._done, self._total, self._note)
