"""Checks of `minicarlo simulate` against theory, against a pure C++ event loop and against leaks.

    python benchmarks/geant4.py physics [--events 300] [--energies 1,2,5,10,20] [--jobs 2] [-o runs/geant4]
    python benchmarks/geant4.py speed --reference SCRIPT [--rounds 20]
    python benchmarks/geant4.py memory [--events 100000]
    python benchmarks/geant4.py fast [--rounds 6] [--jobs 2]
    python benchmarks/geant4.py position [--events 300] [--energies 2,10,50] [-o runs/geant4]
    python benchmarks/geant4.py particles -o particles.csv [--events 300] [--each 8]
    python benchmarks/geant4.py overlap SHOWERS [--each 8]

`physics` writes physics.json, physics.md and physics.png; what was simulated stays in the folder, and a repeated command goes on
from there. `speed` needs a quiet machine and a Python script with a class `Simulation(physics=..., cut_mm=...)` whose method
`shoot(energies)` simulates electrons in clic-ecal, and interleaves the same events in both. `fast` needs a quiet machine too: it
simulates in turn with Geant4 alone and with a surrogate inside it. `position` shows how showers change with the entry between the
centres of cells and with small angles, and what a shower lacks that is moved to the edge of the grid. `particles` writes a list
of electrons, several to an event, for `minicarlo simulate --conditions`. `overlap` shows what a threshold on single showers costs
where several overlap.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import fast_path
import numpy as np
import shower_physics as physics

from minicarlo.detectors import CLIC_ECAL, PAR04_SIW, Detector, get_detector
from minicarlo.engines import usable_cores
from minicarlo.events import events_info, read_events
from minicarlo.sampling import EnergyDistribution, event_seed
from minicarlo.simulators import Primaries, Setup, simulate
from minicarlo.simulators.geant4 import Geant4Session, Geant4Simulator

CUTS_MM = (0.02, 0.1, 0.3, 0.7, 2.0)
CUT_GEV = 1.0
ALL_GEV = 5.0


def measure(detector: str, gev: list[float], events: int, jobs: int, folder: Path) -> dict[str, Any]:
    """Simulate electrons in `detector` and hold them against theory."""
    materials = physics.expected(get_detector(detector))
    maxima, responses, resolutions, radii, fractions, seconds = [], [], [], [], [], []
    for energy in gev:
        path = folder / f"{detector}-{energy:g}GeV"
        simulate(events, f"{energy:g}GeV", output=path, detector=detector, seed=1, jobs=jobs, shard_size=50)
        showers = read_events(path)
        maxima.append(physics.shower_maximum(showers))
        responses.append(physics.response(showers))
        resolutions.append(physics.resolution(showers))
        radii.append(physics.radius_90(showers))
        seconds.append(events_info(path)["attributes"]["seconds_per_event"])
    for cut in CUTS_MM:
        path = folder / f"{detector}-cut-{cut:g}mm"
        simulate(events, f"{CUT_GEV:g}GeV", output=path, detector=detector, cut_mm=cut, seed=2, jobs=jobs, shard_size=50)
        fractions.append(physics.sampling_fraction(read_events(path)))
    path = folder / f"{detector}-all-{ALL_GEV:g}GeV"
    simulate(events, f"{ALL_GEV:g}GeV", output=path, detector=all_read_out(detector), seed=3, jobs=jobs, shard_size=50)
    everything = read_events(path)
    slope, offset = physics.fit_line([np.log(1e3 * energy / materials.critical) for energy in gev], maxima)
    rules = [np.log(1e3 * energy / materials.critical) - 0.5 for energy in gev]
    distance = physics.mean([physics.Mean(found.value - rule, found.error) for found, rule in zip(maxima, rules, strict=True)])
    stochastic, constant = physics.fit_resolution(gev, resolutions)
    return {
        "detector": detector,
        "events": events,
        "gev": gev,
        "expected": asdict(materials),
        "maximum": [asdict(value) for value in maxima],
        "slope": asdict(slope),
        "offset": asdict(offset),
        "distance": asdict(distance),
        "response": [asdict(value) for value in responses],
        "resolution": [asdict(value) for value in resolutions],
        "stochastic": asdict(stochastic),
        "constant": asdict(constant),
        "radius_90": [asdict(value) for value in radii],
        "all_maximum": asdict(physics.shower_maximum(everything)),
        "all_radius_90": asdict(physics.radius_90(everything)),
        "all_response": asdict(physics.response(everything)),
        "cuts_mm": list(CUTS_MM),
        "sampling_fraction": [asdict(value) for value in fractions],
        "seconds_per_event": seconds,
    }


def all_read_out(detector: str) -> Detector:
    """The same plates, all of which are read out: what a homogeneous calorimeter would measure."""
    found = get_detector(detector)
    plates = tuple(replace(plate, sensitive=True) for plate in found.materials)
    return replace(found, name=f"{detector}-all", materials=plates, energy_scale=1.0)


def table(results: list[dict[str, Any]]) -> str:
    """The results as Markdown."""

    def text(mean: dict[str, float], factor: float = 1.0, digits: int = 2) -> str:
        return f"{factor * mean['value']:.{digits}f} ± {factor * mean['error']:.{digits}f}"

    lines = [f"| | theory | {' | '.join(result['detector'] for result in results)} |", "|---|---|" + "---|" * len(results)]
    rows: list[tuple[str, str, list[str]]] = [
        ("critical energy of the mixture, MeV", "", [f"{result['expected']['critical']:.2f}" for result in results]),
        ("shower maximum, slope in ln(E/Ec)", "1", [text(result["slope"]) for result in results]),
        ("shower maximum less ln(E/Ec) − 0.5, X0", "0", [text(result["distance"]) for result in results]),
        ("resolution a, % √GeV", "", [text(result["stochastic"], 100) for result in results]),
        ("resolution c, %", "", [text(result["constant"], 100) for result in results]),
    ]
    energies = results[0]["gev"]
    for index in (0, len(energies) - 1):
        moliere = " / ".join(f"{result['expected']['moliere']:.1f}" for result in results)
        rows.append((f"R90 at {energies[index]:g} GeV, mm", f"R_M = {moliere}", [text(r["radius_90"][index]) for r in results]))
    rule = np.log(1e3 * ALL_GEV / results[0]["expected"]["critical"]) - 0.5
    rows += [
        (
            f"all plates read out, {ALL_GEV:g} GeV: maximum, X0",
            f"{rule:.2f}",
            [text(result["all_maximum"]) for result in results],
        ),
        (f"all plates read out, {ALL_GEV:g} GeV: R90, mm", f"R_M = {moliere}", [text(r["all_radius_90"]) for r in results]),
        (f"all plates read out, {ALL_GEV:g} GeV: response", "1", [text(r["all_response"], digits=4) for r in results]),
    ]
    spans = [[mean["value"] / _mean(result) for mean in result["response"]] for result in results]
    name = f"response over its mean, {energies[0]:g} to {energies[-1]:g} GeV"
    rows.append((name, "1", [f"{min(span):.3f} to {max(span):.3f}" for span in spans]))
    mips = " / ".join(f"{100 * result['expected']['mip_fraction']:.2f}" for result in results)
    for index, cut in enumerate(CUTS_MM):
        rows.append(
            (
                f"sampling fraction at a cut of {cut:g} mm, %",
                f"mip {mips}",
                [text(result["sampling_fraction"][index], 100, 3) for result in results],
            )
        )
    lines += [f"| {name} | {theory} | {' | '.join(values)} |" for name, theory, values in rows]
    return "\n".join(lines) + "\n"


def _mean(result: dict[str, Any]) -> float:
    return float(np.mean([mean["value"] for mean in result["response"]]))


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """Five panels: maximum, linearity, resolution, containment, sampling fraction."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6.4), layout="constrained")
    axes = figure.subplots(2, 3).ravel()
    for colour, result in zip(("#0072b2", "#d55e00"), results, strict=False):
        name, gev, about = result["detector"], np.array(result["gev"]), result["expected"]

        def points(
            panel: Any, x: Any, key: str, scale: float = 1.0, name: str = name, result: Any = result, c: str = colour
        ) -> None:
            values, errors = (scale * np.array([mean[part] for mean in result[key]]) for part in ("value", "error"))
            panel.errorbar(x, values, errors, fmt="o", ms=4, color=c, label=name)

        logs = np.log(1e3 * gev / about["critical"])
        points(axes[0], logs, "maximum")
        axes[0].plot(logs, result["slope"]["value"] * logs + result["offset"]["value"], color=colour, lw=1)
        points(axes[1], gev, "response", 1 / _mean(result))
        points(axes[2], gev, "resolution", 100)
        a, c = 100 * result["stochastic"]["value"], 100 * result["constant"]["value"]
        fine = np.geomspace(gev[0], gev[-1], 100)
        axes[2].plot(fine, np.hypot(a / np.sqrt(fine), c), color=colour, lw=1, label=f"{a:.1f} %/√E ⊕ {c:.1f} %")
        points(axes[3], gev, "radius_90")
        axes[3].axhline(about["moliere"], color=colour, lw=1, ls="--")
        points(axes[4], result["cuts_mm"], "sampling_fraction", 100)
        axes[4].axhline(100 * about["mip_fraction"], color=colour, lw=1, ls="--")
    logs = np.array(axes[0].get_xlim())
    axes[0].plot(logs, logs - 0.5, color="black", lw=1, ls="--", label="ln(E/Ec) − 0.5")
    axes[1].axhline(1, color="black", lw=1, ls="--")
    labels = (
        ("ln(E/Ec)", "shower maximum / X0"),
        ("E / GeV", "response / its mean"),
        ("E / GeV", "resolution / %"),
        ("E / GeV", "90 % radius / mm (dashed: Molière)"),
        ("production cut / mm", "sampling fraction / % (dashed: mip)"),
    )
    for panel, (x, y) in zip(axes, labels, strict=False):
        panel.set(xlabel=x, ylabel=y)
        if x != "ln(E/Ec)":
            panel.set_xscale("log")
        panel.legend(fontsize="small", frameon=False)
    axes[5].set_axis_off()
    figure.savefig(path, dpi=110)


def speed(reference: Path, rounds: int, gev: float, events: int) -> None:
    """Simulate the same events in turn with the reference and with minicarlo, each in a process of its own."""
    os.environ |= Geant4Simulator().prepare(_SETUP)
    ratios, share = [], []
    with _process(_serve_ours, None) as ours, _process(_serve_reference, reference) as theirs:
        for number in range(rounds + 1):  # the first warms up
            primaries = _primaries(gev, number * events, events)
            order = (ours, theirs) if number % 2 else (theirs, ours)
            found = {}
            for connection in order:
                connection.send(primaries)
                found[connection] = connection.recv()
            (total, seconds, python), (check, base, _) = found[ours], found[theirs]
            if abs(total - check) > 1e-4 * check:
                raise SystemExit(f"Not the same events: {total} MeV against {check} MeV")
            if number:
                ratios.append(seconds / base)
                share.append(python / seconds)
                print(f"{number:3d}: {1e3 * seconds / events:.2f} ms against {1e3 * base / events:.2f} ms", file=sys.stderr)
    error = np.std(ratios, ddof=1) / np.sqrt(len(ratios))
    print(f"time per event, minicarlo over reference: {np.mean(ratios):.4f} ± {error:.4f}; median {np.median(ratios):.4f}")
    print(f"Python's share of the event loop: {100 * np.mean(share):.2f} %")


_SETUP = Setup(get_detector(CLIC_ECAL), ("e-",), "option0", 0.7)


def _primaries(gev: float, start: int, count: int) -> Primaries:
    seeds = np.array([event_seed(1, start + index) for index in range(count)], np.int64)
    return Primaries.single("e-", EnergyDistribution.parse(f"{gev}GeV").sample(1, start, count), seeds)


@contextmanager
def _process(target: Any, argument: Any) -> Iterator[Connection]:
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=target, args=(there, argument), daemon=True)
    process.start()
    yield here
    process.kill()


def _quiet() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _serve_ours(connection: Connection, _: None) -> None:
    _quiet()
    session = Geant4Session(_SETUP)
    while True:
        primaries, before = connection.recv(), session.python_seconds
        start = time.process_time()
        samples = session.run(primaries).samples
        seconds = time.process_time() - start
        connection.send((float(samples.sum(dtype=np.float64)), seconds, session.python_seconds - before))


def _serve_reference(connection: Connection, script: Path) -> None:
    _quiet()
    specification = importlib.util.spec_from_file_location("reference", script)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    simulation = module.Simulation(physics="option0", cut_mm=0.7)
    primary = simulation.next_primary
    seeds: list[int] = []

    def seeded() -> Any:
        simulation.g.HepRandom.setTheSeed(seeds[simulation.i])
        return primary()

    simulation.next_primary = seeded
    while True:
        primaries = connection.recv()
        seeds[:] = primaries.seeds.tolist()
        start = time.process_time()
        total = float(simulation.shoot(primaries.particles.energies).sum(dtype=np.float64))
        connection.send((total, time.process_time() - start, 0.0))


def memory(events: int) -> None:
    """Print the memory of one simulating process as events pass."""
    os.environ |= Geant4Simulator().prepare(_SETUP)
    report = os.dup(1)
    _quiet()
    session = Geant4Session(_SETUP)
    step = max(events // 20, 1)
    for done in range(0, events, step):
        for start in range(done, done + step, 500):
            session.run(_primaries(0.02, start, min(500, done + step - start)))
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        os.write(report, f"{done + step:8d} events: {pages * os.sysconf('SC_PAGE_SIZE') / 2**20:.1f} MiB\n".encode())
    os._exit(0)


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    checks = verbs.add_parser("physics")
    checks.add_argument("--events", type=int, default=300)
    checks.add_argument("--energies", default="1,2,5,10,20", help="GeV")
    checks.add_argument("--detectors", default=f"{CLIC_ECAL},{PAR04_SIW}")
    checks.add_argument("--jobs", type=int, default=1)
    checks.add_argument("-o", "--output", type=Path, default=Path("runs/geant4"))
    race = verbs.add_parser("speed")
    race.add_argument("--reference", type=Path, required=True)
    race.add_argument("--rounds", type=int, default=20)
    race.add_argument("--gev", type=float, default=10.0)
    race.add_argument("--events", type=int, default=20, help="per round")
    leak = verbs.add_parser("memory")
    leak.add_argument("--events", type=int, default=100_000)
    gain = verbs.add_parser("fast")
    gain.add_argument("--rounds", type=int, default=6)
    gain.add_argument("--jobs", type=int, default=usable_cores())
    gain.add_argument("--surrogate", default=CLIC_ECAL)
    gain.add_argument("--precision")
    gain.add_argument("--events", type=int, default=1000, help="per round of the fast path")
    entry = verbs.add_parser("position")
    entry.add_argument("--events", type=int, default=300)
    entry.add_argument("--energies", default="2,10,50", help="GeV")
    entry.add_argument("--jobs", type=int, default=1)
    entry.add_argument("-o", "--output", type=Path, default=Path("runs/geant4"))
    several = verbs.add_parser("particles")
    several.add_argument("--events", type=int, default=300)
    several.add_argument("--each", type=int, default=8)
    several.add_argument("-o", "--output", type=Path, required=True)
    cutting = verbs.add_parser("overlap")
    cutting.add_argument("showers", type=Path)
    cutting.add_argument("--each", type=int, default=8)
    options = parser.parse_args()
    if options.verb == "speed":
        speed(options.reference, options.rounds, options.gev, options.events)
    elif options.verb == "memory":
        memory(options.events)
    elif options.verb == "fast":
        fast_path.speed(options.rounds, options.jobs, options.surrogate, options.precision, options.events)
    elif options.verb == "particles":
        fast_path.write_list(fast_path.electrons(options.events, options.each, high=10.0), options.output)
    elif options.verb == "overlap":
        fast_path.overlap(options.showers, options.each)
    elif options.verb == "position":
        options.output.mkdir(parents=True, exist_ok=True)
        gev = [float(energy) for energy in options.energies.split(",")]
        fast_path.position(options.events, gev, options.jobs, options.output)
        fast_path.edges(options.events, 10.0, options.jobs, options.output)
    else:
        options.output.mkdir(parents=True, exist_ok=True)
        gev = [float(energy) for energy in options.energies.split(",")]
        results = [measure(name, gev, options.events, options.jobs, options.output) for name in options.detectors.split(",")]
        (options.output / "physics.json").write_text(json.dumps(results, indent=1))
        (options.output / "physics.md").write_text(table(results))
        plot(results, options.output / "physics.png")
        print(table(results))


if __name__ == "__main__":
    main()
