"""What it is worth to compute the element-wise end of a surrogate in one pass of our own instead of the runtime's several.

    python benchmarks/epilogue.py [SURROGATE] [--precisions fp32,bf16,tuned] [--batches 16,32,64] [--rounds 12] [--json FILE]

Showers per second on all cores with the end in the runtime and in our kernel, in turns, a stream of one thread per core;
medians, and of the ratio within a round also the central 68 %. Run on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from minicarlo.engines import machine, read_model, usable_cores
from minicarlo.engines.openvino import OpenVinoGenerator
from minicarlo.generation.settings import probe
from minicarlo.surrogate import Surrogate


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
    latent, energy = probe(surrogate, batch)
    passes = [
        one_pass(OpenVinoGenerator(model, inference_precision, batch=batch, streams=usable_cores(), whole=whole), latent, energy)
        for whole in (True, False)
    ]
    rates = np.array([[each() for each in passes] for _ in range(rounds + 2)][2:])
    low, ratio, high = np.percentile(rates[:, 1] / rates[:, 0], [16, 50, 84])
    runtime, ours = np.median(rates, 0)
    return {"runtime": runtime, "ours": ours, "ratio": ratio, "low": low, "high": high}


def one_pass(generator: OpenVinoGenerator, latent: np.ndarray, energy: np.ndarray, seconds: float = 0.4) -> Callable[[], float]:
    """A function that runs for about so many seconds and returns showers per second."""

    def run(count: int) -> float:
        start = time.perf_counter()
        for _ in generator.map((i, latent, energy) for i in range(count)):
            pass
        return count * len(latent) / (time.perf_counter() - start)

    count = max(8, round(run(8) * seconds / len(latent)))
    return lambda: run(count)


if __name__ == "__main__":
    main()
