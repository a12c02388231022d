"""What each rewrite of a graph is worth: the given graph against rewritten ones, interleaved, in fp32, bf16 and int8.

    python benchmarks/graph.py [SURROGATE] [--seconds 3] [--batch 32] [--threads N] [--json FILE]

Without a surrogate, CERN's generator (`gan3d`) with random weights: they decide no timing. Run on a quiet machine; the ratios are
medians of windows in which every graph runs in turn.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from minicarlo.engines import CompiledGenerator, compile_surrogate, has_bf16, machine, usable_cores
from minicarlo.graph.model import Graph
from minicarlo.graph.recipe import KINDS, Rewrite, multiply_accumulates, rewrites, rewritten
from minicarlo.precision import compile_planned, surrogate_quantizer
from minicarlo.precision.audit import all_int8
from minicarlo.precision.rewriting import wrong_kernels
from minicarlo.sampling import EnergyDistribution, normal_latents
from minicarlo.surrogate import Surrogate, save_surrogate

WINDOWS = 9


def random_gan3d(folder: Path) -> Surrogate:
    """CERN's generator with random weights."""
    import torch

    from minicarlo.generators.gan3d import Gan3D
    from minicarlo.training.export import to_onnx

    torch.manual_seed(1)
    return save_surrogate(
        folder / "gan3d",
        to_onnx(Gan3D()),
        name="gan3d",
        generator="gan3d",
        conditions={"incident_energy": {"unit": "MeV", "low": 1e3, "high": 1e5}},
        latent_size=200,
        readout_threshold_mev=0.05,
    )


def recipes(graph: Graph) -> dict[str, list[Rewrite]]:
    """Every rewrite added to those before it, whether it pays or not, then every order of the axes with all of them."""
    found: dict[str, list[Rewrite]] = {"normal form": []}
    recipe: list[Rewrite] = []
    orders: list[Rewrite] = []
    for kind in KINDS:
        offered = rewrites(rewritten(graph, recipe), kind)
        if kind == "axes":
            orders = offered
            continue
        for rewrite in offered:
            if kind == "shuffle" and multiply_accumulates(rewritten(graph, [*recipe, rewrite])) > 1.5 * multiply_accumulates(
                rewritten(graph, recipe)
            ):
                continue
            recipe = [*recipe, rewrite]
            found[f"+ {kind} {rewrite.target}"] = recipe
    return found | {f"  axes {order.target}": [order, *recipe] for order in orders}


def compiled(surrogate: Surrogate, form: str, batch: int, streams: int) -> CompiledGenerator:
    """`surrogate` in fp32, bf16, or int8 throughout."""
    if form != "int8":
        return compile_surrogate(surrogate, form, batch=batch, streams=streams)
    quantizer = surrogate_quantizer(surrogate, 64)
    return compile_planned(quantizer.apply(all_int8(quantizer)), batch=batch, streams=streams)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("surrogate", nargs="?")
    parser.add_argument("--seconds", type=float, default=3.0, help="per graph and format")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=usable_cores(), help="streams of one thread each")
    parser.add_argument("--formats", default="fp32,bf16,int8")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        given = Surrogate.load(options.surrogate) if options.surrogate else random_gan3d(Path(folder))
    graph = Graph(given.onnx)
    graphs = {"as given": graph} | {name: rewritten(graph, recipe) for name, recipe in recipes(graph).items()}
    surrogates = {name: dataclasses.replace(given, onnx=made.serialise()) for name, made in graphs.items()}
    surrogates["as given"] = given
    macs = {name: multiply_accumulates(made) / 1e6 for name, made in graphs.items()}
    wrong = {name: wrong_kernels(surrogate) for name, surrogate in surrogates.items()}
    allowed = given.manifest.conditions["incident_energy"]
    count = 4 * options.batch * options.threads
    latent = normal_latents(0, 0, count, given.manifest.latent_size)
    energy = EnergyDistribution(allowed.low, allowed.high, "log").sample(0, 0, count)
    batches = [
        (start, latent[start : start + options.batch], energy[start : start + options.batch])
        for start in range(0, count, options.batch)
    ]
    rates: dict[str, dict[str, list[float]]] = {}
    for form in options.formats.split(","):
        if form == "bf16" and not has_bf16():
            continue
        runs = {name: compiled(surrogate, form, options.batch, options.threads) for name, surrogate in surrogates.items()}

        def seconds(generator: CompiledGenerator, repeats: int) -> float:
            start = time.perf_counter()
            for _ in range(repeats):
                for _ in generator.map(batches):
                    pass
            return (time.perf_counter() - start) / repeats

        once = {name: min(seconds(generator, 1) for _ in range(2)) for name, generator in runs.items()}
        repeats = {name: max(1, round(options.seconds / WINDOWS / spent)) for name, spent in once.items()}
        rates[form] = {name: [] for name in runs}
        for _ in range(WINDOWS):
            for name, generator in runs.items():
                rates[form][name].append(count / seconds(generator, repeats[name]))
        print(f"{form}, {options.threads} x 1 thread, batches of {options.batch}", flush=True)
        for name, found in rates[form].items():
            ratio = np.median(np.array(found) / np.array(rates[form]["as given"]))
            broken = [layer for layer, formats in wrong[name].items() if form in formats]
            remark = f"  computed wrong: {', '.join(broken)}" if broken else ""
            print(f"  {name:24s} {macs[name]:6.1f} MMAC {np.median(found):9.0f} showers/s {ratio:6.2f}{remark}", flush=True)
    if options.json:
        facts = {"machine": machine(), "batch": options.batch, "threads": options.threads, "macs": macs, "rates": rates}
        options.json.write_text(json.dumps(facts | {"wrong_kernels": wrong}, indent=2) + "\n")


if __name__ == "__main__":
    main()
