"""How much of what the arithmetic unit can do each layer reaches, and where the time of an inference goes.

    python benchmarks/layers.py [NETWORK] [--formats fp32,bf16,int8] [--batch 32] [--given] [--json FILE]

NETWORK as in `engines.py`: gan3d, gan2d, shower2d, or the path of a surrogate; its graph is rewritten first and layers become
fast convolutions in the formats in which that is faster, unless `--given`. One thread; times are the runtime's own, the least of
five inferences; reorders count with the layer that asks for them, the matrices of a fast convolution with the convolution. The
peak is that of one core (`peak.c`). Layers whose kernels saturate on this machine have weights of half the range. Run on a quiet
machine.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from engines import UNITS, Planner, network, peaks

from minicarlo.engines import has_bf16, machine
from minicarlo.files import write_json
from minicarlo.precision import Calibration, Plan
from minicarlo.precision.audit import all_int8
from minicarlo.precision.rewriting import fastest
from minicarlo.surrogate import Surrogate

ROUNDS = 5


def layers(surrogate: Surrogate, planner: Planner, form: str, batch: int, peak: dict[str, float]) -> list[dict[str, Any]]:
    """A row for each layer."""
    quantizer = planner.quantizer
    plan = all_int8(quantizer) if form == "int8" else Plan.uniform(quantizer.layers, form)
    inputs = Calibration.over_range(surrogate, batch, 1).batches()[0]
    shapes = {name: array.shape for name, array in inputs.items()}
    compiled = quantizer.apply(plan).compile(shapes, profile=True)
    seconds, ran = compiled.layer_seconds(inputs, ROUNDS), compiled.precision_report()
    counted = planner.layer_macs(plan)
    rows = []
    for layer in quantizer.layers:
        spent = seconds[layer.name]
        macs = counted[layer.name] * batch
        unit = next((name for name in UNITS.get(ran.get(layer.name, ""), ()) if name in peak), None)
        share = 2 * macs / spent / peak[unit] if unit and spent else None
        found = {"layer": layer.name, "operation": layer.operation, "ran": ran.get(layer.name), "mega_macs": macs / batch / 1e6}
        rows.append(found | {"microseconds": 1e6 * spent / batch, "share_of_peak": share})
    return rows


def show(form: str, rows: list[dict[str, Any]]) -> None:
    """The rows that take at least a hundredth of the time."""
    total = sum(row["microseconds"] for row in rows)
    print(f"{form}: layers, their format, million multiply-accumulates and microseconds of a core per shower, share of peak")
    for row in sorted(rows, key=lambda row: -row["microseconds"]):
        if row["microseconds"] > 0.01 * total:
            share = f"{row['share_of_peak']:5.0%}" if row["share_of_peak"] else ""
            found = f"{row['ran'] or '':5s} {row['mega_macs']:8.2f} {row['microseconds']:9.1f} {share}"
            print(f"  {row['layer']:32s} {found}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", nargs="?", default="shower2d")
    parser.add_argument("--formats", default="fp32,bf16,int8")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--given", action="store_true", help="leave the graph as it is")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        peak = peaks(Path(name), 1, 1.0)
        surrogate = network(options.network, Path(name))
        surrogate = surrogate if options.given else fastest(surrogate)
        planner = Planner(surrogate, 64, fast=not options.given)
    print("peak of a core: " + ", ".join(f"{unit} {value / 1e12:.2f} TOP/s" for unit, value in peak.items()), flush=True)
    results = {}
    for form in options.formats.split(","):
        if form != "bf16" or has_bf16():
            results[form] = layers(surrogate, planner, form, options.batch, peak)
            show(form, results[form])
    if options.json:
        write_json(options.json, {"machine": machine(), "batch": options.batch, "peak": peak, "layers": results})


if __name__ == "__main__":
    main()
