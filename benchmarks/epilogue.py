"""What it is worth to compute the element-wise end of a surrogate in one pass of our own instead of the runtime's several.

    python benchmarks/epilogue.py [SURROGATE] [--precisions fp32,bf16,tuned] [--batches 16,32,64] [--rounds 12] [--json FILE]

Showers per second on all cores with the end in the runtime and in our kernel, in turns, a stream of one thread per core;
medians, and of the ratio within a round also the central 68 %. Run on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from minicarlo.engines import machine, read_model, usable_cores
from minicarlo.engines.openvino import OpenVinoGenerator
from minicarlo.generation.settings import throughput
from minicarlo.surrogate import Surrogate

_SECONDS = 0.4  # of a pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("surrogate", nargs="?", default="clic-ecal")
    parser.add_argument("--precisions", default="fp32,bf16,tuned")
    parser.add_argument("--batches", default="16,32,64")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    surrogate = Surrogate.load(arguments.surrogate)
    found: dict[str, object] = {"surrogate": surrogate.manifest.name, "machine": machine()}
    print("| precision | batch | the runtime alone | with our end | ratio |\n|---|---|---|---|---|")
    for precision in arguments.precisions.split(","):
        for batch in map(int, arguments.batches.split(",")):
            row = compare(surrogate, precision, batch, arguments.rounds)
            found[f"{precision} {batch}"] = row
            print(
                f"| {precision} | {batch} | {row['runtime']:,.0f} | {row['ours']:,.0f} "
                f"| {row['ratio']:.3f} ({row['low']:.3f} to {row['high']:.3f}) |",
                flush=True,
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))


def compare(surrogate: Surrogate, precision: str, batch: int, rounds: int) -> dict[str, float]:
    """Showers per second of both."""
    model, inference_precision = read_model(surrogate, precision)
    pair = [
        OpenVinoGenerator(model, inference_precision, batch=batch, streams=usable_cores(), whole=whole) for whole in (True, False)
    ]
    rates = np.array([[throughput(surrogate, each, batch, _SECONDS) for each in pair] for _ in range(rounds)])
    low, ratio, high = np.percentile(rates[:, 1] / rates[:, 0], [16, 50, 84])
    runtime, ours = np.median(rates, 0)
    return {"runtime": runtime, "ours": ours, "ratio": ratio, "low": low, "high": high}


if __name__ == "__main__":
    main()
